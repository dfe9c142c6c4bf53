"""Many threads that send, listen and leave at any moment: nothing is lost or left behind."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import PATIENCE_S, Held, Listener, alone, around, jobs, outcome
from forerun import Engine, Speculation
from forerun.engine.service import Service, ServiceLimits
from forerun.errors import QueueFull

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

NUM_THREADS, NUM_EACH = 6, 30


@pytest.mark.parametrize("drafter", ["lookup", "lm"])
def test_given_many_threads_then_every_request_ends_once_and_memory_is_whole(
    target_dir, lm_name, drafter
):
    words = Speculation(lm_name if drafter == "lm" else drafter, "auto")
    asked = jobs(NUM_EACH)
    with Engine(
        target_dir, speculate=words, kv_positions=2048, threads=1, backend="native"
    ) as engine:
        expected = alone(engine, asked)
        # Nothing is computed before somebody was refused: a slow sender finds a full queue too.
        held = around(engine, Held)
        limits = ServiceLimits(max_waiting=8, max_rows=6)
        with Service(engine, limits) as service, ThreadPoolExecutor(NUM_THREADS) as pool:
            wants = partial(customer, service, asked, expected, held.gate)
            counts = list(pool.map(wants, range(NUM_THREADS)))
            assert service.drain(PATIENCE_S)
            load = service.load()

        assert engine._parts.slots.num_free == engine._parts.slots.num_blocks
    num_sent, num_refused, num_left = map(sum, zip(*counts, strict=True))
    assert sum(load.num_requests.values()) == num_sent
    assert load.num_requests["cancelled"] == num_left
    assert num_sent + num_refused == NUM_THREADS * NUM_EACH
    assert min(num_refused, num_left) > 0


def customer(service, asked, expected, gate, seed):
    """Sends all requests in some order, leaves some of them early, and looks at the others; who is
    refused opens the gate."""
    rng = random.Random(seed)
    num_sent = num_refused = num_left = 0
    mine = []
    for place in rng.sample(range(len(asked)), len(asked)):
        listener = Listener()
        try:
            handle = service.submit(asked[place], listener)
        except QueueFull as full:
            num_refused += full.retry_after_s > 0
            gate.set()
            for _, other in mine:
                assert other.completion
            continue
        num_sent += 1
        mine.append((place, listener))
        if rng.random() < 0.3:
            handle.cancel()
        service.load()
    for place, listener in mine:
        assert listener.is_in_order()
        if listener.completion.finish_reason == "cancelled":
            num_left += 1
            length = len(listener.completion.token_ids)
            assert listener.completion.token_ids == expected[place][0][:length]
        else:
            assert outcome(listener.completion) == expected[place]
    return num_sent, num_refused, num_left
