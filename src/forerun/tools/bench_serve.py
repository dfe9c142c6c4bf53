"""`forerun bench serve`: load on any OpenAI-compatible server, and what came of it.

Each point of load lasts a time, then lets its requests end; throughput is counted over that time,
latencies over all requests. The client shares the machine with a server that is tested locally, so
its own use of cores is part of every row.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from forerun.errors import BackendError, OptionError
from forerun.tools import machine
from forerun.tools.bench_decode import progress
from forerun.tools.bench_serve_client import Client, Outcome
from forerun.tools.bench_serve_drafts import Drafts, acceptance, drafts_of_metrics
from forerun.tools.bench_serve_figures import Slo, Window, first_errors, row_of, sameness
from forerun.tools.bench_serve_load import closed_loop, open_loop, poisson_times
from forerun.tools.bench_serve_options import LoadOptions, Point
from forerun.tools.bench_serve_wire import Address, RequestFailed, read_whole
from forerun.tools.prompt_files import read_prompts, read_suite, spread
from forerun.tools.terminal import say, write_json


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent to whom, at which loads."""

    client: Client
    texts: tuple[str, ...]
    points: tuple[Point, ...]
    duration_s: float
    slo: Slo
    checks: bool

    async def send(self, number: int, due_s: float) -> Outcome:
        """Send the request of this number; prompts come round in one order."""
        prompt = number % len(self.texts)
        return await self.client.ask(prompt, self.texts[prompt], due_s)


def run(options: LoadOptions) -> int:
    """Measure and report; 1 if no request ended well, or --check found different texts.

    Raises:
        OptionError: an option outside its range, a file that is not there.
        BackendError: no server answers, or a picture without matplotlib.
    """
    options.check_numbers()
    points, fields = options.points(), options.fields()
    if options.picture is not None:
        from forerun.tools.bench_serve_show import require_pictures

        require_pictures()
    report = asyncio.run(_measured(options, points, fields))
    _show(report, options.picture, as_json=options.as_json)
    same = report["check"] is None or report["check"]["identical"]
    return 0 if same and any(row["num_ok"] for row in report["rows"]) else 1


def texts_of(options: LoadOptions) -> tuple[str, ...]:
    """The prompts in an order that mixes their kinds, the same for one seed."""
    every = read_prompts(options.prompts) if options.prompts else read_suite(options.suite)
    texts = [one.text for one in spread(every, options.limit)]
    random.Random(options.seed).shuffle(texts)
    return tuple(texts)


async def _measured(
    options: LoadOptions, points: tuple[Point, ...], fields: dict[str, Any]
) -> dict[str, Any]:
    address, key = Address.parse(options.url), read_key(options.api_key_file)
    model = options.model or await first_model(address, key)
    client = Client(
        address,
        options.endpoint,
        {"model": model, **fields},
        options.seed,
        key,
        options.timeout_s,
    )
    slo = Slo(options.ttft_slo, options.itl_slo)
    plan = Plan(client, texts_of(options), points, options.duration_s, slo, options.check)
    report = await measure(plan)
    return {
        "machine": machine.machine_name(),
        "url": options.url,
        "model": model,
        "endpoint": options.endpoint,
        "num_prompts": len(plan.texts),
        "fields": fields,
        "seed": options.seed,
        "slo": {"ttft_s": slo.ttft_s, "itl_s": slo.itl_s},
        "speculation": await speculation_of(client),
        **report,
    }


async def measure(plan: Plan) -> dict[str, Any]:
    """All points of a plan, after one request that is not measured: rows, errors, sameness.

    Raises:
        BackendError: that first request failed.
    """
    first = await plan.send(0, perf_counter())
    if not first.is_ok:
        raise BackendError(f"{plan.client.address.authority} cannot be measured: {first.detail}")
    rows: list[dict[str, Any]] = []
    heard: dict[str, list[Outcome]] = {}
    for point in plan.points:
        progress(f"{point.kind} {point.name}")
        row, outcomes = await measure_point(plan, point)
        rows.append(row)
        heard.setdefault(point.name, []).extend(outcomes)
        if plan.checks:
            heard[point.name] += await _all_prompts(plan, point)
    progress("")
    every = [one for outcomes in heard.values() for one in outcomes]
    check = sameness(heard) if plan.checks else None
    return {"rows": rows, "errors": first_errors(every), "check": check}


