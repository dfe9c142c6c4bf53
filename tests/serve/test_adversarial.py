"""Hundreds of requests that nobody should send, and a soak: a live server loses nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forerun import Engine, Speculation
from forerun.engine.service import Service
from forerun.errors import BackendError
from forerun.serve import wire

from .live import serving
from .test_reliability import is_idle, until

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NUM_REQUESTS = 400
SOAK_S, EVERY_S = 120.0, 10.0
MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def options(tiny_checkpoint_dir: Callable[..., Path]) -> list[str]:
    """Of a server whose context is short, so that no hostile prompt takes long to read."""
    model = tiny_checkpoint_dir("qwen3", 3, max_position_embeddings=8192, scale=0.6)
    return ["-m", str(model), "-d", "lookup", "--threads", "1", "--allow-faults"]


def test_given_hundreds_of_hostile_requests_then_nothing_is_lost(options: list[str]) -> None:
    from adversarial import Plan, run
    from watched_server import started

    plan = Plan(seed=7, at_once=8)
    with started(options) as (server, log):
        run(server, NUM_REQUESTS, plan, growth_bytes=256 * MIB)
        logged = log.read_text()

    assert plan.findings.faults == []
    assert "Traceback" not in logged
    statuses = {status for counts in plan.findings.statuses.values() for status in counts}
    assert {200, 400, 404, 413, None} <= statuses
    assert len(plan.findings.statuses) >= 16


@pytest.mark.timeout(3600)
def test_given_a_soak_then_nothing_grows_and_the_drafter_s_death_changes_no_answer(
    options: list[str],
) -> None:
    from adversarial import Plan
    from soak import growth, soak
    from watched_server import started

    plan = Plan(seed=11, at_once=1, every_good=2)
    with started(options) as (server, log):
        samples = soak(server, plan, SOAK_S, EVERY_S)
        ready = server.ask("/health/ready")[1]
        logged = log.read_text()

    assert plan.findings.faults == []
    assert growth(samples, growth_bytes=64 * MIB) == []
    assert b'"disabled"' in ready
    assert "Traceback" not in logged


# --- controls ------------------------------------------------------------------------------------


@pytest.fixture
def own_engine(chat_model: Path) -> Iterator[Engine]:
    with Engine(
        chat_model, speculate=Speculation("lookup", "chain:4"), threads=1, kv_positions=40_960
    ) as engine:
        yield engine


def test_given_a_server_that_keeps_who_left_then_it_is_found(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adversarial import exchange, losses
    from hostile import LONG, TEXT, Case, json_of
    from watched_server import here

    async def never(receive: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(wire, "_gone", never)
    body = {"prompt": "ab", "max_tokens": LONG, "ignore_eos": True}
    with serving(own_engine) as live:
        server = here(live.address)
        before = server.rested()
        asyncio.run(exchange(Case("left", TEXT, json_of(body), "half", 1.0), server))
        until(lambda: not is_idle(live))  # a busy machine begins with it when its client is gone
        after = server.rested(longest_s=0.2)
        live.service.close()

    assert before.is_at_rest
    assert any("not at rest" in one for one in losses(before, after, 0))


def test_given_a_server_that_fails_then_every_kind_of_fault_is_found(
    own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adversarial import Plan, attack, good_texts
    from watched_server import here

    def broken(self: Service, job: Any, listener: Any) -> Any:
        raise BackendError("no")

    plan = Plan(seed=1, at_once=2)
    with serving(own_engine) as live:
        server = here(live.address)
        texts = good_texts(server)
        asyncio.run(attack(server, [0], ["other", *texts[1:]], plan))
        with monkeypatch.context() as patch:
            patch.setattr(Service, "submit", broken)
            asyncio.run(attack(server, [20], texts, plan))
        asyncio.run(attack(server, [0, 20], texts, plan))

    assert [one.partition(": ")[2].partition(": ")[0] for one in plan.findings.faults] == [
        "a good answer changed",
        "status 500",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_free_blocks": 9}, "not at rest"),
        ({"num_running": 1}, "not at rest"),
        ({"num_files": 21}, "21 open files, 20"),
        ({"num_threads": 46}, "46 threads, 5"),
        ({"rss_bytes": 117 * MIB}, "memory"),
        ({}, None),
    ],
    ids=str,
)
def test_given_what_a_server_holds_more_than_at_first_then_both_judges_name_it(
    changes: dict[str, int], words: str | None
) -> None:
    from adversarial import losses
    from soak import growth
    from watched_server import Held

    first = Held(0.0, 100 * MIB, 5, 20, 0, 0, 10, 10)
    grown = replace(first, **changes)

    lost = losses(first, grown, 16 * MIB)
    found = growth([first] * 6 + [grown] * 3, 16 * MIB)

    if words is None:
        assert lost == found == []
    else:
        assert any(words in one for one in lost)
        assert any(words in one for one in found)


def test_given_a_seed_then_the_requests_are_the_same_and_of_every_kind() -> None:
    from hostile import KINDS, case_of

    cases = [case_of(3, at) for at in range(300)]

    assert cases == [case_of(3, at) for at in range(300)]
    assert {one.kind for one in cases} == set(KINDS)
    assert cases != [case_of(4, at) for at in range(300)]
