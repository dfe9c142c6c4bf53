"""Trees: what is refused, and what the derived views say."""

from __future__ import annotations

import numpy as np
import pytest

from forerun.errors import DrafterError
from forerun.shapes.chain import Chain
from forerun.tree import TokenTree


def tree(tokens, parents):
    return TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32))


FORK = ([7, 1, 2, 3, 4], [-1, 0, 0, 1, 3])


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [
        ([], []),
        ([1, 2], [-1]),
        ([1], [0]),
        ([1, 2], [-1, -1]),
        ([1, 2], [-1, 1]),
        ([1, 2, 2], [-1, 0, 0]),
    ],
)
def test_given_no_tree_then_it_is_refused(tokens, parents):
    with pytest.raises(DrafterError):
        tree(tokens, parents)


def test_given_a_chain_then_all_ways_to_build_it_agree():
    chains = [TokenTree.chain([5, 5, 6]), TokenTree.made_chain([5, 5, 6])]

    for chain in chains:
        assert chain.is_chain
        assert chain.parents.tolist() == [-1, 0, 1]
        assert chain.depths().tolist() == [0, 1, 2]
        assert chain.tokens.dtype == chain.parents.dtype == np.int32


def test_given_a_fork_then_children_depths_and_paths_follow_the_parents():
    fork = tree(*FORK)

    assert not fork.is_chain
    assert fork.depths().tolist() == [0, 1, 1, 2, 3]
    assert (fork.child(0, 2), fork.child(1, 3), fork.child(2, 3)) == (2, 3, None)
    assert fork.path(4) == [0, 1, 3, 4]


@pytest.mark.parametrize(("most", "expected"), [(1, [7, 1]), (2, [7, 1, 3]), (9, [7, 1, 3, 4])])
def test_given_a_chain_shape_then_a_tree_is_cut_to_its_first_children(most, expected):
    cut = Chain(most).limit(tree(*FORK))

    assert cut.is_chain
    assert cut.tokens.tolist() == expected


def test_given_a_chain_that_fits_then_it_is_left_alone():
    chain = TokenTree.chain([1, 2, 3])

    assert Chain(2).limit(chain) is chain
    assert Chain(1).limit(chain).tokens.tolist() == [1, 2]
