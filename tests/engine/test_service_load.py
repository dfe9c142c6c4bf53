"""Under load drafts are asked for as far as they pay, down to none and back; counted, not timed.

Seconds are those of a machine made up here; tokens, drafters and rounds are real.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import Listener, alone, outcome, prompt_of
from forerun import SamplingParams
from forerun.control.pace import Paces
from forerun.engine.service import Job, Service

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

MANY, FEW = 24, 2
LONG = 240  # tokens of an answer


class MadeUp(Paces):
    """A pace whose seconds are told by `verify_s(nodes)`; a drafter's pass costs a tenth of it."""

    def __init__(self, longest, verify_s):
        super().__init__(longest)
        self._verify_s = verify_s
        self.asked = []  # of every steady round: its rows, and what was drafted

    def learn(self, stats, kept, *, is_steady=True):
        verify_s = self._verify_s(stats.num_rows + stats.num_drafted)
        draft_s = 0.1 * stats.num_draft_passes * self._verify_s(stats.num_rows)
        made_up = dataclasses.replace(
            stats, verify_s=verify_s, draft_s=draft_s, round_s=verify_s + draft_s
        )
        self.asked.append((stats.num_rows, stats.num_drafted))
        super().learn(made_up, kept, is_steady=is_steady)


def like_a_cpu(nodes):
    return max(10.0, 1.0 * nodes)


def free(nodes):
    return 10.0


class Reading:
    """The backend of a small model, counting its calls and the tokens that they read."""

    def __init__(self, backend):
        self._backend = backend
        self.num_read = 0
        self.longest_catch_up = 0

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def forward(self, batch):
        self.num_read += len(batch.token_ids)
        return self._backend.forward(batch)

    def propose(self, plan):
        self.num_read += len(plan.catch_up)
        ends = plan.catch_up_starts.tolist()
        lengths = [end - start for start, end in pairwise(ends)]
        self.longest_catch_up = max(self.longest_catch_up, *lengths)
        return self._backend.propose(plan)


@pytest.fixture
def paced(opened):
    """An engine of the lm drafter on a machine that is made up, its pace and its drafter."""

    def made(verify_s):
        engine = opened(("{lm}", "auto"), kv_positions=MANY * 512)
        pace = MadeUp(engine._parts.shape.max_drafted, verify_s)
        engine._parts = dataclasses.replace(engine._parts, pace=pace)
        lm = engine._parts.drafter._drafter
        lm._backend = Reading(lm._backend)
        return engine, pace, lm._backend

    return made


def jobs(num, max_tokens=LONG):
    return [
        Job(
            prompt_of(20 + at, at),
            SamplingParams(seed=at, max_tokens=max_tokens, ignore_eos=True, temperature=0.5),
        )
        for at in range(num)
    ]


def served(engine, asked):
    with Service(engine) as service:
        listeners = [Listener() for _ in asked]
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        return [outcome(listener.completion) for listener in listeners]


def drafted(pace, num_rows):
    """Drafted tokens a round, of rounds of about so many rows, after the first few."""
    rounds = [num for rows, num in pace.asked if rows >= num_rows][20:]
    return sum(rounds) / max(1, len(rounds))


def test_given_a_crowd_where_nodes_are_dear_then_almost_nothing_is_drafted(paced):
    engine, pace, backend = paced(like_a_cpu)
    made = served(engine, jobs(MANY))

    assert drafted(pace, MANY) < 0.5
    num_tokens = sum(len(job.prompt) for job in jobs(MANY)) + MANY * LONG
    assert backend.num_read < 0.35 * num_tokens  # its texts are read for looks alone
    assert made == alone(engine, jobs(MANY))


def test_control_given_a_crowd_where_nodes_are_free_then_all_of_it_drafts(paced):
    engine, pace, _ = paced(free)
    served(engine, jobs(MANY))
    assert drafted(pace, MANY) > MANY


def test_given_few_then_they_draft_where_a_crowd_would_not(paced):
    engine, pace, _ = paced(like_a_cpu)
    served(engine, jobs(FEW))
    assert drafted(pace, FEW) > FEW


def test_given_a_crowd_of_which_two_stay_then_drafting_comes_back_and_reads_texts_in_chunks(paced):
    engine, pace, backend = paced(like_a_cpu)
    asked = jobs(MANY)
    asked = [
        job
        if at < FEW
        else dataclasses.replace(job, params=dataclasses.replace(job.params, max_tokens=LONG // 3))
        for at, job in enumerate(asked)
    ]
    made = served(engine, asked)

    late = [num for rows, num in pace.asked if rows == FEW]
    assert sum(late) / len(late) > FEW
    assert backend.longest_catch_up <= 32 + 1
    assert made == alone(engine, asked)


def test_given_an_engine_that_served_a_crowd_then_one_alone_is_drafted_for_at_once(paced):
    engine, pace, _ = paced(like_a_cpu)
    served(engine, jobs(1))
    served(engine, jobs(MANY, max_tokens=60))
    before = len(pace.asked)
    served(engine, jobs(1))

    alone_again = [num for _, num in pace.asked[before + 2 : before + 22]]
    assert sum(num > 0 for num in alone_again) >= 15
