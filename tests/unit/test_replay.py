"""Replays: what is said of another composition is what its real run gives, or lies around it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")

from traced_runs import PROMPTS, SAMPLED, counts, run, traced

from forerun import OptionError
from forerun.tools.replay import answer, ask
from forerun.tools.replay_bounds import chain_bounds


@pytest.fixture(scope="session")
def target(tiny_checkpoint_dir):
    return tiny_checkpoint_dir("qwen3", 0)


@pytest.fixture(scope="session")
def lm(tiny_checkpoint_dir, target):
    return f"lm:{tiny_checkpoint_dir('qwen3', 1, near=(target, 0.02))}"


OTHERS = [
    ("none", "chain:1"),
    ("lookup", "chain:1"),
    ("lookup", "chain:6"),
    ("lm", "chain:1"),
    ("lm", "chain:2"),
    ("lm", "chain:7"),
    ("lm", "tree:9"),
]


@pytest.mark.parametrize(
    ("shape", "params"),
    [
        ("chain:4", {}),
        ("chain:4", SAMPLED),
        ("tree:7", SAMPLED | {"stop_token_ids": "the 25th"}),
        ("chain:4", SAMPLED | {"repetition_penalty": 1.3, "presence_penalty": 0.5}),
    ],
    ids=["greedy", "sampled", "stopped", "penalties"],
)
def test_given_another_composition_then_a_replay_is_its_real_run(
    tmp_path, target, lm, shape, params
):
    if "stop_token_ids" in params:
        (plain,) = run(target, "none", "chain:1", **SAMPLED)
        params = SAMPLED | {"stop_token_ids": plain.token_ids[24:25]}
    (completion,), trace = traced(tmp_path / "t", target, lm, shape, **params)
    assert (completion.finish_reason == "stop") == ("stop_token_ids" in params)
    for name, other in OTHERS:
        drafter = lm if name == "lm" else name
        real = counts(run(target, drafter, other, **params))

        found = answer(ask(trace, drafter, other))

        assert (found.method, found.same_text) == ("rerun", True)
        assert [(one.num_rounds[0], one.num_accepted[0]) for one in found.requests] == real
        assert found.total.is_exact

        if other.startswith("chain"):
            without = answer(ask(trace, drafter, other, may_rerun=False))
            (bounds,), ((rounds, accepted),) = without.requests, real
            assert bounds.num_rounds[0] <= rounds <= bounds.num_rounds[1]
            assert bounds.num_accepted[0] <= accepted <= bounds.num_accepted[1]
            assert without.method == ("determined" if name == "lm" else "rerun")


def test_given_many_requests_in_one_pass_then_a_replay_agrees_with_each(tmp_path, target, lm):
    _, trace = traced(tmp_path / "t", target, lm, "tree:7", PROMPTS, **SAMPLED)
    real = counts(run(target, lm, "chain:3", PROMPTS, **SAMPLED))

    assert answer(ask(trace)).agrees is True
    found = answer(ask(trace, None, "chain:3"))
    assert [(one.num_rounds[0], one.num_accepted[0]) for one in found.requests] == real


def test_given_a_shorter_chain_then_the_trace_alone_often_knows(tmp_path, target, lm):
    _, trace = traced(tmp_path / "t", target, lm, "chain:6")

    found = answer(ask(trace, None, "chain:1", may_rerun=False))

    assert found.method == "determined"
    unknown = [one for one in trace.rounds if len(one.path) == len(one.tokens)]
    assert found.total.is_exact or unknown


def test_given_no_way_to_know_then_it_says_between_what(tmp_path, target, lm):
    _, trace = traced(tmp_path / "t", target, "lookup", "chain:4")

    found = answer(ask(trace, "lm:/nowhere", "chain:4"))

    assert found.method == "bounded"
    assert "cannot be run again here" in found.why
    assert found.total.num_rounds == (8, 40)
    assert found.total.tokens_per_round == (1, 5)


def test_given_a_sampled_rule_then_its_laws_tell_what_to_expect(tmp_path, target, lm):
    _, trace = traced(tmp_path / "t", target, lm, "chain:4", rule="rejection", **SAMPLED)
    assert answer(ask(trace)).method == "traced"

    found = answer(ask(trace, None, "chain:3"))

    assert (found.method, found.same_text) == ("expected", False)
    low, high = found.total.num_rounds
    assert 10 <= low <= high <= 40
    first = trace.rounds[0].target_laws[0]
    assert first.kept[0] == trace.rounds[0].emitted[0]
    assert len(first.top) == 8
    assert answer(ask(trace, "lookup", "chain:4")).method == "rerun"
    assert answer(ask(trace, None, None, "match")).method == "bounded"


def test_given_auto_then_it_is_asked_what_it_means(tmp_path, target):
    _, trace = traced(tmp_path / "t", target, "lookup", "auto")
    with pytest.raises(OptionError, match=r"follow the clock.*--shape chain:4"):
        ask(trace)
    assert answer(ask(trace, None, "chain:2")).method == "rerun"


# --- bounds ------------------------------------------------------------------------------------


def walked(kept, longest, room):
    """Rounds and accepted drafts of a chain that is kept at `kept` positions, one by one."""
    rounds = accepted = start = 0
    while start < len(kept):
        depth = 0
        while depth < min(longest, room - start - 1) and start + depth < len(kept):
            if not kept[start + depth]:
                break
            depth += 1
        rounds += 1
        accepted += min(depth, len(kept) - start)
        start += depth + 1
    return rounds, accepted


@pytest.mark.parametrize("room", [7, 9])
@pytest.mark.parametrize("longest", [1, 2, 5])
def test_given_unknown_positions_then_every_outcome_is_between_the_ends(longest, room):
    for known in itertools.product([0.0, 1.0, None], repeat=7):
        ends = [(0.0, 1.0) if one is None else (one, one) for one in known]
        if known.count(None) > 3:
            continue
        filled = itertools.product(*[[0, 1] if one is None else [one] for one in known])
        outcomes = [walked(one, longest, room) for one in filled]

        bounds = chain_bounds(ends, longest, room)

        rounds = [one for one, _ in outcomes]
        assert bounds.num_rounds == (min(rounds), max(rounds))
        for _, accepted in outcomes:
            assert bounds.num_accepted[0] <= accepted <= bounds.num_accepted[1]


def test_given_chances_then_the_ends_are_the_expectation():
    chances = [0.3, 0.9, 0.5, 0.0, 0.7]
    expected = np.zeros(2)
    for kept in itertools.product([0, 1], repeat=5):
        weight = np.prod([c if k else 1 - c for c, k in zip(chances, kept, strict=True)])
        expected += weight * np.array(walked(kept, 2, 8))

    bounds = chain_bounds([(one, one) for one in chances], 2, 8)

    assert bounds.num_rounds[0] == pytest.approx(expected[0])
    assert bounds.num_accepted[1] == pytest.approx(expected[1])


def test_given_an_emitted_token_then_it_was_the_draft_with_this_probability():
    """Rejection by its definition, over two tokens: the formula that `expected` rests on."""
    p, q = np.array([0.2, 0.8]), np.array([0.7, 0.3])
    rest = np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()
    kept = np.minimum(p, q)
    emitted = kept + (1 - kept.sum()) * rest
    assert emitted == pytest.approx(p)
    assert kept / emitted == pytest.approx(np.minimum(1, q / p))
