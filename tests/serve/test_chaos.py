"""Things break while others are served: drafters, logits, queues, patience. Nobody else notices."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from engine.service_parts import Around
from forerun import Engine, Speculation
from forerun.engine.service import ServiceLimits

from .live import MODEL, Live, serving
from .test_reliability import LONG, is_idle, num_cancelled, raw_request, until

POISON = 250  # a token that broken targets cannot take
COMPLETIONS = "/v1/completions"
PROMPT = {"prompt": "abcabcabcabc", "max_tokens": 24, "temperature": 0, "ignore_eos": True}


class Raises(Around):
    """A target that raises where the token is among those it shall read."""

    def forward(self, batch: Any) -> Any:
        if POISON in batch.token_ids.tolist():
            raise ZeroDivisionError("a poisoned token of /secret/path")
        return self._target.forward(batch)


class SaysNaN(Around):
    """A target whose logits are NaN in a row that holds the token."""

    def forward(self, batch: Any) -> Any:
        output = self._target.forward(batch)
        logits = np.array(output.logits)
        for start, end in pairwise(batch.row_starts.tolist()):
            if POISON in batch.token_ids[start:end].tolist():
                inside = (batch.logit_nodes >= start) & (batch.logit_nodes < end)
                logits[inside] = np.nan
        return dataclasses.replace(output, logits=logits)


def broken(monkeypatch: pytest.MonkeyPatch, engine: Engine, wrap: Callable[..., Any]) -> None:
    """Let an engine compute with a target that fails."""
    parts = engine._parts
    monkeypatch.setattr(engine, "_parts", dataclasses.replace(parts, target=wrap(parts.target)))


def asked_at_once(server: Live, bodies: Sequence[dict[str, Any]]) -> list[httpx2.Response]:
    """The answers to requests that come together."""

    def ask(body: dict[str, Any]) -> httpx2.Response:
        with server.http() as http:
            return http.post(COMPLETIONS, json=body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(ask, bodies))


@pytest.mark.parametrize("wrap", [Raises, SaysNaN])
def test_given_one_request_that_cannot_be_computed_then_it_alone_fails(
    spare_engine: Engine, monkeypatch: pytest.MonkeyPatch, wrap: Callable[..., Any]
) -> None:
    bodies: list[dict[str, Any]] = [
        {
            "prompt": [65, 66, 67 + at],
            "max_tokens": 40,
            "logit_bias": {str(POISON): -100},
            "seed": at,
        }
        for at in range(6)
    ]
    bad = bodies[0] | {"prompt": [65, POISON, 66]}
    with serving(spare_engine) as server:
        alone = [one.json()["choices"] for one in asked_at_once(server, bodies)]

    broken(monkeypatch, spare_engine, wrap)
    with serving(spare_engine) as server:
        refused, *answers = asked_at_once(server, [bad, *bodies])
        load = server.service.load()

    assert refused.status_code == 500
    assert "secret" not in refused.text
    assert [one.status_code for one in answers] == [200] * 6
    assert [one.json()["choices"] for one in answers] == alone
    assert load.num_free_blocks == load.num_blocks
    assert load.num_requests["error"] == 1


def test_given_a_drafter_that_keeps_failing_then_it_is_off_and_seen_to_be_and_the_text_the_same(
    chat_model: Path,
) -> None:
    with (
        Engine(
            chat_model, speculate=Speculation("lookup", "chain:4"), threads=1, kv_positions=4096
        ) as engine,
        serving(engine, allows_faults=True) as server,
        server.http() as http,
    ):
        before = http.post(COMPLETIONS, json=PROMPT).json()
        assert http.get("/health/ready").json()["drafter"] == "healthy"
        http.post("/page/drafter-failure", json={"num": 3})
        during, after = (http.post(COMPLETIONS, json=PROMPT).json() for _ in range(2))
        ready, metrics = http.get("/health/ready"), http.get("/metrics").text

    assert before["choices"] == during["choices"] == after["choices"]
    assert [figures_of(one)["degraded"] for one in (before, after)] == [False, True]
    assert figures_of(before)["num_draft_tokens"] > 0 == figures_of(after)["num_draft_tokens"]
    assert ready.status_code == 200
    assert ready.json()["drafter"] == "disabled"
    assert f'forerun:drafter_state{{model_name="{MODEL}",state="disabled"}} 1.0' in metrics


def figures_of(answer: Any) -> Any:
    return answer["metrics"]["speculative_decoding"]


def test_given_a_client_that_leaves_while_its_prompt_is_read_then_nothing_is_generated(
    server: Live,
) -> None:
    until(lambda: is_idle(server))
    before, free = num_cancelled(server), server.service.load().num_free_blocks
    generated = server.service.load().num_generated_tokens
    body = LONG | {"prompt": [at * at % 251 for at in range(9, 30_009)], "max_tokens": 9000}

    with raw_request(server, COMPLETIONS, body):
        until(lambda: server.service.load().num_running == 1)

    until(lambda: num_cancelled(server) == before + 1)
    until(lambda: is_idle(server))
    load = server.service.load()
    assert load.num_generated_tokens == generated
    assert load.num_free_blocks == free


def test_given_too_many_tokens_that_wait_then_503_says_when_to_come_again(
    spare_engine: Engine,
) -> None:
    limits = ServiceLimits(max_rows=1, max_waiting_tokens=100)
    waiting = LONG | {"prompt": [70] * 60}
    with serving(spare_engine, limits) as server, server.http() as http:
        with raw_request(server, COMPLETIONS, LONG):
            until(lambda: server.service.load().num_running == 1)
            with raw_request(server, COMPLETIONS, waiting):
                until(lambda: server.service.load().num_waiting == 1)

                refused = http.post(COMPLETIONS, json=waiting)

                assert server.service.load().num_waiting == 1
        until(lambda: is_idle(server))
        assert http.post(COMPLETIONS, json=waiting | {"max_tokens": 1}).status_code == 200

    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"


@pytest.mark.parametrize(
    ("process", "status"),
    [
        (["--max-rows", "1", "--max-waiting-tokens", "100"], 503),
        (["--max-rows", "1"], 200),  # the control: by default they may wait
    ],
    indirect=["process"],
    ids=["bounded", "default"],
)
def test_given_the_option_for_tokens_that_wait_then_the_command_means_it(
    process: tuple[subprocess.Popen[str], str], status: int
) -> None:
    _, address = process
    url, streaming = f"{address}{COMPLETIONS}", LONG | {"stream": True}
    waiting = streaming | {"prompt": [70] * 60}

    def num_waiting_tokens() -> float:
        text = httpx2.get(f"{address}/metrics", timeout=120).text
        line = next(one for one in text.splitlines() if one.startswith("forerun:waiting_tokens{"))
        return float(line.rsplit(" ", 1)[1])

    with httpx2.stream("POST", url, json=streaming, timeout=120) as running:
        lines = running.iter_lines()  # kept, or the stream is closed with it
        next(lines)
        with httpx2.stream("POST", url, json=waiting, timeout=120):
            until(lambda: num_waiting_tokens() == 60)
            with httpx2.stream("POST", url, json=waiting, timeout=120) as third:
                assert third.status_code == status


@pytest.mark.parametrize("process", [["--drain-s", "0.3"]], indirect=True)
def test_given_sigterm_and_a_request_that_takes_too_long_then_it_is_told_and_the_server_ends(
    process: tuple[subprocess.Popen[str], str],
) -> None:
    running, address = process

    with httpx2.stream(
        "POST", f"{address}{COMPLETIONS}", json=LONG | {"stream": True}, timeout=120
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        running.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]

    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert running.wait(120) == 0
