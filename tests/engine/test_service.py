"""A service gives every request what it would get alone, whoever comes and goes beside it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import Listener, alone, jobs, outcome, played
from forerun import Engine, Speculation
from forerun.engine.service import Service, ServiceLimits

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

COMPOSITIONS = (
    ("none", "chain:1"),
    ("lookup", "auto"),
    ("lookup", "tree:6"),
    ("{lm}", "chain:4"),
    ("{lm}", "auto"),
    ("{lm}", "tree:8"),
    ("{lm}", "tree:auto"),
    ("{lm}", "chain:3", "rejection"),
    ("dspark:{dspark}", "chain:4"),
    ("dspark:{dspark}", "tree:5"),
    ("dspark:{rnn}", "tree:5"),
    ("eagle3:{eagle3}", "tree:3x2x1"),
    ("exit:1", "chain:3"),
    ("router(lookup,{lm})", "chain:4"),
    ("{lm}", "chain:4", "match", "ahead:6"),
    ("{lm}", "tree:5", "match", "parallel"),
)
IDS = ["-".join(words).replace(":{", " {") for words in COMPOSITIONS]


@pytest.fixture(scope="module")
def expected(target_dir):
    """What every request comes to by itself, decoded plainly."""
    with Engine(
        target_dir, speculate=Speculation("none"), kv_positions=4096, threads=1, backend="native"
    ) as engine:
        return alone(engine, jobs())


def differences(listeners, expected):
    """Places of requests that came to something else than they should."""
    pairs = zip(listeners, expected, strict=True)
    return [at for at, (one, other) in enumerate(pairs) if outcome(one.completion) != other]


@pytest.mark.parametrize("words", COMPOSITIONS, ids=IDS)
def test_given_any_company_then_every_request_comes_out_as_if_alone(opened, expected, words):
    engine = opened(words)
    wanted = expected if "rejection" not in words else alone(engine, jobs())

    with Service(engine) as service:
        listeners = played(service, jobs(), seed=len(words[0]))

    assert differences(listeners, wanted) == []
    assert all(one.is_in_order() for one in listeners)
    assert engine._parts.slots.num_free == engine._parts.slots.num_blocks


@pytest.mark.parametrize("words", COMPOSITIONS[1::4], ids=IDS[1::4])
def test_given_some_that_leave_early_then_the_others_come_out_as_if_alone(opened, expected, words):
    engine = opened(words)
    with Service(engine) as service:
        listeners = played(service, jobs(), seed=3, share_cancelled=0.4)

    left = [one.completion.finish_reason == "cancelled" for one in listeners]
    stayed = [at for at, is_gone in enumerate(left) if not is_gone]
    assert 2 <= sum(left) <= 20
    assert differences([listeners[at] for at in stayed], [expected[at] for at in stayed]) == []
    for one, other in zip(listeners, expected, strict=True):
        assert one.completion.token_ids == other[0][: len(one.completion.token_ids)]
    assert engine._parts.slots.num_free == engine._parts.slots.num_blocks


def test_given_little_memory_and_few_rows_then_requests_wait_and_come_out_the_same(
    opened, expected
):
    engine = opened(("{lm}", "tree:8"), kv_positions=512)

    with Service(engine, ServiceLimits(max_rows=3)) as service:
        listeners = played(service, jobs(), seed=5)

    assert differences(listeners, expected) == []


def test_given_requests_that_do_not_speculate_then_they_come_out_the_same_without_drafts(
    opened, expected
):
    engine = opened(("lookup", "chain:6"))
    asked = [dataclasses.replace(job, speculates=at % 2 == 0) for at, job in enumerate(jobs())]

    with Service(engine) as service:
        listeners = played(service, asked)

    assert differences(listeners, expected) == []
    assert sum(one.completion.stats.num_drafted for one in listeners[1::2]) == 0
    assert sum(one.completion.stats.num_drafted for one in listeners[::2]) > 0


def test_given_the_engine_is_used_beside_its_service_then_both_come_out_the_same(opened, expected):
    engine = opened(("{lm}", "chain:4"))
    asked = jobs()

    with Service(engine) as service:
        listeners = [Listener() for _ in asked]
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        beside = alone(engine, asked[:6])

        assert beside == expected[:6]
        assert differences(listeners, expected) == []


# --- the control: company that does matter must be seen ------------------------------------------


class Mixing:
    """A target that, in company, chooses for each row as its neighbour wished."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)

    def select(self, logits, selection):
        samplers = selection.samplers
        mixed = dataclasses.replace(selection, samplers=[*samplers[1:], samplers[0]])
        return self._target.select(logits, mixed)


class Forgetful:
    """A target that, in company, reads the first row's keys for the second row too."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)

    def forward(self, batch):
        table = np.array(batch.block_table)
        if len(table) > 1:
            table[1, 0] = table[0, 0]
        return self._target.forward(dataclasses.replace(batch, block_table=table))


@pytest.mark.parametrize("wrong", [Mixing, Forgetful])
def test_given_rows_that_touch_each_other_then_the_comparison_sees_it(opened, expected, wrong):
    engine = opened(("lookup", "chain:4"))
    engine._parts = dataclasses.replace(engine._parts, target=wrong(engine._parts.target))

    with Service(engine) as service:
        listeners = played(service, jobs(), seed=1)

    assert differences(listeners, expected) != []
