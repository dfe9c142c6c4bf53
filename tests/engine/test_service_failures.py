"""What goes wrong for one request of a service stays with it; what is too much is refused."""

from __future__ import annotations

import dataclasses
import threading
from itertools import pairwise

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import Listener, alone, jobs, outcome, prompt_of
from forerun import (
    BackendError,
    CapacityError,
    Engine,
    EngineClosed,
    OptionError,
    SamplingParams,
    Speculation,
)
from forerun.engine.isolation import rounds_apart
from forerun.engine.round import run_round
from forerun.engine.service import Gained, Job, Service, ServiceLimits
from forerun.errors import QueueFull

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

POISON = 250  # a token that the broken targets below cannot take
PATIENCE_S = 10.0


@pytest.fixture(params=["lookup", "lm"])
def engine(request, target_dir, lm_name):
    drafter = lm_name if request.param == "lm" else "lookup"
    with Engine(
        target_dir, speculate=Speculation(drafter, "chain:4"), kv_positions=4096, threads=1,
        backend="native",
    ) as engine:  # fmt: skip
        yield engine


class Around:
    """A target with something around it."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)


class Held(Around):
    """A target whose passes wait until they are let go, and are counted."""

    def __init__(self, target):
        super().__init__(target)
        self.gate = threading.Event()
        self.num_passes = 0

    def forward(self, batch):
        assert self.gate.wait(PATIENCE_S)
        self.num_passes += 1
        return self._target.forward(batch)


class Raises(Around):
    """A target that raises where a token is among those it shall read."""

    def forward(self, batch):
        if POISON in batch.token_ids.tolist():
            raise ZeroDivisionError("a poisoned token")
        return self._target.forward(batch)


class SaysNaN(Around):
    """A target whose logits are NaN in a row that holds the token."""

    def forward(self, batch):
        output = self._target.forward(batch)
        logits = np.array(output.logits)
        starts = batch.row_starts.tolist()
        for start, end in pairwise(starts):
            if POISON in batch.token_ids[start:end].tolist():
                inside = (batch.logit_nodes >= start) & (batch.logit_nodes < end)
                logits[inside] = np.nan
        return dataclasses.replace(output, logits=logits)


class FailsOnce(Around):
    """A target of which the n-th call of one verb raises after it did its work."""

    def __init__(self, target, verb, countdown):
        super().__init__(target)
        self.countdown = countdown
        setattr(self, verb, self._failing(getattr(target, verb)))

    def _failing(self, call):
        def called(*arguments):
            result = call(*arguments)
            self.countdown -= 1
            if self.countdown == 0:
                raise MemoryError("just now")
            return result

        return called


def around(engine, wrap):
    target = wrap(engine._parts.target)
    engine._parts = dataclasses.replace(engine._parts, target=target)
    return target


def is_whole(engine):
    return engine._parts.slots.num_free == engine._parts.slots.num_blocks


def endless(num=1, seed=0, max_tokens=200):
    params = SamplingParams(
        temperature=1.1,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=True,
        logit_bias={POISON: -100.0},
    )
    return Job(prompt_of(num, seed), params)


# --- limits --------------------------------------------------------------------------------------


def test_given_too_many_that_wait_then_one_more_is_told_when_to_come_again(engine):
    held = around(engine, Held)
    with Service(engine, ServiceLimits(max_waiting=3, max_rows=1)) as service:
        first = Listener()
        service.submit(endless(), first)
        wait_for(lambda: service.load().num_waiting == 0)
        for seed in range(3):
            service.submit(endless(seed=seed, max_tokens=3), Listener())

        with pytest.raises(QueueFull, match="3 requests wait already, the limit is 3") as caught:
            service.submit(endless(), Listener())

        assert 0 < caught.value.retry_after_s <= 600
        assert isinstance(caught.value, CapacityError)
        assert (service.load().num_waiting, service.load().num_waiting_tokens) == (3, 3)
        held.gate.set()
        assert first.completion.finish_reason == "length"
        assert service.drain(PATIENCE_S)
    assert service.load().num_requests == {"length": 4}


def test_given_too_many_prompt_tokens_that_wait_then_both_numbers_are_named(engine):
    held = around(engine, Held)
    with Service(engine, ServiceLimits(max_waiting_tokens=100, max_rows=1)) as service:
        service.submit(endless(), Listener())
        wait_for(lambda: service.load().num_waiting == 0)
        service.submit(endless(300), Listener())  # alone it may wait, however long it is

        with pytest.raises(QueueFull, match="300 prompt tokens wait already, with these 20"):
            service.submit(endless(20), Listener())
        held.gate.set()


def test_given_a_fast_service_then_it_says_to_come_again_sooner(engine):
    waits = []
    for num_done in (0, 40):
        with Service(engine, ServiceLimits(max_waiting=1, max_rows=1)) as service:
            for seed in range(num_done):
                listener = Listener()
                service.submit(endless(seed=seed, max_tokens=2), listener)
                assert listener.completion
            held = around(engine, Held)
            service._queue._parts = engine._parts
            service.submit(endless(), Listener())
            wait_for(lambda: service.load().num_waiting == 0)
            service.submit(endless(), Listener())
            with pytest.raises(QueueFull) as caught:
                service.submit(endless(), Listener())
            waits.append(caught.value.retry_after_s)
            held.gate.set()
    assert waits[1] < waits[0]


def test_given_what_can_never_fit_then_it_is_refused_at_once(engine):
    with Service(engine) as service:
        with pytest.raises(CapacityError, match="600 tokens, the model's context has 512"):
            service.submit(endless(600), Listener())
        with pytest.raises(OptionError, match="prompt is empty"):
            service.submit(Job((), SamplingParams()), Listener())
        with pytest.raises(OptionError, match="token id 9999"):
            service.submit(Job((9999,), SamplingParams()), Listener())
        assert service.load().num_waiting == 0


def test_given_limits_below_one_then_they_are_refused():
    with pytest.raises(OptionError, match="max_rows must be at least 1, found 0"):
        ServiceLimits(max_rows=0)


def wait_for(is_so):
    for _ in range(int(PATIENCE_S * 200)):
        if is_so():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it did not come about")


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting", "reading", "running"])
def test_given_a_cancel_in_any_state_then_its_memory_is_free_within_a_round(engine, state):
    held = around(engine, Held)
    with Service(engine, ServiceLimits(max_rows=1 if state == "waiting" else 4)) as service:
        other = Listener()
        service.submit(endless(max_tokens=12), other)
        wait_for(lambda: service.load().num_waiting == 0)
        one = Listener()
        handle = service.submit(endless(400 if state == "reading" else 3, seed=1), one)
        held.gate.set()
        if state == "running":
            wait_for(lambda: any(isinstance(event, Gained) for event in one.events))
        handle.cancel()
        before = held.num_passes
        handle.cancel()

        assert one.completion.finish_reason == "cancelled"
        assert held.num_passes - before <= 2  # a chunk and a round may be under way
        assert one.is_in_order()
        handle.cancel()
        assert other.completion.finish_reason == "length"
        assert service.drain(PATIENCE_S)
    assert is_whole(engine)


def test_given_a_drain_then_nobody_new_is_let_in_and_all_end(engine):
    with Service(engine) as service:
        listeners = [Listener() for _ in range(4)]
        for seed, listener in enumerate(listeners):
            service.submit(endless(seed=seed, max_tokens=20), listener)
        assert service.drain(PATIENCE_S)
        assert [one.completion.finish_reason for one in listeners] == ["length"] * 4
        with pytest.raises(EngineClosed, match="takes no more requests"):
            service.submit(endless(), Listener())


def test_given_a_drain_that_takes_too_long_then_it_says_so(engine):
    held = around(engine, Held)
    with Service(engine) as service:
        service.submit(endless(), Listener())
        assert not service.drain(0.05)
        held.gate.set()


def test_given_a_close_then_everybody_hears_the_end_once(engine):
    service = Service(engine, ServiceLimits(max_rows=2))
    listeners = [Listener() for _ in range(6)]
    for seed, listener in enumerate(listeners):
        service.submit(endless(seed=seed), listener)

    service.close()
    service.close()

    assert {one.completion.finish_reason for one in listeners} <= {"cancelled", "length"}
    assert not service._thread.is_alive()
    assert is_whole(engine)
    with pytest.raises(EngineClosed):
        service.submit(endless(), Listener())
    assert service.load().num_running == service.load().num_waiting == 0


def test_given_an_engine_closed_under_its_service_then_everybody_hears_of_it(engine):
    with Service(engine) as service:
        listener = Listener()
        service.submit(endless(), listener)
        engine.close()
        assert listener.completion.finish_reason == "error"
        assert isinstance(listener.completion.error, EngineClosed)


def test_given_nothing_to_do_then_the_thread_sleeps(engine, monkeypatch):
    with Service(engine) as service:
        listener = Listener()
        service.submit(endless(max_tokens=3), listener)
        assert listener.completion
        num_steps = []
        monkeypatch.setattr(service._queue, "advance", lambda: num_steps.append(1))
        threading.Event().wait(0.2)
        assert num_steps == []


# --- failures ------------------------------------------------------------------------------------


def asked_with_one_bad(at=3, prompt=None):
    asked = [
        dataclasses.replace(
            job, params=dataclasses.replace(job.params, logit_bias={POISON: -100.0})
        )
        for job in jobs(9)
    ]
    bad = dataclasses.replace(asked[at], prompt=prompt or (65, POISON, 66))
    return [*asked[:at], bad, *asked[at + 1 :]]


def served(engine, asked):
    listeners = [Listener() for _ in asked]
    with Service(engine) as service:
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        for listener in listeners:
            assert listener.completion
        assert all(listener.is_in_order() for listener in listeners)
    return listeners


LONG_BAD = (*prompt_of(200, 1), POISON, *prompt_of(150, 2))


@pytest.mark.parametrize(
    ("broken", "prompt", "named"),
    [
        (SaysNaN, None, "logits hold NaN"),
        (Raises, None, "ZeroDivisionError: a poisoned token"),
        (Raises, LONG_BAD, "ZeroDivisionError: a poisoned token"),
    ],
    ids=["nan", "a round", "a chunk"],
)
def test_given_a_request_that_cannot_be_computed_then_it_alone_fails(engine, broken, prompt, named):
    asked = asked_with_one_bad(prompt=prompt)
    expected = alone(engine, asked)
    around(engine, broken)

    made = [one.completion for one in served(engine, asked)]

    assert made[3].finish_reason == "error"
    assert isinstance(made[3].error, BackendError)
    assert named in str(made[3].error)
    assert [outcome(one) for one in made[:3] + made[4:]] == expected[:3] + expected[4:]
    assert is_whole(engine)


@pytest.mark.parametrize("verb", ["forward", "commit", "select", "logprobs"])
@pytest.mark.parametrize("countdown", [1, 4])
def test_given_a_failure_that_passes_then_nobody_notices(engine, verb, countdown):
    asked = jobs(9)
    expected = alone(engine, asked)
    target = around(engine, lambda target: FailsOnce(target, verb, countdown))

    made = [one.completion for one in served(engine, asked)]

    failed = [one for one in made if one.error is not None]
    # A pass that one row makes by itself, as its chunks are, is not repeated.
    assert len(failed) <= 1
    assert target.countdown <= 0
    for one, wanted in zip(made, expected, strict=True):
        assert one.error is not None or outcome(one) == wanted
    assert is_whole(engine)


def test_given_rounds_that_are_not_run_apart_then_a_failure_takes_all(engine, monkeypatch):
    monkeypatch.setattr("forerun.engine.queue.rounds_apart", run_round)
    around(engine, Raises)

    made = [one.completion for one in served(engine, asked_with_one_bad())]

    assert sum(one.error is not None for one in made) > 1
    assert rounds_apart is not run_round


def test_given_a_listener_that_raises_then_its_request_is_cancelled_and_no_other(engine):
    asked = jobs(6)
    expected = alone(engine, asked)
    with Service(engine) as service:

        def broken(event):
            if isinstance(event, Gained):
                raise ValueError("gone")

        listeners = [Listener() for _ in asked]
        service.submit(endless(seed=7), broken)
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        assert [outcome(one.completion) for one in listeners] == expected
        assert service.drain(PATIENCE_S)
        assert service.load().num_requests["cancelled"] == 1
    assert is_whole(engine)


def test_given_a_drafter_that_fails_then_its_state_shows_and_tokens_are_the_same(
    engine, monkeypatch
):
    asked = jobs(9)
    expected = alone(engine, asked)

    def fails(rows):
        raise RuntimeError("the drafter is gone")

    monkeypatch.setattr(engine._parts.drafter._drafter, "propose", fails)
    with Service(engine) as service:
        assert service.load().drafter == "healthy"
        listeners = [Listener() for _ in asked]
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        assert [outcome(one.completion) for one in listeners] == expected
        assert service.load().drafter == "disabled"
        assert service.load().num_drafts == 0


def test_given_a_load_then_it_adds_up(engine):
    asked = jobs(12)
    with Service(engine) as service:
        listeners = [Listener() for _ in asked]
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        assert service.drain(PATIENCE_S)
        load = service.load()

    made = [one.completion for one in listeners]
    assert load.num_prompt_tokens == sum(len(job.prompt) for job in asked)
    assert load.num_generated_tokens == sum(len(one.token_ids) for one in made)
    assert load.num_draft_tokens == sum(one.stats.num_drafted for one in made)
    assert load.num_accepted_tokens == sum(one.stats.num_accepted for one in made)
    assert sum(load.num_accepted_by_position) == load.num_accepted_tokens
    assert sum(load.num_requests.values()) == 12
    assert load.num_drafts >= load.num_accepted_by_position[0]
