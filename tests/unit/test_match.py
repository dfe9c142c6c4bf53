"""The rule `match` on single cases; tests/exact has the proof over all small trees."""

from __future__ import annotations

import numpy as np
import pytest

from forerun.draft import Draft, Draw
from forerun.noise import RoundNoise
from forerun.rules.match import Match
from forerun.schedules.sequential import Sequential
from forerun.tree import TokenTree


def judge(tokens, parents, choices):
    tree = TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32))
    return Match().judge(Draft(tree, Draw.POINT), np.array(choices, np.int32), RoundNoise(0, 0, 0))


@pytest.mark.parametrize(
    ("choices", "path", "bonus"),
    [
        ([9, 0, 0], (0,), 9),
        ([1, 9, 0], (0, 1), 9),
        ([1, 2, 9], (0, 1, 2), 9),
        ([9, 2, 3], (0,), 9),
    ],
)
def test_given_a_chain_then_tokens_are_kept_until_the_first_difference(choices, path, bonus):
    verdict = judge([5, 1, 2], [-1, 0, 1], choices)

    assert (verdict.path, verdict.bonus) == (path, bonus)
    assert verdict.num_accepted == len(path) - 1


def test_given_a_fork_then_the_sibling_the_target_chose_is_followed():
    verdict = judge([5, 1, 2, 3, 3], [-1, 0, 0, 1, 2], [2, 0, 3, 0, 8])

    assert (verdict.path, verdict.bonus) == ((0, 2, 4), 8)


def test_given_one_node_then_plain_decoding_is_its_choice():
    verdict = judge([5], [-1], [6])

    assert (verdict.path, verdict.bonus) == ((0,), 6)


def test_given_the_sequential_schedule_then_nothing_is_prepared():
    assert Sequential().exits(Draft(TokenTree.chain([1, 2]), Draw.POINT)) == []
