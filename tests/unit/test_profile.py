"""Shapes: what they let through of any tree, and the tree that sampled rules are drafted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.composition import LONGEST
from forerun.errors import OptionError
from forerun.shapes.chain import Chain
from forerun.shapes.profile import DEEPEST, KEPT_BY_RANK, likeliest_tree
from forerun.shapes.tree import FixedTree, Tree
from forerun.tree import TokenTree


@st.composite
def trees(draw):
    """Any tree; a node's token says which node it is, so that it is known again."""
    num_nodes = draw(st.integers(1, 24))
    parents = [-1, *[draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]]
    tokens = np.arange(num_nodes, dtype=np.int32)
    return TokenTree(tokens, np.array(parents, np.int32))


@st.composite
def fixed(draw):
    num_nodes = draw(st.integers(1, 16))
    return FixedTree(tuple(draw(st.integers(0, node)) for node in range(num_nodes)))


SHAPES = st.one_of(
    st.builds(Chain, st.integers(1, 12)), st.builds(Tree, st.integers(1, 30)), fixed()
)


@settings(max_examples=300, deadline=None)
@given(SHAPES, trees())
def test_given_any_tree_then_a_shape_leaves_a_valid_part_of_it_in_its_order(shape, tree):
    part = shape.limit(tree)

    TokenTree(part.tokens, part.parents)  # checks what trees must be
    names = part.tokens.tolist()
    assert names[0] == 0
    assert names == sorted(names)
    assert len(part) - 1 <= shape.max_drafted
    assert [names[at] for at in part.parents[1:]] == tree.parents[names[1:]].tolist()


@settings(max_examples=200, deadline=None)
@given(SHAPES, trees())
def test_given_what_a_shape_left_then_it_leaves_all_of_it(shape, tree):
    part = shape.limit(tree)

    again = shape.limit(part)

    assert again.tokens.tolist() == part.tokens.tolist()
    assert again.parents.tolist() == part.parents.tolist()


@settings(max_examples=200, deadline=None)
@given(fixed(), trees())
def test_given_a_fixed_tree_then_every_node_left_has_a_place_of_its_own(shape, tree):
    part = shape.limit(tree)

    # children fill their parent's places from the first on
    places, taken = {0: 0}, set()
    for node, parent in enumerate(part.parents.tolist()[1:], start=1):
        own = [at for at, above in enumerate(shape.parents, start=1) if above == places[parent]]
        places[node] = next(at for at in own if at not in taken)
        taken.add(places[node])


@settings(max_examples=100, deadline=None)
@given(fixed())
def test_given_a_tree_of_its_very_form_then_a_fixed_tree_returns_the_same_object(shape):
    tokens = np.arange(shape.max_drafted + 1, dtype=np.int32)
    tree = TokenTree(tokens, np.array([-1, *shape.parents], np.int32))

    assert shape.limit(tree) is tree
    assert shape.num_levels == int(tree.depths().max())


def test_control_given_a_cut_that_forgets_parents_then_the_checks_notice():
    tree = TokenTree(np.arange(4, dtype=np.int32), np.array([-1, 0, 1, 2], np.int32))

    assert Tree(2).limit(tree).parents.tolist() == [-1, 0, 1]
    with pytest.raises(Exception, match="parents must be"):
        TokenTree(tree.tokens[[0, 3]], tree.parents[[0, 3]])


def test_given_widths_then_every_node_of_a_level_has_as_many_children():
    assert FixedTree.of_widths((3, 2, 1)).parents == (0, 0, 0, 1, 1, 2, 2, 3, 3, *range(4, 10))
    assert FixedTree.of_widths((2, 2)).num_levels == 2


def test_given_no_depth_then_nothing_fits():
    for shape in (Chain(4), Tree(4), FixedTree((0, 1))):
        assert shape.fits(0) == 0
        assert shape.fits(100) == shape.max_drafted
    assert Chain(4).fits(3) == 3


@pytest.mark.parametrize("parents", [(), (1,), (-1,), (0, 2), (0,) * (LONGEST + 1)])
def test_given_what_is_no_tree_then_it_is_refused(parents):
    with pytest.raises(OptionError):
        FixedTree(parents)


# --- the tree of sampled rules --------------------------------------------------------------------


def worth(parents):
    """Expected kept tokens where the draw of each rank is kept as often as the profile says."""
    scores, ranks = [1.0], {}
    for parent in parents:
        rank = ranks.get(parent, 0)
        ranks[parent] = rank + 1
        scores.append(scores[parent] * (KEPT_BY_RANK[rank] if rank < len(KEPT_BY_RANK) else 0.0))
    return sum(scores[1:])


@pytest.mark.parametrize("budget", range(1, 7))
def test_given_a_budget_then_no_tree_of_it_is_worth_more(budget):
    every = itertools.product(*[range(node + 1) for node in range(budget)])

    assert worth(likeliest_tree(budget).parents) == pytest.approx(max(map(worth, every)))


def test_control_given_a_star_or_a_chain_then_it_is_worth_less():
    best = worth(likeliest_tree(6).parents)

    assert worth((0,) * 6) < best
    assert worth(range(6)) < best


def test_given_every_budget_then_trees_grow_by_one_node_and_fill_it():
    before = ()
    for budget in range(1, LONGEST + 1):
        tree = likeliest_tree(budget)
        assert tree.max_drafted == budget
        assert tree.num_levels <= DEEPEST
        assert tree.parents[:-1] == before  # so that a smaller budget cuts, and moves nothing
        before = tree.parents
