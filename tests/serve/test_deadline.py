"""The time that a request may take counts from its arrival, on whatever thread it is spent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from forerun.engine.service import Event, Handle, Job
from forerun.options import SamplingParams
from forerun.serve.answering import Begun, Setting, begin
from forerun.serve.asking import Asked
from forerun.serve.refusals import Refusal
from forerun.serve.timings import Clock

LONGEST_S = 600.0
ASKED = Asked((Job((1, 2), SamplingParams(max_tokens=1)),), ("",), 2)


class OwnClock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Silent:
    """A service that takes every job and answers none."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job, listener: Callable[[Event], None]) -> Handle:
        self.jobs.append(job)
        return Handle(len(self.jobs), lambda request_id: None)


def setting_of(service: Silent, clock: OwnClock, longest_s: float = LONGEST_S) -> Setting:
    kept = Clock(CollectorRegistry(), "tiny", now_s=clock)
    return Setting(service, "tiny", "fr_0", longest_s, 15.0, kept, lambda error, name: None)


def begun(setting: Setting, ask: Callable[[], Asked], arrived_s: float = 1000.0) -> Begun:
    return asyncio.run(begin(setting, ask, arrived_s))


@pytest.mark.parametrize(("spent_s", "is_late"), [(LONGEST_S - 1, False), (LONGEST_S + 1, True)])
def test_given_a_template_or_a_grammar_that_took_long_then_its_time_counts(
    spent_s: float, is_late: bool
) -> None:
    clock, service = OwnClock(), Silent()

    def ask() -> Asked:
        clock.now_s += spent_s
        return ASKED

    if is_late:
        with pytest.raises(Refusal) as refused:
            begun(setting_of(service, clock), ask)
        assert (refused.value.status, refused.value.code) == (504, "timeout")
        assert "600 s" in refused.value.message
    else:
        begun(setting_of(service, clock), ask)
    assert len(service.jobs) == (0 if is_late else 1)


@pytest.mark.parametrize(("before_s", "is_late"), [(0.0, False), (LONGEST_S, True)])
def test_given_a_body_that_came_slowly_then_the_time_counts_from_before_it(
    before_s: float, is_late: bool
) -> None:
    clock, service = OwnClock(), Silent()
    arrived_s = clock.now_s - before_s

    if is_late:
        with pytest.raises(Refusal, match="longer than"):
            begun(setting_of(service, clock), lambda: ASKED, arrived_s)
    else:
        begun(setting_of(service, clock), lambda: ASKED, arrived_s)
    assert len(service.jobs) == (0 if is_late else 1)


def test_given_time_spent_before_the_engine_had_it_then_only_the_rest_is_left_to_its_events() -> (
    None
):
    clock, service = OwnClock(), Silent()

    def ask() -> Asked:
        clock.now_s += LONGEST_S - 1
        return ASKED

    async def hear_all() -> list[Any]:
        one = await begin(setting_of(service, clock), ask, 1000.0)
        clock.now_s += 2.0  # less than LONGEST_S after the engine had it
        return [heard async for heard in one.feed.events(15.0)]

    with pytest.raises(Refusal, match="longer than 600 s"):
        asyncio.run(hear_all())


def test_given_a_thread_that_is_late_then_it_is_not_waited_for_and_hands_nothing_over() -> None:
    clock, service, released = OwnClock(), Silent(), threading.Event()

    def ask() -> Asked:
        released.wait()
        return ASKED

    async def meet_the_end() -> None:
        with pytest.raises(Refusal, match="longer than"):
            await begin(setting_of(service, clock, longest_s=0.01), ask, 1000.0)
        released.set()  # not before: a server that waits for its thread never comes here

    asyncio.run(meet_the_end())  # its end is that of the threads, too

    assert service.jobs == []
