"""Of all nodes the likeliest, as long as tokens a second rise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.control.allotment import RoundCosts, allotted


def costs(verify_s, pass_s, is_stepwise=True):
    return RoundCosts(np.array(verify_s, float), np.array(pass_s, float), is_stepwise)


def chances_of(lucks, longest):
    return np.array([[luck**depth for depth in range(1, longest + 1)] for luck in lucks])


def rate(chances, lengths, one):
    """Tokens a second, by the book."""
    tokens = len(lengths) + sum(chances[row, :length].sum() for row, length in enumerate(lengths))
    num_drafting = sum(length > 0 for length in lengths)
    passes = (max(lengths) if one.is_stepwise else 1) if num_drafting else 0
    return tokens / (one.verify_s[sum(lengths)] + passes * one.pass_s[num_drafting])


@given(
    st.lists(st.sampled_from([0.2, 0.4, 0.6, 0.8, 0.95]), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.5, 4.0]),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.booleans(),
)
def test_given_any_rows_then_it_is_near_the_best_of_all_lengths(lucks, node_s, pass_s, is_stepwise):
    longest, num_rows = 3, len(lucks)
    chances = chances_of(lucks, longest)
    verify_s = [10 + node_s * (num_rows + nodes) for nodes in range(num_rows * longest + 1)]
    one = costs(verify_s, [pass_s] * (num_rows + 1), is_stepwise)

    chosen = rate(chances, allotted(chances, num_rows, one, 1.0), one)
    every = itertools.product(range(longest + 1), repeat=num_rows)
    assert chosen == pytest.approx(max(rate(chances, lengths, one) for lengths in every))


def test_given_a_gain_that_is_not_reached_then_nothing_is_drafted():
    chances = chances_of([0.5], 2)
    one = costs([10, 14, 20], [0, 0])  # one token more wins by seven parts in a hundred
    assert allotted(chances, 1, one, 1.03) == [1]
    assert allotted(chances, 1, one, 1.1) == [0]


def test_given_a_step_then_what_stands_on_it_is_filled():
    chances = chances_of([0.8, 0.8], 3)
    one = costs([10, 14, 14, 14, 14, 30, 30], [0, 0, 0])
    assert allotted(chances, 2, one, 1.0) == [2, 2]


def test_given_costs_of_few_nodes_then_no_more_are_drafted():
    assert sum(allotted(chances_of([0.9] * 4, 4), 4, costs([10, 10, 10], [0] * 5), 1.0)) == 2


def test_given_dear_passes_then_all_draft_one_rather_than_one_drafts_all():
    chances = chances_of([0.9, 0.6, 0.6], 3)
    assert max(allotted(chances, 3, costs([10] * 10, [0, 5, 5, 5]), 1.0)) == 1


def test_control_given_passes_that_cost_nothing_then_all_draft_the_longest():
    chances = chances_of([0.9, 0.6, 0.6], 3)
    assert allotted(chances, 3, costs([10] * 10, [0] * 4), 1.0) == [3, 3, 3]
