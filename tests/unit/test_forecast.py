"""A draft grown further, as a value: walking it, and cutting out of it, against a naive reading.

Every figure of a generated draft says which node it belongs to, so a figure in the wrong place is
seen. What stands in braces in the comments is a node's number in the whole tree.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.draft import Draft, Draw
from forerun.forecast import Forecast, cut, subtree
from forerun.tree import TokenTree

VOCAB, MOST_NODES, PENDING = 5, 14, 99


@st.composite
def trees(draw):
    """Any tree whose siblings differ; few tokens, so that the same ones stand in many places."""
    tokens, parents = [draw(st.integers(0, VOCAB - 1))], [-1]
    for _ in range(draw(st.integers(0, MOST_NODES - 1))):
        parent, token = draw(st.integers(0, len(tokens) - 1)), draw(st.integers(0, VOCAB - 1))
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
    return TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32))


def numbered(tree, expanded=()):
    """A draft of the tree whose figures are the numbers of their nodes."""
    names = np.arange(len(tree), dtype=np.float32)
    nodes = np.array(sorted(expanded), np.int32)
    return Draft(
        tree,
        Draw.SAMPLED,
        expanded=nodes,
        law=np.repeat(nodes[:, None], VOCAB, axis=1).astype(np.float32),
        draws=np.repeat(nodes[:, None], 2, axis=1),
        margins=np.where(names == 0, np.nan, names).astype(np.float32),
        ranks=np.where(names == 0, -1, names).astype(np.int32),
        scores=np.where(names == 0, np.nan, 1.0 / (1.0 + names)).astype(np.float32),
    )


@st.composite
def drafts(draw):
    """Any numbered draft, some of its nodes expanded, the root always."""
    tree = draw(trees())
    return numbered(tree, {0} | draw(st.sets(st.integers(0, len(tree) - 1))))


@st.composite
def forecasts(draw):
    """A draft grown further, of which some first nodes were drafted."""
    draft = draw(drafts())
    return Forecast(7, draw(st.integers(1, len(draft.tree))), draft)


def paths_of(tree):
    """Every node by the tokens that lead to it: the naive reading of a tree."""
    return {tuple(tree.tokens[tree.path(node)[1:]].tolist()): node for node in range(len(tree))}


def names_of(draft):
    """Which node of the whole tree each node but the root was, by its figures: all must agree."""
    ranks = [] if draft.ranks is None else draft.ranks[1:].tolist()
    margins = [] if draft.margins is None else draft.margins[1:].astype(int).tolist()
    assert ranks == margins
    return ranks


SOME_TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=5)


# --- asking a forecast ----------------------------------------------------------------------------


@given(forecasts(), SOME_TOKENS)
def test_given_any_tokens_then_what_is_reached_is_the_node_they_lead_to(forecast, kept):
    node = paths_of(forecast.grown.tree).get(tuple(kept))

    is_prepared = node is not None and node >= forecast.num_verified
    assert forecast.reached(kept) == (node if is_prepared else None)


@given(forecasts())
def test_given_every_guess_then_it_is_reached_and_no_drafted_node_is(forecast):
    for tokens, node in paths_of(forecast.grown.tree).items():
        reached = forecast.reached(tokens)

        assert reached == (node if node >= forecast.num_verified else None)


@given(forecasts(), SOME_TOKENS.filter(bool))
def test_given_another_bonus_then_the_nearest_is_the_likeliest_guess_with_something_below(
    forecast, kept
):
    tree, scores = forecast.grown.tree, forecast.grown.scores
    above = paths_of(tree).get(tuple(kept[:-1]))
    beside = [
        node
        for node in range(forecast.num_verified, len(tree))
        if tree.parents[node] == above and node in tree.parents.tolist()
    ]

    nearest = forecast.nearest(kept)

    assert nearest == (max(beside, key=lambda at: scores[at]) if beside else None)


def test_given_no_scores_then_the_nearest_is_the_first_guess():
    tree = TokenTree(np.array([0, 1, 2, 3, 4], np.int32), np.array([-1, 0, 0, 1, 2], np.int32))
    forecast = Forecast(3, 1, Draft(tree, Draw.POINT))

    assert forecast.nearest([9]) == 1
    assert Forecast(3, 2, forecast.grown).nearest([9]) == 2  # {1} was drafted


def test_given_tokens_of_an_older_round_then_a_late_forecast_is_of_less_use_but_never_wrong():
    # {0} - 1 - 2 | 3 - 4: drafted 1 2, guessed 3 behind them
    forecast = Forecast(5, 3, Draft(TokenTree.chain(np.array([9, 1, 2, 3, 4])), Draw.POINT))

    in_time, a_round_late = forecast.reached([1, 2, 3]), forecast.reached([1, 2, 3, 4])

    assert (in_time, a_round_late) == (3, 4)
    assert forecast.reached([1, 2, 3, 4, 5]) is None
    assert forecast.reached([1, 2]) is None


# --- cutting out of a draft -----------------------------------------------------------------------


@given(drafts(), st.data())
def test_given_a_subtree_then_it_is_what_stood_below_its_root(draft, data):
    root = data.draw(st.integers(0, len(draft.tree) - 1))
    start = tuple(draft.tree.tokens[draft.tree.path(root)[1:]].tolist())
    below = {
        tokens[len(start) :]: node
        for tokens, node in paths_of(draft.tree).items()
        if tokens[: len(start)] == start
    }

    part = subtree(draft, root, PENDING)

    names = [root, *names_of(part)]
    assert part.tree.tokens[0] == PENDING
    assert {tokens: names[node] for tokens, node in paths_of(part.tree).items()} == below
    assert names == sorted(names)  # draws that count by node keep their order
    assert_aligned(part, draft, names)


@given(drafts(), st.integers(0, MOST_NODES), st.integers(0, 4))
def test_given_a_cut_then_the_first_shallow_nodes_are_left(draft, most, depth):
    depths = draft.tree.depths().tolist()
    shallow = [node for node in range(1, len(draft.tree)) if depths[node] <= depth][:most]

    part = cut(draft, most, depth)

    names = [0, *names_of(part)]
    assert names == [0, *shallow]
    assert part.tree.tokens.tolist() == draft.tree.tokens[names].tolist()
    assert [names[at] for at in part.tree.parents[1:]] == draft.tree.parents[names[1:]].tolist()
    assert_aligned(part, draft, names)


@given(drafts())
def test_given_room_for_all_then_nothing_is_cut(draft):
    assert cut(draft, len(draft.tree) - 1, int(draft.tree.depths().max())) is draft


@given(drafts(), st.data())
def test_given_a_subtree_of_a_subtree_then_it_is_that_of_the_whole(draft, data):
    root = data.draw(st.integers(0, len(draft.tree) - 1))
    part = subtree(draft, root, PENDING)
    deeper = data.draw(st.integers(0, len(part.tree) - 1))

    one = subtree(part, deeper, PENDING)
    other = subtree(draft, [root, *names_of(part)][deeper], PENDING)

    assert names_of(one) == names_of(other)
    assert one.tree.parents.tolist() == other.tree.parents.tolist()
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
    assert one.law.tolist() == other.law.tolist()


def assert_aligned(part, draft, names):
    """Each figure of `part` is that of the node of `draft` which `names` says; none is lost."""
    expected = [node for node in draft.expanded.tolist() if node in names]
    assert [names[node] for node in part.expanded] == expected
    assert part.law[:, 0].tolist() == expected
    assert part.draws[:, 0].tolist() == expected
    assert np.isnan(part.margins[0])
    assert np.isnan(part.scores[0])
    assert part.ranks[0] == -1
    root_score = 1.0 / (1.0 + names[0]) if names[0] else np.nan
    whole = root_score if root_score > 0 else 1.0  # the pending token is always there
    np.testing.assert_allclose(part.scores[1:], draft.scores[names[1:]] / whole, rtol=1e-6)
    TokenTree(part.tree.tokens, part.tree.parents)  # checked once more as a tree


def test_given_a_draft_without_figures_then_its_parts_have_none_either():
    bare = Draft(TokenTree.chain(np.array([1, 2, 3, 4])), Draw.COUPLED, num_passes=3)

    part = cut(subtree(bare, 1, PENDING), 1, 1)

    assert part.tree.tokens.tolist() == [PENDING, 3]
    figures = (part.expanded, part.law, part.draws, part.margins, part.ranks, part.scores)
    assert figures == (None,) * 6
    assert part.num_passes == 3


def test_given_a_root_that_nobody_believed_in_then_scores_are_left_as_they_are():
    tree = TokenTree.chain(np.array([1, 2, 3]))
    hopeless = replace(numbered(tree), scores=np.array([np.nan, 0.0, 0.0], np.float32))

    assert subtree(hopeless, 1, PENDING).scores[1] == 0.0


@pytest.mark.parametrize("most", [-1, 0])
def test_given_no_room_then_the_pending_token_is_left(most):
    assert len(cut(numbered(TokenTree.chain(np.array([1, 2, 3]))), most, 5).tree) == 1


# --- a control: the same comparison sees a figure in the wrong place ------------------------------


@given(drafts().filter(lambda draft: len(draft.tree) > 2))
def test_control_given_figures_of_a_neighbour_then_the_comparison_notices(draft):
    part = subtree(draft, 0, PENDING)
    shifted = replace(part, scores=np.roll(part.scores, 1), ranks=np.roll(part.ranks, 1))

    with pytest.raises(AssertionError):
        assert_aligned(shifted, draft, [0, *names_of(part)])
