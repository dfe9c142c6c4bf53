"""What goes wrong for one request of a service stays with it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import (
    POISON,
    Around,
    Listener,
    alone,
    around,
    endless,
    is_whole,
    jobs,
    outcome,
    prompt_of,
)
from forerun import (
    BackendError,
)
from forerun.engine.isolation import rounds_apart
from forerun.engine.round import run_round
from forerun.engine.service import Gained, Service

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

PATIENCE_S = 120.0


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
