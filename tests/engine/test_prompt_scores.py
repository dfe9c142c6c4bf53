"""Log-probabilities of a prompt: those of one pass over all of it, however it is read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import Listener, is_whole, jobs, outcome, prompt_of
from forerun import SamplingParams
from forerun.backends.prefill import chain_batch
from forerun.engine import reading
from forerun.engine.service import Ended, Gained, Job, Scored, Service

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

LENGTHS = (1, 2, 33, 64, 65, 130, 300)
PARAMS = SamplingParams(temperature=0.7, seed=1, max_tokens=9, logprobs=3, ignore_eos=True)


def asked_of(length, seed=0, **changes):
    return Job(prompt_of(length, seed), PARAMS, scores_prompt=True, **changes)


def in_one_pass(engine, prompt):
    """Chosen and best log-probabilities of all tokens but the first."""
    target, num = engine._parts.target, len(prompt)
    table = np.arange(-(-num // 32), dtype=np.int32)[None]
    output = target.forward(chain_batch(np.array(prompt, np.int32), 0, table, num_logits=num))
    lines = target.logprobs(output.logits, np.arange(num, dtype=np.int32))
    return [
        (token, float(line[token]), np.sort(line)[::-1][:3].tolist())
        for token, line in zip(prompt[1:], lines[:-1], strict=True)
    ]


def heard(service, job):
    listener = Listener()
    service.submit(job, listener)
    assert listener.completion.error is None
    return listener


def told(listener):
    scored = [event for event in listener.events if isinstance(event, Scored)]
    assert len(scored) == 1
    return [(one.token, one.logprob, [p for _, p in one.top]) for one in scored[0].logprobs]


@pytest.fixture
def expected(engine):
    return {length: in_one_pass(engine, prompt_of(length, 0)) for length in LENGTHS}


def test_given_any_length_then_each_token_has_the_score_of_one_pass(engine, expected):
    with Service(engine) as service:
        found = {length: told(heard(service, asked_of(length))) for length in LENGTHS}
        again = {length: told(heard(service, asked_of(length))) for length in LENGTHS}

    assert found == expected
    assert again == expected  # what was kept of the first time has no scores, and is read again
    assert is_whole(engine)


def test_given_company_then_scores_and_answers_are_the_same(engine, expected):
    others = jobs(10, seed=3)
    with Service(engine) as service:
        plain = [
            heard(service, dataclasses.replace(asked_of(one), scores_prompt=False))
            for one in LENGTHS
        ]
        company = [Listener() for _ in others]
        for job, listener in zip(others, company, strict=True):
            service.submit(job, listener)
        listeners = [Listener() for _ in LENGTHS]
        for length, listener in zip(LENGTHS, listeners, strict=True):
            service.submit(asked_of(length), listener)
        for listener in (*company, *listeners):
            assert listener.completion.error is None

    assert [told(one) for one in listeners] == list(expected.values())
    for one, other in zip(listeners, plain, strict=True):
        assert outcome(one.completion) == outcome(other.completion)


def test_given_nothing_to_generate_then_the_prompt_is_all(engine, expected):
    with Service(engine) as service:
        listener = heard(service, asked_of(130, generates=False))
        silent = heard(service, dataclasses.replace(listener_job(), scores_prompt=False))

    assert told(listener) == expected[130]
    for one in (listener, silent):
        assert one.completion.token_ids == ()
        assert one.completion.finish_reason == "length"
        assert not any(isinstance(event, Gained) for event in one.events)
        assert isinstance(one.events[-1], Ended)
    assert is_whole(engine)


def listener_job():
    return asked_of(40, generates=False)


def test_given_scores_before_text_then_they_are_told_first(engine):
    with Service(engine) as service:
        kinds = [type(event) for event in heard(service, asked_of(65)).events]

    assert kinds.index(Scored) < kinds.index(Gained)


def test_given_a_prompt_whose_kept_beginning_is_skipped_then_scores_are_missing(
    engine, expected, monkeypatch
):
    """The control: reading on behind what is kept leaves tokens without scores."""
    with Service(engine) as service:
        heard(service, dataclasses.replace(asked_of(130), scores_prompt=False))
        monkeypatch.setattr(reading, "has_scores", lambda _: True)
        listener = heard(service, asked_of(130))

    scored = [event for event in listener.events if isinstance(event, Scored)]
    assert not scored or len(scored[0].logprobs) < len(expected[130])
