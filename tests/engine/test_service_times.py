"""What a service says of how long requests took, by a clock that moves only when told to."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import Listener, endless, prompt_of
from forerun import SamplingParams
from forerun.engine.queue import Step
from forerun.engine.service import Began, Ended, Gained, Job, Service, ServiceLimits
from forerun.engine.service_times import Spread, Times

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

ALONE = ServiceLimits(max_rows=1)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Moving(Listener):
    """Moves a clock by as much as each kind of event takes; opens a gate as the first begins."""

    def __init__(self, clock, seconds, gate=None) -> None:
        super().__init__()
        self._clock, self._seconds, self._gate = clock, seconds, gate

    def __call__(self, event) -> None:
        if self._gate is not None:
            self._gate.wait(60)
        self._clock.s += self._seconds.get(type(event), 0.0)
        super().__call__(event)


def some(num_tokens, seed=0):
    params = SamplingParams(temperature=0.7, seed=seed, max_tokens=num_tokens, ignore_eos=True)
    return Job(prompt_of(20, seed), params, speculates=False)


def num(spread: Spread) -> int:
    return sum(spread.counts)


def test_given_two_requests_of_which_one_waits_then_each_time_is_where_it_was_spent(engine) -> None:
    clock, gate = Clock(), threading.Event()
    with Service(engine, ALONE, clock) as service:
        first = Moving(clock, {Began: 4.0, Gained: 1.0}, gate)
        second = Moving(clock, {Began: 2.0, Gained: 0.5})
        service.submit(some(6), first)
        service.submit(some(3, 1), second)
        gate.set()
        assert first.completion.finish_reason == second.completion.finish_reason == "length"

        told = service.spreads()

    # The first: 4 until its first token, then five rounds of 1; the second waits for all of that
    # and what the last event took, reads for 2 and writes twice for 0.5.
    assert told.queue_s.total == 4.0 + 6 * 1.0
    assert told.prefill_s.total == 4.0 + 2.0
    assert told.decode_s.total == 5 * 1.0 + 2 * 0.5
    assert told.inference_s.total == told.prefill_s.total + told.decode_s.total
    assert told.token_s.total == 1.0 + 0.5
    assert told.generated_tokens.total == 6 + 3
    assert told.prompt_tokens.total == 20 + 20
    assert [num(one) for one in (told.queue_s, told.decode_s, told.token_s)] == [2, 2, 2]
    assert (num(told.round_tokens), told.round_tokens.total) == (9, 9 + 40)


def test_given_a_value_on_a_bound_then_it_is_at_most_that(engine) -> None:
    clock = Clock()
    with Service(engine, ALONE, clock) as service:
        listener = Moving(clock, {Began: 2.5})
        service.submit(some(1), listener)
        assert isinstance(listener.completion.token_ids, tuple)

        told = service.spreads().prefill_s

    assert told.counts[told.bounds.index(2.5)] == 1
    assert num(told) == 1


def test_given_a_request_that_is_cancelled_then_its_times_are_of_no_account(engine) -> None:
    with Service(engine, ALONE, Clock()) as service:
        listener = Listener()
        handle = service.submit(endless(), listener)
        handle.cancel()
        assert listener.completion.finish_reason == "cancelled"

        told = service.spreads()

        assert not service._times._of_row  # nothing of it is left behind

    assert num(told.queue_s) == num(told.generated_tokens) == 0


def test_given_a_prompt_that_is_only_read_then_nothing_is_decoded(engine) -> None:
    clock = Clock()
    with Service(engine, ALONE, clock) as service:
        listener = Moving(clock, {Began: 2.0, Ended: 9.0})
        params = SamplingParams(max_tokens=1, seed=0)
        service.submit(Job(prompt_of(20, 2), params, generates=False), listener)
        assert listener.completion.token_ids == ()

        told = service.spreads()

    assert (num(told.prefill_s), told.prefill_s.total) == (1, 2.0)
    assert (num(told.decode_s), told.decode_s.total) == (1, 0.0)
    assert num(told.token_s) == num(told.round_tokens) == 0


def test_given_a_request_that_failed_in_a_step_then_its_times_are_of_no_account() -> None:
    times, row = Times(), SimpleNamespace(id=1, finish_reason="error", num_generated=0)
    times.arrive(row, 1.0)
    times.begin(row, 2.0)

    times.learn(Step([], [row], 0), 3.0)

    assert num(times.freeze().queue_s) == 0
