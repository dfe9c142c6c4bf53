"""How long a verifier waits: as long as waiting pays, by figures that a test gives instead of a
clock. Seconds here are numbers; nothing is timed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.control.patience import Patience

ROUND_S, PASS_S = 0.020, 0.002
FIRST_S = 1.0  # while nothing is known


def experienced(*, num_tokens=3, round_s=ROUND_S, pass_s=PASS_S, num_accepted=2, hits=1.0):
    """Some rounds of the same kind."""
    patience = Patience()
    for at in range(10):
        patience.learn_round(num_tokens, round_s)
        patience.learn_forecast(4, 4 * pass_s)
        patience.learn_outcome(is_hit=at < 10 * hits)
        patience.learn_yield("hit", num_accepted)
    return patience


def test_given_nothing_known_then_it_waits_once_to_see_but_not_for_ever():
    wait = Patience().wait_for(6, 0.0, 1)

    assert (wait.num_levels, wait.longest_s) == (0, FIRST_S)
    assert Patience().longest_redraft_s() == FIRST_S
    assert Patience().rate == 0.0


def test_given_rounds_then_tokens_a_second_are_their_ratio():
    assert experienced().rate == pytest.approx(3 / ROUND_S)


def test_given_cheap_levels_then_a_forecast_is_let_go_deep():
    cheap = experienced(pass_s=1e-6).wait_for(6, 0.0, 1)
    dear = experienced(pass_s=ROUND_S).wait_for(6, 0.0, 1)

    assert cheap.num_levels == 6
    assert dear.num_levels == 1  # a level at least: less is nothing


def test_given_more_time_gone_by_then_more_levels_are_there_for_nothing():
    patience = experienced(pass_s=ROUND_S)

    levels = [patience.wait_for(6, elapsed * ROUND_S, 1).num_levels for elapsed in range(9)]

    assert levels == sorted(levels)
    assert levels[-1] == 6


def test_given_more_rows_then_a_second_for_all_of_them_is_worth_more():
    patience = experienced(num_tokens=3, pass_s=0.006)

    assert patience.wait_for(6, 0.0, 8).num_levels > patience.wait_for(6, 0.0, 1).num_levels


def test_given_outcomes_that_are_never_prepared_for_then_nobody_waits_for_depth():
    useful, useless = experienced(hits=1.0), experienced(hits=0.0)

    assert useless.wait_for(6, 0.0, 1).num_levels == 1 < useful.wait_for(6, 0.0, 1).num_levels


@given(
    st.integers(1, 12), st.floats(0, 10), st.integers(1, 16), st.floats(1e-6, 0.1),
    st.floats(1e-4, 1.0), st.integers(0, 12), st.floats(0, 1),
)  # fmt: skip
def test_given_anything_then_a_wait_is_bounded_by_what_the_levels_take(
    num_levels, elapsed_s, num_rows, pass_s, round_s, num_accepted, hits
):
    patience = experienced(pass_s=pass_s, round_s=round_s, num_accepted=num_accepted, hits=hits)

    wait = patience.wait_for(num_levels, elapsed_s, num_rows)

    assert 1 <= wait.num_levels <= num_levels
    left_s = max(0.0, (1 + wait.num_levels) * pass_s - elapsed_s)
    assert left_s < wait.longest_s <= left_s + 0.01 + 3 * pass_s


def test_given_a_lane_that_is_later_than_it_should_be_then_only_a_little_grace_is_left():
    patience = experienced()

    overdue = patience.wait_for(6, 100.0, 1)

    assert overdue.longest_s <= 0.01 + 3 * PASS_S


# --- drafting again, or making do -----------------------------------------------------------------


def compared(*, redraft_s, redraft=3, near=1, num_rounds=10):
    patience = experienced()
    for _ in range(num_rounds):
        patience.learn_redraft(redraft_s)
        patience.learn_yield("redraft", redraft)
        patience.learn_yield("near", near)
    return patience


def test_given_a_source_nobody_has_tried_then_it_is_tried_first():
    patience = experienced()

    assert patience.prefers_redraft("near", 1)  # both are unknown: see what a draft brings
    for _ in range(3):
        patience.learn_yield("redraft", 4)
    assert not patience.prefers_redraft("near", 1)  # now the other


def test_given_a_draft_that_costs_nothing_then_it_is_made_and_a_dear_one_is_not():
    assert compared(redraft_s=1e-6).prefers_redraft("near", 1)
    assert not compared(redraft_s=1.0).prefers_redraft("near", 1)


def test_given_a_draft_that_brings_no_more_then_it_is_not_made():
    assert not compared(redraft_s=1e-6, redraft=1, near=1).prefers_redraft("near", 1)


def test_given_more_rows_that_missed_then_one_draft_for_all_pays_sooner():
    patience = compared(redraft_s=0.02)

    assert not patience.prefers_redraft("near", 1)
    assert patience.prefers_redraft("near", 8)


def test_given_a_source_that_lost_then_it_is_tried_again_after_a_while_for_texts_change():
    patience = compared(redraft_s=1.0)

    answers = [patience.prefers_redraft("near", 1) for _ in range(100)]

    assert 2 <= sum(answers) <= 10
    gaps = [at for at, is_tried in enumerate(answers) if is_tried]
    assert gaps[1] - gaps[0] == gaps[0] + 1  # at even distances


def test_given_drafts_that_were_waited_for_then_a_wait_is_a_few_times_as_long_at_most():
    assert compared(redraft_s=0.02).longest_redraft_s() == pytest.approx(0.06, abs=0.01)


def test_given_a_drafter_that_stopped_once_then_it_is_not_taken_for_slow():
    usual, stopped = experienced(pass_s=0.001), experienced(pass_s=0.001)

    stopped.learn_forecast(4, 2.0)
    stopped.learn_redraft(2.0)

    assert stopped.wait_for(6, 0.0, 1).num_levels == usual.wait_for(6, 0.0, 1).num_levels
    assert stopped.wait_for(6, 0.0, 1).longest_s < 2 * usual.wait_for(6, 0.0, 1).longest_s
