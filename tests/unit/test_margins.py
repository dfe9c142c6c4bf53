"""How often a drafted child is right: what is learned of a verdict, and what is left alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.margins import Margins
from forerun.protocols import LEAST_MARGIN, MARGIN_STEP, NUM_MARGINS, NUM_RANKS
from forerun.tree import TokenTree

# 0 ─┬ 1 (token 10) ─┬ 3 (token 30)
#    │               └ 4 (token 31) ─ 5 (token 50)
#    └ 2 (token 11) ── 6 (token 30)
TOKENS, PARENTS = [9, 10, 11, 30, 31, 50, 30], [-1, 0, 0, 1, 1, 4, 2]
RANKS = [-1, 0, 1, 0, 1, 0, 0]
MARGINS = [np.nan, 1.1, -1.1, 0.3, -0.3, 2.2, 3.3]


def draft_of(tokens=TOKENS, parents=PARENTS, ranks=RANKS, margins=MARGINS):
    tree = TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32))
    return Draft(
        tree, Draw.COUPLED, margins=np.array(margins, np.float32), ranks=np.array(ranks, np.int32)
    )


def bin_of(margin):
    at = (min(max(margin, -1e9), 1e9) - LEAST_MARGIN) // MARGIN_STEP
    return min(max(int(at), 0), NUM_MARGINS - 1)


def changes(commits, is_greedy=False, draft=None, margins=None):
    """`(rank, bin)` of every figure that moved, and which way."""
    margins = margins or Margins()
    before = margins.table(is_greedy=is_greedy).copy()
    for commit in commits:
        margins.learn(draft or draft_of(), Commit(commit), is_greedy=is_greedy)
    moved = margins.table(is_greedy=is_greedy) - before
    return {(int(r), int(b)): float(np.sign(moved[r, b])) for r, b in np.argwhere(moved)}


def expected(nodes):
    return {(RANKS[node], bin_of(MARGINS[node])): sign for node, sign in nodes.items()}


@pytest.mark.parametrize(
    ("commit", "nodes"),
    [
        ((77,), {1: -1, 2: -1}),  # none of the first level was right
        ((10, 77), {1: 1, 2: -1, 3: -1, 4: -1}),
        ((11, 77), {1: -1, 2: 1, 6: -1}),
        ((10, 31, 50, 77), {1: 1, 2: -1, 3: -1, 4: 1, 5: 1}),
        # the bonus may be a child that the rule did not get to: it was right all the same
        ((10, 30), {1: 1, 2: -1, 3: 1, 4: -1}),
    ],
)
def test_given_a_verdict_then_the_children_on_its_path_are_learned_and_no_others(commit, nodes):
    assert changes([commit]) == expected(nodes)


def test_control_given_a_path_one_token_off_then_other_figures_move():
    assert changes([(77, 10, 31)]) != expected({1: 1, 2: -1, 3: -1, 4: 1})


def test_given_greedy_rows_then_only_their_own_figures_move():
    margins = Margins()
    sampled = margins.table(is_greedy=False).copy()

    assert changes([(10, 31, 77)], is_greedy=True, margins=margins)
    assert np.array_equal(margins.table(is_greedy=False), sampled)


def test_given_a_draft_without_figures_then_nothing_is_learned():
    bare = Draft(draft_of().tree, Draw.POINT)

    assert changes([(10, 31, 77)], draft=bare) == {}


def test_given_margins_beyond_every_bin_and_ranks_beyond_the_last_then_the_last_ones_move():
    draft = draft_of([9, 10, 11], [-1, 0, 0], [-1, 0, 40], [np.nan, np.inf, -np.inf])

    moved = changes([(10, 1)], draft=draft)

    assert moved == {(0, NUM_MARGINS - 1): 1.0, (NUM_RANKS - 1, 0): -1.0}


def test_given_the_same_rounds_in_another_order_then_the_figures_are_the_same():
    rounds = [(77,), (10, 77), (11, 77), (10, 31, 50, 77)]
    tables = []
    for order in itertools.permutations(rounds):
        margins = Margins()
        for commit in order:
            margins.learn(draft_of(), Commit(commit), is_greedy=False)
        tables.append(margins.table(is_greedy=False).copy())

    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], atol=1e-6)
    np.testing.assert_raises(
        AssertionError, np.testing.assert_allclose, Margins().table(is_greedy=False), tables[0]
    )


def test_given_many_rounds_then_a_figure_becomes_the_frequency_and_follows_when_it_changes():
    margins, rng = Margins(), np.random.default_rng(0)
    at = (0, bin_of(MARGINS[1]))
    for chance in (0.8, 0.2):
        for _ in range(2000):
            commit = Commit((10, 1) if rng.random() < chance else (77,))
            margins.learn(draft_of(), commit, is_greedy=False)
        assert margins.table(is_greedy=False)[at] == pytest.approx(chance, abs=0.08)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(allow_nan=False, width=32), min_size=6, max_size=6),
            st.lists(st.integers(0, 100), min_size=6, max_size=6),
            st.lists(st.sampled_from([10, 11, 30, 31, 50, 7]), min_size=1, max_size=6),
        ),
        max_size=20,
    )
)
def test_given_any_rounds_then_every_figure_stays_a_probability(rounds):
    margins = Margins()
    for figures, ranks, commit in rounds:
        draft = draft_of(margins=[np.nan, *figures], ranks=[-1, *ranks])
        margins.learn(draft, Commit(tuple(commit)), is_greedy=False)
    for is_greedy in (True, False):
        table = margins.table(is_greedy=is_greedy)
        assert table.shape == (NUM_RANKS, NUM_MARGINS)
        assert table.dtype == np.float32
        assert ((table >= 0) & (table <= 1)).all()


def test_given_the_starting_figures_then_more_margin_is_never_worse_and_the_first_leads():
    for is_greedy in (True, False):
        table = Margins().table(is_greedy=is_greedy)
        assert (np.diff(table, axis=1) >= 0).all()
        for margin in (0.1, 1.0, 4.0):  # of two siblings one leads by what the other lacks
            assert table[0, bin_of(margin)] > table[1, bin_of(-margin)]
