"""Prices of a way beside others: learned from rounds of everybody, nothing timed."""

from __future__ import annotations

import pytest

from forerun.control.shared_prices import SharedPrices
from forerun.stats import RoundStats


def flat(num_nodes):
    return 0.02


def steep(num_nodes):
    return 0.005 * num_nodes


def played(prices, cost, own=(4, 2, 10), others=0, passes=1):
    """Rounds of one way whose rows draft so many nodes, beside others that draft nothing."""
    for num_drafted in own * 10:
        verify_s = cost(1 + num_drafted + others)
        num_rows, num_kept, round_s = 1 + others, num_drafted // 2, verify_s + 0.004
        stats = RoundStats(num_rows, num_drafted, num_kept, round_s, 0.004, verify_s, 0.0, passes)
        prices.learn(stats, 1, num_drafted)
    return prices


def test_given_nothing_learned_then_nothing_costs_anything():
    assert SharedPrices().of_nodes(2, 3) == (0.0, 0.0, 0.0)
    assert SharedPrices().of_pass(2) == 0.0
    assert not SharedPrices().is_paused


def test_given_passes_as_long_for_many_nodes_then_a_node_costs_next_to_nothing():
    assert max(played(SharedPrices(), flat).of_nodes(1, 8)) < 0.05


def test_given_passes_bound_by_arithmetic_then_a_node_must_be_likelier_than_it_is_dear():
    prices = played(SharedPrices(), steep).of_nodes(1, 8)
    # a round of 4 to 12 nodes gives about 3.7 tokens in 31 ms, and a node takes 5 of them
    assert all(0.4 < price < 0.9 for price in prices)


def test_given_others_in_the_pass_then_a_node_costs_what_they_lose_by_it():
    alone = played(SharedPrices(), steep).of_nodes(1, 8)
    beside = played(SharedPrices(), steep, others=16).of_nodes(1, 8)

    # sixteen that get a token a round, and wait for every node
    assert min(beside) > 0.75 > alone[0]


def test_given_a_step_in_what_passes_cost_then_nodes_before_it_are_cheap_and_behind_it_dear():
    def step(num_nodes):
        return 0.02 if num_nodes <= 16 else 0.02 + 0.004 * (num_nodes - 16)

    prices = played(SharedPrices(), step, own=(4, 8, 12, 16, 20, 24, 30)).of_nodes(1, 24)

    assert prices[3] < 0.3 * prices[-1]


@pytest.mark.parametrize(("passes", "is_priced"), [(1, False), (3, True)])
def test_given_a_block_drafter_then_its_one_pass_has_no_price(passes, is_priced):
    assert (played(SharedPrices(), steep, passes=passes).of_pass(1) > 0) is is_priced