async def measure_point(plan: Plan, point: Point) -> tuple[dict[str, Any], list[Outcome]]:
    """One point: its row, and the outcomes it is made of."""
    before = await scrape(plan.client)
    began_s, began_cpu_s = perf_counter(), process_time()
    outcomes = await _load(plan, point)
    wall_s, cpu_s = perf_counter() - began_s, process_time() - began_cpu_s
    window = Window(began_s, began_s + plan.duration_s)
    kept = acceptance(
        [one.drafts for one in outcomes if one.is_ok], before, await scrape(plan.client)
    )
    row = {
        point.kind: point.value,
        **row_of(outcomes, window, plan.slo),
        "acceptance": kept,
        "client": {"cores": cpu_s / wall_s if wall_s else 0.0, "of": machine.num_cores()},
    }
    return row, outcomes


async def _load(plan: Plan, point: Point) -> list[Outcome]:
    if point.kind == "rate":
        times_s = poisson_times(point.value, plan.duration_s, plan.client.seed)
        return await open_loop(plan.send, times_s)
    return await closed_loop(plan.send, int(point.value), plan.duration_s)


async def _all_prompts(plan: Plan, point: Point) -> list[Outcome]:
    """Every prompt once, in the company of the point's concurrency."""
    long_s = plan.client.timeout_s * len(plan.texts)
    return await closed_loop(plan.send, int(point.value), long_s, num_requests=len(plan.texts))


async def scrape(client: Client) -> Drafts | None:
    """What the server's metrics say of drafts by now; None if it has none."""
    try:
        async with asyncio.timeout(client.timeout_s):
            status, body = await read_whole(
                client.address, f"{client.address.root}/metrics", client.key
            )
    except (RequestFailed, TimeoutError):
        return None
    return drafts_of_metrics(body.decode("utf-8", errors="replace")) if status == 200 else None


async def speculation_of(client: Client) -> dict[str, str] | None:
    """What a server of ours says that it decodes with, by axis; None if it says nothing of it."""
    try:
        async with asyncio.timeout(client.timeout_s):
            _, body = await read_whole(client.address, f"{client.address.path}/models", client.key)
        cards = {one["id"]: one.get("speculation") for one in json.loads(body)["data"]}
    except (RequestFailed, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
        return None
    told = cards.get(client.fields["model"])
    return told if isinstance(told, dict) else None


async def first_model(address: Address, key: str | None) -> str:
    """The name of the model that a server lists first.

    Raises:
        BackendError: it does not answer, wants a key, or lists none.
    """
    path = f"{address.path}/models"
    try:
        async with asyncio.timeout(30.0):
            status, body = await read_whole(address, path, key)
        if status == HTTPStatus.UNAUTHORIZED:
            raise BackendError(
                f"{address.authority} wants {'another' if key else 'an'} API key: give a file with"
                " it, --api-key-file FILE"
            )
        return str(json.loads(body)["data"][0]["id"])
    except RequestFailed as error:
        raise BackendError(f"no server answers at {address.authority}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError, TimeoutError) as error:
        raise BackendError(
            f"{address.authority}{path} lists no model; name one with --model"
        ) from error


def read_key(path: Path | None) -> str | None:
    """The first key of a file: one a line, as a server reads it; `# comments` are passed over.

    Raises:
        OptionError: no such file, no such line, or no printable ASCII.
    """
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--api-key-file {path} cannot be read: {error}") from error
    keys = [text for line in lines if (text := line.strip()) and not text.startswith("#")]
    if not keys or not keys[0].isascii() or not keys[0].isprintable():
        raise OptionError(f"--api-key-file {path} has no line with a key in printable ASCII")
    return keys[0]


def _show(report: dict[str, Any], picture: Path | None, *, as_json: bool) -> None:
    if as_json:
        write_json(report)
    else:
        from forerun.tools.bench_serve_show import show

        show(report)
    if picture is not None:
        from forerun.tools.bench_serve_show import draw

        draw(report["rows"], picture)
    if report["check"] is not None and not report["check"]["identical"]:
        say("forerun: a prompt had different texts, or nothing could be compared")
