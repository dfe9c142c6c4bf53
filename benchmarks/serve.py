"""Does speculation pay in a server under load? The bars of the server, measured and judged.

    python benchmarks/serve.py --model build/260M-matched --repeat 2 --out serve-260M.json
    python benchmarks/serve.py --model build/260M-matched --out serve-260M.json \
      --peer-command 'env OMP_NUM_THREADS=2 VLLM_CPU_OMP_THREADS_BIND=nobind
      VLLM_CPU_KVCACHE_SPACE=1 ENVIRONMENT/bin/python -m vllm.entrypoints.openai.api_server
      --model {model} --port {port} --dtype bfloat16
      --max-model-len 4096 --gpu-memory-utilization 0.2'

Three servers of one model, one that never speculates, one with a fixed chain and one left to itself
(`auto`; with `--auto-drafter` only how much it drafts is left to it), each a process of its own.
They are loaded in turns, one at a time, at every concurrency, the order rotating, so that a slow
minute of the machine hits all; who is not loaded sleeps. Some prompts are then answered once more
at that concurrency by each: all texts of a prompt must be one. As it is, with a repetition, a run
takes about twelve minutes. What each server found to decode with, and what `auto` drafted at each
load, stand in the report.

Bars: tokens/s of `auto` at every concurrency at least 0.97 of the better of the other two; against
vLLM on the same machine at least 4, 3.5 and 2 times at 1, 4 and 32: its server is started by
`--peer-command` or found at `--peer-url`, and takes its turns among ours at those loads; else
`--peer` is a file of `forerun bench serve --json`; else figures noted for a random model of 260M
count, where this one is as large. Exit status 1 if a text differs; bars are told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from serve_bars import LEAST_OF_PEER, PEER, drafts_of, judged, peer_of, rates_of, show
from serve_peer import Peer, command_of, free_port, started

from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.tools import machine
from forerun.tools.bench_decode import progress
from forerun.tools.bench_serve import Plan, first_model, measure_point, speculation_of
from forerun.tools.bench_serve_client import Client, Outcome
from forerun.tools.bench_serve_figures import Slo, first_errors, sameness
from forerun.tools.bench_serve_load import closed_loop
from forerun.tools.bench_serve_options import Point
from forerun.tools.bench_serve_wire import Address
from forerun.tools.other_work import OtherWork
from forerun.tools.prompt_files import read_prompts, read_suite, spread

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs: what it is called here, its process, and how it is asked."""

    name: str
    process: int
    plan: Plan
    peer: Peer | None = None  # where it is another engine's

    def busy_s(self) -> float:
        """Seconds that it kept cores busy since it began; 0 where the system does not say."""
        try:
            stat = Path(f"/proc/{self.process}/stat").read_text(encoding="utf-8")
        except OSError:
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, print the table, write the file."""
    arguments = _arguments()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving(name, options, arguments))
            for name, options in compositions(arguments).items()
        ]
        with peer_serving(arguments) as peer:
            served = {one.name: asyncio.run(speculation_of(one.plan.client)) for one in servers}
            runs, heard = asyncio.run(sweep(servers, peer, arguments))
    num_parameters = read_spec(resolve_model(arguments.model)).num_parameters
    report = {
        "what": "serve",
        "date": date.today().isoformat(),
        "command": "python benchmarks/serve.py " + shlex.join(sys.argv[1:]),
        "machine": machine.machine_name(),
        "cores": machine.num_cores(),
        "parameters": num_parameters,
        "compositions": compositions(arguments),
        "served": served,
        "peer": arguments.peer_command or arguments.peer_url or str(arguments.peer or ""),
        "num_prompts": len(servers[0].plan.texts),
        **{name: getattr(arguments, name) for name in ("max_tokens", "temperature", "duration_s")},
        "runs": runs,
        "drafts": drafts_of(runs),
        "check": sameness(heard),
        "errors": first_errors(one for outcomes in heard.values() for one in outcomes),
        "bars": judged(rates_of(runs), {} if peer else peer_of(arguments.peer, num_parameters)),
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(report)
    return 0 if report["check"]["identical"] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="forerun-code")
    parser.add_argument("--drafter", default="lm", help="of the fixed chain")
    parser.add_argument("--chain", type=int, default=4, help="tokens of the fixed chain")
    parser.add_argument("--auto-drafter", help="of `auto`, which chooses one if not given")
    parser.add_argument("--threads", type=int, help="cores of each server; all if not given")
    parser.add_argument("--concurrency", default="1,2,4,8,16,32")
    parser.add_argument("--duration-s", type=float, default=8.0, help="seconds at each point")
    parser.add_argument("--repeat", type=int, default=1, help="turns at each concurrency")
    parser.add_argument("--prompts", type=Path, help="JSONL with a prompt key, not the suite")
    parser.add_argument("--suite", default="all", help="categories of the suite, by commas")
    parser.add_argument("--contexts", default="64", help="its lengths: 64,1k,4k")
    parser.add_argument("--limit", type=int, default=48, help="prompts, spread over them")
    parser.add_argument("--check-limit", type=int, default=8, help="prompts answered once more")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", type=Path, help="a file of `forerun bench serve --json`")
    parser.add_argument("--peer-url", help="base URL of the peer's server, as http://host:port/v1")
    parser.add_argument("--peer-command", help="starts it; {model} and {port} are filled in")
    parser.add_argument("--peer-start-s", type=float, default=300.0, help="seconds to wait for it")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def compositions(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """What is served, as options of `forerun serve`."""
    return {
        "off": ["--drafter", "none"],
        "fixed": ["--drafter", arguments.drafter, "--shape", f"chain:{arguments.chain}"],
        "auto": ["--drafter", arguments.auto_drafter] if arguments.auto_drafter else [],
    }


@contextmanager
def serving(name: str, options: Sequence[str], arguments: argparse.Namespace) -> Iterator[Server]:
    """Serve the model until the block ends."""
    threads = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    command = [sys.executable, "-m", "forerun.cli", "serve", "--port", "0", "--json"]
    command += ["--model", arguments.model, *threads, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the server `{' '.join(command)}` did not begin")
            yield Server(name, process.pid, _plan(json.loads(line)["base_url"], arguments))
        finally:
            process.send_signal(signal.SIGTERM)


def _plan(url: str, arguments: argparse.Namespace) -> Plan:
    address = Address.parse(url)
    fields = {
        "model": asyncio.run(first_model(address, None)),
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "ignore_eos": True,
    }
    points = tuple(Point("concurrency", int(one)) for one in arguments.concurrency.split(","))
    client = Client(address, "completions", fields, arguments.seed, timeout_s=600.0)
    return Plan(client, _texts(arguments), points, arguments.duration_s, Slo(), checks=True)


def _texts(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Prompts of all categories, taking turns."""
    if arguments.prompts is not None:
        return tuple(one.text for one in read_prompts(arguments.prompts)[: arguments.limit])
    contexts = arguments.contexts.split(",")
    own = [one for one in read_suite(arguments.suite) if one.context in contexts]
    by_category = defaultdict(list)
    for one in spread(own, arguments.limit):
        by_category[one.category].append(one.text)
    longest = max(map(len, by_category.values()))
    rounds = [[texts[at] for texts in by_category.values() if at < len(texts)]
              for at in range(longest)]  # fmt: skip
    return tuple(text for one in rounds for text in one)


