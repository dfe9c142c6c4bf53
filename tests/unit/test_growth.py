"""Best-first growth: nothing under the budget is expected to keep more."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from forerun.shapes.growth import best_first
from forerun.tree import TokenTree

MOST_NODES, MOST_LEVELS, NUM_RANKS, NUM_VECTORS = 14, 5, 4, 40


def grown(acceptances, budget, depth, least=0.0):
    """Growth where the b-th child of any node is the right one with the b-th probability."""
    children = [(rank, one, 0) for rank, one in enumerate(acceptances)]
    return best_first(lambda _state: children, 0, budget, depth, least)


def optimum(acceptances, num_nodes, depth):
    """The dynamic programme of Sequoia: most expected tokens, the root's own included.

    most(m, l, b): of m nodes in l levels whose root has exactly b children.
    """

    @cache
    def most(nodes, levels, children):
        if children == 0:
            return 1.0 if nodes == 1 else -np.inf
        if nodes < 2 or levels < 1:
            return -np.inf
        last = acceptances[children - 1]
        return max(
            most(before, levels, children - 1) + last * best(nodes - before, levels - 1)
            for before in range(1, nodes)
        )

    @cache
    def best(nodes, levels):
        return max(most(nodes, levels, children) for children in range(len(acceptances) + 1))

    # A deep tree of few ranks may have no place for every node.
    return max(best(nodes, depth) for nodes in range(1, num_nodes + 1))


def vectors():
    rng = np.random.default_rng(3)
    for _ in range(NUM_VECTORS):
        yield tuple((rng.dirichlet(np.ones(NUM_RANKS + 1)))[:NUM_RANKS].tolist())


def largest_loss(of):
    """By how much growth stays below the optimum, over all vectors, budgets and depths."""
    return max(
        optimum(one, num_nodes, depth) - 1 - sum(grown(one, num_nodes - 1, depth)[2])
        for one in map(of, vectors())
        for num_nodes, depth in itertools.product(range(1, MOST_NODES + 1), range(MOST_LEVELS + 1))
    )


def decreasing(vector):
    return tuple(sorted(vector, reverse=True))


def test_given_decreasing_acceptances_then_growth_is_the_dynamic_programme_s_optimum():
    assert abs(largest_loss(decreasing)) < 1e-12


def test_control_given_acceptances_out_of_order_then_growth_is_worse():
    # The likeliest token hides behind the least likely one, which growth is not tempted to take.
    assert largest_loss(lambda vector: tuple(sorted(vector)[at] for at in (2, 0, 3, 1))) > 0.1


def test_given_growth_then_it_is_a_tree_in_decreasing_scores_within_its_limits():
    rng = np.random.default_rng(5)
    for one in map(decreasing, vectors()):
        budget, depth = int(rng.integers(1, 20)), int(rng.integers(1, 6))
        tokens, parents, scores = grown(one, budget, depth)
        tree = TokenTree(np.array([9, *tokens], np.int32), np.array([-1, *parents], np.int32))
        assert len(tokens) <= budget
        assert tree.depths().max() <= depth
        assert scores == sorted(scores, reverse=True)
        paths = [tree.path(node)[1:] for node in range(1, len(tree))]
        products = [np.prod([one[tree.tokens[node]] for node in path]) for path in paths]
        assert scores == pytest.approx(products)


def test_given_equal_scores_then_the_one_offered_first_comes_first():
    tokens, parents, _ = grown((0.5, 0.5), 4, 2)

    assert (tokens, parents) == ([0, 1, 0, 0], [0, 0, 1, 2])


def test_given_a_least_score_then_nothing_below_it_is_grown():
    assert grown((0.5, 0.3), 20, 3, least=0.2)[2] == [0.5, 0.3, 0.25]
    assert len(grown((0.5, 0.3), 20, 3)[2]) == 14


def test_given_no_budget_or_no_depth_then_nothing_is_grown():
    assert grown((0.5,), 0, 3) == ([], [], [])
    assert grown((0.5,), 3, 0) == ([], [], [])


def test_given_children_without_end_then_only_what_is_needed_is_asked_for():
    asked = []

    def offer(state):
        for rank in itertools.count():
            asked.append((state, rank))
            yield rank, 0.5 ** (rank + 1), f"{state}{rank}"

    tokens, parents, _ = best_first(offer, "", 3, 2, 0.0)

    assert (tokens, parents) == ([0, 1, 0], [0, 0, 1])
    assert len(asked) <= 2 * 3 + 1
