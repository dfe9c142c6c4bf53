"""Schedules: which ends of a pending verdict are prepared for, and how many outcomes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.composition import read_drafter, read_schedule
from forerun.draft import Draft, Draw
from forerun.engine.scheduling import scheduled
from forerun.errors import OptionError
from forerun.schedules.ahead import MOST_BRANCHES, Ahead
from forerun.schedules.parallel import Parallel
from forerun.schedules.sequential import Sequential
from forerun.tree import TokenTree

#            0 ── 1 ── 3 ── 4
#            └─── 2 ── 5
FORKED = ([-1, 0, 0, 1, 3, 2], [np.nan, 0.5, 0.9, 0.4, 0.39, 0.2])


def draft_of(parents, scores=None):
    tree = TokenTree(np.arange(len(parents), dtype=np.int32), np.array(parents, np.int32))
    return Draft(
        tree, Draw.COUPLED, scores=None if scores is None else np.array(scores, np.float32)
    )


@st.composite
def drafts(draw):
    num_nodes = draw(st.integers(1, 12))
    parents = [-1, *[draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]]
    chances = st.floats(0, 1, allow_subnormal=False) | st.just(float("nan"))
    scores = draw(st.none() | st.lists(chances, min_size=num_nodes, max_size=num_nodes))
    return draft_of(parents, scores)


def test_given_sequential_then_nothing_is_prepared():
    assert Sequential().num_branches == 0
    assert Sequential().exits(draft_of(*FORKED)) == []


@given(drafts(), st.integers(1, MOST_BRANCHES))
def test_given_ahead_then_a_verdict_may_end_anywhere(draft, num_branches):
    schedule = Ahead(num_branches)

    assert schedule.num_branches == num_branches
    assert schedule.exits(draft) == list(range(len(draft.tree)))


@given(drafts())
def test_given_parallel_then_two_ends_at_most_are_prepared_for_and_one_is_a_leaf(draft):
    exits = Parallel().exits(draft)

    assert 1 <= len(exits) <= Parallel().num_branches
    assert exits == sorted(set(exits))
    assert Parallel().per_exit * len(exits) <= Parallel().num_branches
    parents = draft.tree.parents.tolist()
    assert any(node not in parents for node in exits)


def test_given_a_chain_without_figures_then_parallel_prepares_for_its_end():
    assert Parallel().exits(draft_of([-1, 0, 1, 2])) == [3]
    assert Parallel().exits(draft_of([-1])) == [0]


def test_given_a_chain_with_figures_then_parallel_hedges_above_its_weakest_node():
    # {2} is kept three times in ten where {1} was, all others nine times
    draft = draft_of([-1, 0, 1, 2], [np.nan, 0.9, 0.27, 0.243])

    assert Parallel().exits(draft) == [1, 3]


def test_given_a_tree_then_parallel_follows_its_likeliest_path():
    draft = draft_of(*FORKED)

    assert Parallel().exits(draft) == [2, 5]  # by {2} 0.9, whose {5} is the weakest of the path


def test_given_a_weakest_first_node_then_the_hedge_is_at_the_pending_token():
    assert Parallel().exits(draft_of([-1, 0, 1], [np.nan, 0.2, 0.19])) == [0, 2]


@pytest.mark.parametrize("num_branches", [0, -1, MOST_BRANCHES + 1])
def test_given_too_few_or_too_many_branches_then_the_limit_is_named(num_branches):
    with pytest.raises(OptionError, match=rf"B in \[1, {MOST_BRANCHES}\], found {num_branches}"):
        Ahead(num_branches)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("sequential", Sequential()),
        ("parallel", Parallel()),
        ("ahead:1", Ahead(1)),
        ("ahead:24", Ahead(24)),
        ("ahead:256:0.5", Ahead(256)),
    ],
)
def test_given_a_name_then_its_schedule_lives(text, schedule):
    nobody_looks = None  # at a drafter or a machine, where a schedule was asked for

    chosen = scheduled(
        read_schedule(text), nobody_looks, nobody_looks, read_drafter("lm"), nobody_looks
    )

    assert chosen.schedule == schedule
    assert "asked for" in chosen.reason


@pytest.mark.parametrize("text", ["parallel", "ahead", "ahead:8"])
def test_given_no_drafter_then_there_is_nothing_to_prepare(text):
    chosen = scheduled(read_schedule(text), None, None, read_drafter("none"), None)

    assert chosen.schedule == Sequential()
