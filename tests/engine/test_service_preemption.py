"""Where more memory is promised than there is, the youngest gives way, and nobody loses a token."""

from __future__ import annotations

import dataclasses

import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import Around, Listener, alone, is_whole, outcome, played, prompt_of
from forerun import OptionError, SamplingParams
from forerun.engine.queue import Queue
from forerun.engine.service import Began, Job, Service, ServiceLimits

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

COMPOSITIONS = (
    ("none", "chain:1"),
    ("lookup", "auto"),
    ("{lm}", "chain:4"),
    ("{lm}", "tree:6"),
    ("{lm}", "auto"),
    ("dspark:{dspark}", "chain:4"),
    ("exit:1", "chain:3"),
    ("router(lookup,{lm})", "chain:4"),
)
IDS = ["-".join(words).replace(":{", " {") for words in COMPOSITIONS]
SHORT = 32 * 12  # positions: fewer than the longest outcomes of two rows
MANY = ServiceLimits(overcommit=8.0)


def long_jobs(num=8, **changes):
    """Requests whose answers are much longer than their prompts."""
    ways = (
        {}, {"temperature": 0.8}, {"temperature": 1.0, "repetition_penalty": 1.2},
        {"temperature": 0.7, "logprobs": 2, "presence_penalty": 0.5},
    )  # fmt: skip
    return [
        Job(
            prompt_of(3 + 9 * at, at),
            SamplingParams(seed=at, max_tokens=200, ignore_eos=True, **ways[at % len(ways)]),
            **changes,
        )
        for at in range(num)
    ]


def served(engine, asked, limits=MANY):
    """Listeners, and what the service said of itself in the end."""
    listeners = [Listener() for _ in asked]
    with Service(engine, limits) as service:
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        assert all(listener.completion for listener in listeners)
        return listeners, service.load()


def outcomes(listeners):
    return [outcome(one.completion) for one in listeners]


@pytest.fixture(scope="module")
def expected(target_dir):
    """What every request comes to by itself."""
    from forerun import Engine, Speculation

    with Engine(
        target_dir, speculate=Speculation("none"), kv_positions=4096, threads=1, backend="native"
    ) as engine:
        return alone(engine, long_jobs())


@pytest.mark.parametrize("words", COMPOSITIONS, ids=IDS)
def test_given_short_memory_then_rows_give_way_and_all_come_out_as_if_alone(
    opened, expected, words
):
    engine = opened(words, kv_positions=SHORT)
    listeners, load = served(engine, long_jobs())

    assert load.num_preemptions > 0
    assert outcomes(listeners) == expected
    assert all(one.is_in_order() for one in listeners)
    assert is_whole(engine)


def test_given_a_row_that_gave_way_then_its_stream_goes_on_and_begins_once(opened, expected):
    engine = opened(("lookup", "auto"), kv_positions=SHORT)
    listeners, load = served(engine, long_jobs())

    begun = [sum(isinstance(event, Began) for event in one.events) for one in listeners]
    assert begun == [1] * len(listeners)
    assert load.num_prompt_tokens == sum(len(job.prompt) for job in long_jobs())
    assert load.num_generated_tokens == sum(len(one.token_ids) for one in listeners)
    assert [one.token_ids for one in listeners] == [tokens for tokens, *_ in expected]


def test_given_the_default_then_nobody_gives_way(opened, expected):
    engine = opened(("lookup", "auto"), kv_positions=SHORT)
    listeners, load = served(engine, long_jobs(), ServiceLimits())

    assert load.num_preemptions == 0
    assert outcomes(listeners) == expected


def test_given_a_mutant_that_loses_a_token_then_outcomes_differ(opened, expected, monkeypatch):
    whole = Queue._preempt

    def losing(self, row):
        if row.num_generated:
            row.tokens.pop()
        whole(self, row)

    monkeypatch.setattr(Queue, "_preempt", losing)
    engine = opened(("{lm}", "chain:4"), kv_positions=SHORT)
    listeners, load = served(engine, long_jobs())

    assert load.num_preemptions > 0
    assert outcomes(listeners) != expected


def test_given_requests_at_odd_moments_and_some_that_leave_then_all_is_as_if_alone(
    opened, expected
):
    engine = opened(("{lm}", "tree:6"), kv_positions=SHORT)
    with Service(engine, MANY) as service:
        listeners = played(service, long_jobs(), seed=2, share_cancelled=0.3)
        load = service.load()

    assert load.num_preemptions > 0
    assert is_whole(engine)
    for one, wanted in zip(listeners, expected, strict=True):
        token_ids = one.completion.token_ids
        assert token_ids == wanted[0][: len(token_ids)]
        assert one.completion.finish_reason == "cancelled" or outcome(one.completion) == wanted


class Notes(Around):
    """A target that notes how many rows each round had."""

    def __init__(self, target):
        super().__init__(target)
        self.num_rows = []

    def forward(self, batch):
        if len(batch.logit_nodes):
            self.num_rows.append(len(batch.committed))
        return self._target.forward(batch)


def test_given_answers_that_end_early_then_more_run_at_a_time_than_would_fit_at_worst(opened):
    most = []
    for limits in (ServiceLimits(), MANY):
        engine = opened(("none", "chain:1"), kv_positions=SHORT)
        notes = Notes(engine._parts.target)
        engine._parts = dataclasses.replace(engine._parts, target=notes)
        short = [
            dataclasses.replace(
                job, params=dataclasses.replace(job.params, stop_token_ids=tuple(range(100)))
            )
            for job in long_jobs(6)
        ]
        served(engine, short, limits)
        most.append(max(notes.num_rows))
    assert most[0] <= 2 < most[1]


def test_given_the_oldest_then_it_never_gives_way(opened, monkeypatch):
    victims = []
    whole = Queue._preempt

    def noting(self, row):
        victims.append(row.id)
        assert row.id == max(one.id for one in self._owners())
        whole(self, row)

    monkeypatch.setattr(Queue, "_preempt", noting)
    engine = opened(("lookup", "auto"), kv_positions=SHORT)
    listeners, _ = served(engine, long_jobs())
    first = min(one.completion.seed for one in listeners)
    assert victims
    assert first == 0
    assert min(victims) > 0


def test_given_a_sampled_rule_then_nobody_is_interrupted(opened):
    engine = opened(("{lm}", "chain:3", "rejection"), kv_positions=SHORT)
    wanted = alone(engine, long_jobs())
    listeners, load = served(engine, long_jobs())

    assert load.num_preemptions == 0
    assert outcomes(listeners) == wanted


@pytest.mark.parametrize("overcommit", [0.5, 0.0, float("nan")])
def test_given_less_than_all_memory_to_promise_then_it_is_refused(overcommit):
    with pytest.raises(OptionError, match="overcommit must be at least 1"):
        ServiceLimits(overcommit=overcommit)
