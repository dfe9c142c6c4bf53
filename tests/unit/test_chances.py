"""How likely drafts are kept: of each row by what it kept, of a newcomer by what newcomers did."""

from __future__ import annotations

import numpy as np
import pytest

from forerun.control.chances import Chances

LONGEST = 4


def taught(*rounds):
    chances = Chances(LONGEST)
    for kept in rounds:
        chances.learn(kept)
    return chances


def lucky_and_passing(num_rounds=200):
    """Row 0 keeps all of four; beside it come newcomers, of which each keeps one of three tokens
    and then drafts no more."""
    rounds = [[(0, 4, 4)]] * 20
    for at in range(num_rounds):
        newcomer = 1 + at // 3
        rounds.append([(0, 4, 4), (newcomer, 1, int(at % 3 == 0))])
    return rounds


def test_given_rows_of_unlike_luck_then_each_is_believed_by_its_own():
    chances = taught(*[[(0, 2, 2), (1, 2, 0)]] * 30).of((0, 1))
    assert chances[0, 0] > 0.85
    assert chances[1, 0] < 0.3


def test_given_chains_then_longer_ones_are_never_likelier():
    chances = taught(*[[(0, 4, 2), (1, 3, 3)]] * 10).of((0, 1, 2))
    assert chances.shape == (3, LONGEST)
    assert (np.diff(chances, axis=1) <= 0).all()


def test_given_lucky_rows_that_draft_most_then_a_newcomer_is_like_newcomers():
    chances = taught(*lucky_and_passing())
    (newcomer,) = chances.of((9999,))
    assert newcomer[0] == pytest.approx(1 / 3, abs=0.1)


def test_control_given_lucky_rows_then_the_mean_of_all_drafts_is_theirs():
    assert taught(*lucky_and_passing()).mean > 0.75


def test_given_a_row_that_ended_then_it_is_a_newcomer_again():
    chances = taught(*[[(0, 2, 2), (1, 2, 0)]] * 30)
    chances.forget(1)
    chances.forget(77)
    assert chances.num_rows == 1
    assert chances.of((1,))[0, 0] == chances.of((2,))[0, 0]


def test_given_nothing_then_chances_are_those_of_a_guess():
    assert (Chances(LONGEST).of((5,)) > 0).all()
    assert (Chances(LONGEST).of((5,)) < 1).all()