@contextmanager
def peer_serving(arguments: argparse.Namespace) -> Iterator[Server | None]:
    """The other engine's server, at rest, where there is one."""
    if arguments.peer_command:
        model, port = resolve_model(arguments.model).resolve(), free_port()
        command = command_of(arguments.peer_command, model, port)
        log = arguments.out.with_suffix(".peer.log")
        begun: AbstractContextManager[Peer] = started(command, port, arguments.peer_start_s, log)
    elif arguments.peer_url:
        begun = nullcontext(Peer(arguments.peer_url))
    else:
        yield None
        return
    with begun as peer:
        server = Server(PEER, peer.process_id or 0, _plan(peer.url, arguments), peer)
        peer.rest()
        yield server


async def sweep(
    servers: Sequence[Server], peer: Server | None, arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, list[Outcome]]]:
    """All points, servers in turns: a row each, and what was answered, by server and load; nothing
    of a peer's answers, whose arithmetic is another."""
    runs: list[dict[str, Any]] = []
    heard: dict[str, list[Outcome]] = defaultdict(list)
    for server in servers:  # so that no first request is measured
        await closed_loop(server.plan.send, 2, 60.0, num_requests=2)
    if peer is not None:
        await _beside(peer, lambda: closed_loop(peer.plan.send, 4, 120.0, num_requests=8))
    for number, point in enumerate(servers[0].plan.points):
        for turn in range(arguments.repeat):
            first = (number + turn) % len(servers)
            for server in (*servers[first:], *servers[:first]):
                progress(f"{point.name} at a time, {server.name}, turn {turn + 1}")
                row, outcomes = await _turn(server, point)
                if turn == 0:
                    outcomes += await _once_more(server, point, arguments.check_limit)
                runs.append({"composition": server.name, "turn": turn, **row})
                heard[f"{server.name} at {point.name}"] += outcomes
            if peer is not None and int(point.value) in LEAST_OF_PEER:
                progress(f"{point.name} at a time, the peer, turn {turn + 1}")
                row, _ = await _beside(peer, partial(_turn, peer, point))
                runs.append({"composition": PEER, "turn": turn, **row})
    progress("")
    return runs, heard


async def _turn(server: Server, point: Point) -> tuple[dict[str, Any], list[Outcome]]:
    """One server at one load, measured."""
    others = OtherWork(os.sched_getaffinity(0))
    began_s, busy_s = perf_counter(), server.busy_s()
    row, outcomes = await measure_point(server.plan, point)
    busy_s = server.busy_s() - busy_s
    cores = busy_s / (perf_counter() - began_s)
    # Where others keep the machine busy, this says more than tokens a second do.
    per_core_s = row["num_tokens"] / busy_s if busy_s else None
    row |= {
        "server": {"cores": cores, "tokens_per_core_s": per_core_s},
        "others": {"cores": max(0.0, others.num_cores() - cores)},
    }
    return row, outcomes


async def _once_more(server: Server, point: Point, most: int) -> list[Outcome]:
    """Some prompts in the company of that load, for the comparison."""
    num = min(most, len(server.plan.texts))
    return await closed_loop(server.plan.send, int(point.value), 3600.0, num_requests=num)


async def _beside(peer: Server, work: Callable[[], Awaitable[_Result]]) -> _Result:
    """What is done while the peer is awake."""
    assert peer.peer is not None
    peer.peer.wake()
    try:
        return await work()
    finally:
        peer.peer.rest()


if __name__ == "__main__":
    sys.exit(main())
