"""The pace of drafting under load, on machines that are simulated: it must come near the best."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def of_best(machine, num_rows, num_rounds, num_settling=0, before=(), seed=0):
    """Tokens/s as a part of the best of some fixed lengths."""
    from pace_simulator import MACHINES, Trial, judged

    trial = Trial(
        MACHINES[machine], num_rounds, before=before, num_settling=num_settling, seed=seed
    )
    return judged(trial, num_rows, (0, 1, 2, 3, 5)).of_best


@pytest.mark.parametrize("num_rows", [1, 8, 32])
@pytest.mark.parametrize("machine", ["cpu", "flat", "dear"])
def test_given_any_machine_and_load_then_in_the_long_run_it_is_about_the_best_length(
    machine, num_rows
):
    assert of_best(machine, num_rows, 900, num_settling=300) >= 0.95


@pytest.mark.parametrize("num_rows", [2, 8, 32])
def test_given_a_hundred_rounds_from_cold_then_learning_costs_little(num_rows):
    assert sum(of_best("cpu", num_rows, 100, seed=seed) for seed in range(3)) / 3 >= 0.93


def test_given_other_loads_before_then_a_crowd_profits_from_them():
    before = (1, 2, 4, 8, 16)
    assert sum(of_best("cpu", 32, 100, before=before, seed=seed) for seed in range(3)) / 3 >= 0.94


def test_control_given_a_length_that_is_best_for_one_then_a_crowd_loses_by_it():
    from pace_simulator import MACHINES, Fixed, Trial

    trial = Trial(MACHINES["cpu"], 100)
    rates = [trial.played(Fixed(length), 32, trial.loop()).tokens_per_s for length in (0, 4)]
    assert rates[1] < 0.8 * rates[0]


def test_given_one_seed_then_a_run_is_repeated_to_the_token():
    from pace_simulator import LONGEST, MACHINES, Paces, Trial

    trial = Trial(MACHINES["cpu"], 60)
    runs = [trial.played(Paces(LONGEST), 8, trial.loop()) for _ in range(2)]
    assert runs[0].num_tokens == runs[1].num_tokens
    assert runs[0].seconds == runs[1].seconds


def test_given_a_row_that_drafts_then_it_keeps_the_same_tokens_whatever_its_length():
    from pace_simulator import MACHINES, Fixed, Trial

    trial = Trial(MACHINES["flat"], 400)
    plain, chain = (trial.played(Fixed(length), 1, trial.loop()) for length in (0, 3))
    assert plain.num_tokens == 400
    assert chain.num_tokens > 1.5 * plain.num_tokens
