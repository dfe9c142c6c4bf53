"""What is too much for a service is refused; who leaves, leaves nothing behind."""

from __future__ import annotations

import threading

import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import (
    Around,
    Held,
    Listener,
    around,
    endless,
    is_whole,
)
from forerun import (
    CapacityError,
    EngineClosed,
    OptionError,
    SamplingParams,
)
from forerun.engine.service import Gained, Job, Service, ServiceLimits
from forerun.errors import QueueFull

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

PATIENCE_S = 120.0


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


class Timed(Around):
    """A target whose passes take so much of a test's time."""

    def __init__(self, target, pass_s, time):
        super().__init__(target)
        self.pass_s, self.time = pass_s, time

    def forward(self, batch):
        self.time.sleep(self.pass_s)
        return self._target.forward(batch)


def test_given_a_fast_service_then_it_says_to_come_again_sooner_and_a_slow_one_later(
    engine, own_time
):
    waits = []
    for num_done, pass_s in ((0, 0.001), (40, 0.001), (40, 10.0)):
        around(engine, lambda target, pass_s=pass_s: Timed(target, pass_s, own_time))
        with Service(engine, ServiceLimits(max_waiting=1, max_rows=1), own_time) as service:
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
    assert waits[1] < waits[0] < waits[2]


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
    held, cancelled_at, passes = around(engine, Held), [], []

    def cancel():
        cancelled_at.append(held.num_passes)
        handle.cancel()
        handle.cancel()

    def on_pass(batch):
        if state == "reading" and len(batch.logit_nodes) == 0 and not cancelled_at:
            cancel()

    def heard(_):
        if state == "running" and isinstance(one.events[-1], Gained) and not cancelled_at:
            cancel()
        passes.append(held.num_passes)

    held.on_pass = on_pass
    with Service(engine, ServiceLimits(max_rows=1 if state == "waiting" else 4)) as service:
        other, one = Listener(), Listener(heard)
        service.submit(endless(max_tokens=12), other)
        wait_for(lambda: service.load().num_waiting == 0)
        handle = service.submit(endless(400 if state == "reading" else 3, seed=1), one)
        if state == "waiting":
            cancel()
        held.gate.set()

        assert one.completion.finish_reason == "cancelled"
        assert bool(one.token_ids) == (state == "running")
        assert passes[-1] - max(cancelled_at[0], 1) <= 1  # the round that is under way
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
