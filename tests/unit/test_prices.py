"""What a node must be expected to yield: by what it costs, and by what a second is worth."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.control.prices import Costs, Prices, measured
from forerun.stats import RoundStats

FLAT_THEN_STEEP = Costs(((1, 0.010), (2, 0.010), (4, 0.0115), (8, 0.013), (16, 0.029)), 0.001)


def settled(costs=FLAT_THEN_STEEP):
    prices = Prices()
    prices.settle(costs)
    return prices


def round_of(accepted, seconds, drafted=4, num_rows=1):
    return RoundStats(num_rows, num_rows * drafted, num_rows * accepted, seconds, 0.0, 0.0, 0.0)


def test_given_times_then_slopes_are_those_of_the_convex_curve_below():
    assert FLAT_THEN_STEEP.slopes() == (
        (2, 0.0),
        (8, pytest.approx(0.0005)),
        (16, pytest.approx(0.002)),
    )


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=8))
def test_given_any_times_then_slopes_never_fall_and_never_ask_more_than_was_measured(times):
    costs = Costs(tuple((n + 1, seconds) for n, seconds in enumerate(times)), 0.0)
    slopes = costs.slopes()

    assert [up_to for up_to, _ in slopes] == sorted({up_to for up_to, _ in slopes})
    assert all(a <= b + 1e-12 for (_, a), (_, b) in itertools.pairwise(slopes))
    assert slopes[-1][0] == len(times)


def test_given_faster_decoding_then_every_node_is_dearer():
    prices = settled()
    at_first = prices.of_nodes(1, 12)
    for _ in range(20):
        prices.learn(round_of(accepted=3, seconds=0.012))

    now = prices.of_nodes(1, 12)
    assert at_first[0] == 0.0
    assert list(now) == sorted(now)
    assert all(b > a for a, b in zip(at_first[1:], now[1:], strict=True))
    assert prices.of_pass(1) > 0


def test_given_more_rows_then_a_node_reaches_the_steep_part_sooner():
    prices = settled()

    assert prices.of_nodes(4, 4)[1] > 4 * prices.of_nodes(1, 4)[1]


def test_given_rounds_that_lose_then_drafting_pauses_and_is_tried_again():
    # given rounds dearer than plain decoding, and nothing kept
    prices = settled()
    for _ in range(12):
        assert not prices.is_paused
        prices.learn(round_of(accepted=0, seconds=0.02))
    # then some rows are decoded plainly, to see what that takes, and when that is as little
    assert plain_rounds(prices, 0.01) == 6
    for _ in range(2):  # the round apart in which the drafter catches up
        prices.learn(round_of(accepted=0, seconds=0.02))
    # ... then rows decode plainly for a while
    assert plain_rounds(prices, 0.01) == 32
    # ... and twice as long if it still loses, the round apart in which the drafter catches up
    for _ in range(1 + 12):
        prices.learn(round_of(accepted=0, seconds=0.02))
    for _ in range(64):
        assert prices.is_paused
        prices.learn(round_of(accepted=0, seconds=0.01, drafted=0))
    assert not prices.is_paused


def test_given_first_times_that_were_lucky_then_drafting_that_pays_is_not_paused_for_them():
    # given a round that takes 1.6 x what the first times led to expect, drafts or not
    drafts = played(settled(), 200, 1, drafting_s=0.021, plain_s=0.016, accepted=1)
    # then no more rounds are plain than it takes to see that
    assert drafts.count(False) <= 6 + 2


def plain_rounds(prices, seconds):
    """How many rounds decode plainly until drafts are tried."""
    num = 0
    while prices.is_paused:
        prices.learn(round_of(accepted=0, seconds=seconds, drafted=0))
        num += 1
    return num


def test_control_given_rounds_that_win_then_drafting_goes_on():
    prices = settled()
    for _ in range(100):
        prices.learn(round_of(accepted=2, seconds=0.015))
        assert not prices.is_paused


def played(prices, num_rounds, num_rows, drafting_s, plain_s, accepted):
    """Whether each of so many rounds drafted, on a machine where they take so long."""
    found = []
    for _ in range(num_rounds):
        is_drafting = not prices.is_paused
        found.append(is_drafting)
        num = accepted if is_drafting else 0
        seconds = drafting_s if is_drafting else plain_s
        prices.learn(round_of(num, seconds, drafted=4 * is_drafting, num_rows=num_rows))
    return found


@pytest.mark.parametrize("num_rows", [2, 8, 32])
def test_given_rows_that_lose_together_then_drafting_pauses_for_ever_longer(num_rows):
    drafts = played(settled(), 1200, num_rows, drafting_s=0.2, plain_s=0.06, accepted=1)
    assert sum(drafts[:32]) <= 32
    assert sum(drafts[300:]) <= 0.1 * 900
    assert any(drafts[300:])  # but it is tried again


@pytest.mark.parametrize("num_rows", [2, 8, 32])
def test_control_given_rows_that_win_together_then_hardly_a_round_is_plain(num_rows):
    drafts = played(settled(), 1200, num_rows, drafting_s=0.1, plain_s=0.06, accepted=2)
    # after the passes of so many rows were seen, whatever the first times led to expect
    assert sum(drafts[300:]) >= 0.95 * 900


def test_given_a_crowd_that_loses_and_leaves_then_few_draft_at_once_and_a_crowd_does_not():
    prices = settled()
    played(prices, 100, 1, drafting_s=0.015, plain_s=0.010, accepted=2)
    assert not all(played(prices, 100, 32, drafting_s=0.3, plain_s=0.06, accepted=1))
    # the first round of another number of rows tells of it
    alone = played(prices, 60, 1, drafting_s=0.015, plain_s=0.010, accepted=2)
    assert sum(alone[1:]) >= 57  # all, but for a rest
    crowd = played(prices, 24, 32, drafting_s=0.3, plain_s=0.06, accepted=1)
    assert sum(crowd) <= 14


def test_given_a_crowd_whose_drafts_come_to_be_kept_then_it_drafts_again():
    prices = settled()
    played(prices, 100, 32, drafting_s=0.2, plain_s=0.06, accepted=1)
    late = played(prices, 1000, 32, drafting_s=0.2, plain_s=0.06, accepted=4)[-200:]
    assert sum(late) >= 195


def test_given_more_rows_then_a_pass_must_yield_more():
    prices = settled()
    assert prices.of_pass(8) > 8 * prices.of_pass(1)


def test_given_nothing_settled_then_nothing_costs_anything():
    assert Prices().of_nodes(2, 3) == (0.0, 0.0, 0.0)
    assert Prices().of_pass(2) == 0.0


class Instant:
    """A target whose passes take no time."""

    def forward(self, batch):
        return None


def test_given_a_block_drafter_then_no_level_has_a_price_and_else_each_has_its_own(own_time):
    def slow_levels(num_levels):
        own_time.sleep(0.002 * num_levels)

    assert measured(Instant(), None).pass_s == 0.0
    assert measured(Instant(), slow_levels).pass_s == pytest.approx(0.002)
