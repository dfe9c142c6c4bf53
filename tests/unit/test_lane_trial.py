"""What drafts yield, from what was recorded of a drafter and what was counted of its guesses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forerun.control.lane_trial import yields_of
from forerun.control.outcomes import PowerLaw, exits_of, hit_rate, spread, tokens_of
from forerun.control.trial import expected_tokens

RECORD = {2: 1.95, 4: 2.34, 7: 2.58}
FORECASTS = Path(__file__).parents[2] / "benchmarks" / "results" / "forecasts.json"


@pytest.mark.parametrize("length", RECORD)
def test_given_a_record_then_chains_of_its_lengths_yield_what_it_says(length):
    assert tokens_of(yields_of(RECORD).accepted[:length]) == pytest.approx(RECORD[length], abs=1e-4)


def test_given_a_record_then_no_length_is_better_for_being_recorded():
    accepted = yields_of(RECORD).accepted

    jumps = np.abs(np.diff(accepted))
    assert accepted[0] == accepted[1]
    assert accepted[2] == accepted[3]
    assert jumps.max() < 0.1


def test_given_more_levels_than_were_recorded_then_they_are_kept_as_the_last_ones():
    accepted = yields_of(RECORD, 12).accepted

    assert len(accepted) == 12
    assert set(accepted[7:]) == {accepted[6]}
    assert yields_of(RECORD, 3).accepted == accepted[:3]


def test_given_no_record_then_a_fitting_drafter_is_assumed():
    assert tokens_of(yields_of({}, 6).accepted) == pytest.approx(expected_tokens({}, 6))


@pytest.mark.parametrize("record", [{2: 3.0}, {2: 1.0, 4: 1.0}, {2: 9.0, 4: 1.5}])
def test_given_a_record_that_is_all_or_nothing_then_chances_are_chances(record):
    accepted = yields_of(record).accepted

    assert len(accepted) == 8
    assert all(0.0 <= chance <= 1.0 for chance in accepted)


def furthest_off(bonus):
    """By how much a law is off the shares of prepared outcomes that were counted, outside loops."""
    counted = json.loads(FORECASTS.read_text(encoding="utf-8"))["rows"]
    chains = [one for one in counted if one["drafter"] == "lm" and "chain" in one["shape"]]
    assert len(chains) == 12
    off = []
    for one in chains:
        length = int(one["shape"].removeprefix("chain:"))
        kept = yields_of({length: one["tokens_per_round_sequential"]}, length).accepted
        branches = spread(exits_of(kept), one["branches"], bonus.exponent)
        expected = hit_rate(exits_of(kept), branches, bonus)
        off.append(abs(expected - one["hit_rate_without_loops"]))
    return max(off)


def test_given_guesses_that_were_counted_then_the_law_is_near_each():
    assert furthest_off(yields_of({}).bonus) < 0.06


def test_control_given_another_law_then_it_is_not():
    assert furthest_off(PowerLaw.through(0.8, 5)) > 0.1
    assert furthest_off(PowerLaw.through(0.9, 5)) > 0.06
