"""Two simulated lanes: they agree with closed forms where there are any, and with their seed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forerun.control.outcomes import PowerLaw, tokens_of
from forerun.control.overlap import LaneCosts, Way, Yields, overlapped
from forerun.errors import OptionError

pytest.importorskip("simpy")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
VERIFY_S, STEP_S, LEVELS = 10e-3, 1e-3, 4
ACCEPTED = (0.8, 0.75, 0.85, 0.7)
TOKENS = tokens_of(ACCEPTED)
COSTS = LaneCosts(verify=((1, VERIFY_S),), step_s=STEP_S, num_reads=1)
CLOSE = pytest.approx
NUM_ROUNDS = 4000


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def a_setup(**changes):
    from lanes_setup import Setup

    base = Setup(COSTS, Way("ahead", LEVELS, 8), ACCEPTED, hit=1.0)
    return replace(base, **changes)


def run(setup, num_rounds=NUM_ROUNDS, seed=0):
    from lanes_simulator import simulated

    return simulated(setup, num_rounds, seed)


def rate(tokens, seconds):
    return pytest.approx(tokens / seconds, rel=0.03)


def test_given_every_outcome_prepared_then_drafting_is_hidden_and_costs_nothing():
    figures = run(a_setup())

    assert figures.rounds_per_s == CLOSE(1 / VERIFY_S)
    assert figures.tokens_per_s == rate(TOKENS, VERIFY_S)
    assert (figures.hit, figures.hidden) == (1.0, CLOSE(1.0))
    assert figures.thrown_away == CLOSE(7 / 8)


def test_given_no_outcome_prepared_then_a_redraft_costs_what_sequential_drafting_does():
    ahead = run(a_setup(hit=0.0, way=Way("ahead", LEVELS, 8, redrafts=True)))
    sequential = run(a_setup(way=Way("sequential", LEVELS)))

    assert ahead.rounds_per_s == CLOSE(1 / (VERIFY_S + LEVELS * STEP_S))
    assert sequential.rounds_per_s == CLOSE(ahead.rounds_per_s)
    assert sequential.tokens_per_s == rate(TOKENS, VERIFY_S + LEVELS * STEP_S)
    assert (ahead.hit, ahead.wrong, sequential.hidden) == (0.0, 1.0, 0.0)


def test_given_no_outcome_prepared_and_no_redraft_then_it_is_plain_decoding():
    figures = run(a_setup(hit=0.0), num_rounds=2000)

    assert figures.tokens_per_s == rate(1.0, VERIFY_S)


def test_given_drafting_that_takes_no_time_then_overlapping_gives_nothing():
    free = replace(COSTS, step_s=0.0)

    ahead = run(a_setup(costs=free))
    sequential = run(a_setup(costs=free, way=Way("sequential", LEVELS)))

    assert ahead.tokens_per_s == CLOSE(sequential.tokens_per_s, rel=0.03)


def test_given_lanes_that_stop_each_other_then_a_round_is_the_sum_of_both():
    stopping = replace(COSTS, busy=1e9)

    figures = run(a_setup(costs=stopping))

    assert figures.rounds_per_s == CLOSE(1 / (VERIFY_S + (LEVELS + 1) * STEP_S), rel=1e-4)


def test_given_lanes_that_slow_each_other_then_the_closed_form_agrees():
    slowed = replace(COSTS, busy=1.27)

    figures = run(a_setup(costs=slowed))

    assert figures.rounds_per_s == CLOSE(1 / slowed.overlapped_s(5, 5 * STEP_S))
    assert figures.rounds_per_s < 0.95 * run(a_setup()).rounds_per_s  # the control


@pytest.mark.parametrize("redrafts", [True, False])
@pytest.mark.parametrize("num_rows", [1, 4])
def test_given_guesses_by_rank_then_the_closed_form_agrees(redrafts, num_rows):
    from lanes_setup import ranks_of

    law = PowerLaw(1.2)
    nearest = () if redrafts else (0.4, 0.7, 0.8, 0.8)
    costs = replace(COSTS, branch_s=1e-5, handover_s=2e-4, engine_s=1e-4)
    way = Way("ahead", LEVELS, 12, num_rows, redrafts)
    setup = a_setup(
        costs=costs, way=way, hit=None, bonus=ranks_of(law), exponent=1.2, nearest=nearest
    )
    expected = overlapped(costs, Yields(ACCEPTED, law, nearest), way)

    figures = run(setup)

    assert figures.hit == CLOSE(expected.hit, abs=0.02)
    assert figures.tokens_per_s == CLOSE(expected.tokens_per_s, rel=0.03)


def test_given_a_batch_then_only_a_redraft_makes_one_rows_miss_delay_another():
    waits = run(a_setup(hit=0.8, way=Way("ahead", LEVELS, 8, 8, redrafts=True)), 1000)
    goes_on = run(a_setup(hit=0.8, way=Way("ahead", LEVELS, 8, 8)), 1000)

    any_miss = 1 - 0.8**8
    assert waits.rounds_per_s == CLOSE(1 / (VERIFY_S + any_miss * LEVELS * STEP_S), rel=0.03)
    assert goes_on.rounds_per_s == CLOSE(1 / VERIFY_S, rel=0.01)


def test_given_drafting_longer_than_a_verification_then_partial_drafts_go_on_and_patience_waits():
    slow = replace(COSTS, step_s=3e-3)

    partial = run(a_setup(costs=slow))
    patient = run(a_setup(costs=slow, patience_s=float("inf")))

    assert (partial.partial, patient.partial) == (1.0, 0.0)
    assert patient.rounds_per_s == CLOSE(1 / (5 * 3e-3))
    assert VERIFY_S < 1 / partial.rounds_per_s < 5 * 3e-3


def test_given_a_drafter_far_too_slow_and_a_deadline_then_rounds_go_on_without_it():
    slow = replace(COSTS, step_s=100e-3)

    figures = run(a_setup(costs=slow, deadline_s=1e-3), num_rounds=500)

    assert figures.late > 0.9
    assert figures.rounds_per_s == CLOSE(1 / (VERIFY_S + 1e-3), rel=0.02)


def test_given_parallel_then_the_end_and_the_weakest_place_have_a_guess_each():
    from lanes_setup import shares_of

    # Given: tokens kept with 0.8, 0.75, 0.85, 0.7, so that the fourth is the weakest.
    setup = a_setup(way=Way("parallel", LEVELS), hit=None, bonus=(1.0,))
    rejected_third = replace(setup, accepted=(0.8, 0.75, 0.5, 0.7))

    assert shares_of(setup, setup.accepted) == [0, 0, 0, 1, 1]
    assert shares_of(rejected_third, rejected_third.accepted) == [0, 0, 1, 0, 1]
    assert shares_of(setup, ()) == [1]


@pytest.mark.parametrize("nearest", [(), (0.4, 0.7, 0.8, 0.8)])
def test_given_parallel_then_the_closed_form_of_its_two_exits_agrees(nearest):
    from lanes_setup import ranks_of

    law, costs = PowerLaw(1.4), replace(COSTS, branch_s=1e-4)
    way = Way("parallel", LEVELS, 2)
    setup = a_setup(costs=costs, way=way, hit=None, bonus=ranks_of(law), nearest=nearest)
    expected = overlapped(costs, Yields(ACCEPTED, law, nearest), way)

    figures = run(setup)

    assert figures.hit == CLOSE(expected.hit, abs=0.02)
    assert figures.tokens_per_s == CLOSE(expected.tokens_per_s, rel=0.03)


def test_given_parallel_then_what_a_branch_takes_is_paid_for_both():
    # Given: a level of one guess takes 2 ms, each further one 2 ms more; all four are waited for.
    costs = replace(COSTS, step_s=2e-3, branch_s=2e-3)

    figures = run(a_setup(costs=costs, way=Way("parallel", LEVELS), patience_s=float("inf")))

    assert figures.rounds_per_s == CLOSE(1 / (2e-3 + LEVELS * 4e-3))


def test_given_a_seed_then_figures_repeat_and_another_seed_differs():
    setup = a_setup(hit=0.7, jitter=(0.9, 1.0, 1.3))

    assert run(setup, 500, seed=1) == run(setup, 500, seed=1)
    assert run(setup, 500, seed=1) != run(setup, 500, seed=2)


def test_given_requests_that_end_then_last_drafts_are_cut_and_first_ones_met_a_miss():
    # Given: all that is drafted is kept, so a request of 12 takes rounds of 1 + 4 and a rest of 2;
    # after the cold first round, for which nothing was prepared, of 1: 1 + 5 + 5 + 1.
    whole = (1.0,) * LEVELS
    figures = run(a_setup(accepted=whole, requests=(12,), redraft_rate=0.0))

    assert figures.tokens_per_round == CLOSE(12 / 4, rel=1e-3)
    endless = run(a_setup(accepted=whole))
    assert endless.tokens_per_round == CLOSE(5.0)  # the control
    anew = run(a_setup(accepted=whole, requests=(12,), redraft_rate=1.0))
    assert anew.tokens_per_round == CLOSE(12 / 3, rel=1e-3)


def test_given_drafts_made_anew_then_their_own_acceptance_and_seconds_count():
    setup = a_setup(hit=0.5, redraft_rate=1.0, redraft_s=2e-3, redrafted=(0.0,) * LEVELS)

    figures = run(setup)

    assert figures.tokens_per_round == CLOSE((TOKENS + 1) / 2, rel=0.03)
    assert figures.rounds_per_s == CLOSE(1 / (VERIFY_S + 0.5 * 2e-3), rel=0.01)


def test_given_waits_that_are_learned_then_a_level_that_never_pays_is_not_waited_for():
    from forerun.control.patience import Patience

    slow = replace(COSTS, step_s=6e-3)
    rarely = (0.8, 0.01, 0.01, 0.01)

    learned = run(a_setup(costs=slow, accepted=rarely, learning=Patience), 1000)
    patient = run(a_setup(costs=slow, accepted=rarely, patience_s=float("inf")), 1000)

    assert learned.partial > 0.9
    assert learned.tokens_per_s > 1.3 * patient.tokens_per_s


A_RUN = {
    "schedule": "ahead", "verify_s": [9e-3, 10e-3, 11e-3], "step_s": 1e-3, "accepted": ACCEPTED,
    "hit_rate": 1.0, "num_branches": 8, "requests": [100000], "pass_s": [1e-3], "redrafted": [],
    "nearest": [], "redraft_rate": 0.0, "redraft_s": 0.0, "handover_s": 0.0,
    "tokens_per_s": TOKENS / VERIFY_S, "rounds_per_s": 1 / VERIFY_S, "tokens_per_round": TOKENS,
}  # fmt: skip


def validated(path, run, monkeypatch):
    from lanes_simulator import main

    path.write_text(json.dumps(run))
    out = path.with_suffix(".out")
    monkeypatch.setattr(sys, "argv", ["lanes", "validate", str(path), "--out", str(out)])
    status = main()
    return status, json.loads(out.read_text())["rows"][0]


@pytest.mark.parametrize("key", ["tokens_per_s", "rounds_per_s", "tokens_per_round"])
@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.3, 1)])
def test_given_a_measured_run_then_ten_percent_off_fails(
    tmp_path, monkeypatch, key, factor, status
):
    found, row = validated(tmp_path / "run.json", {**A_RUN, key: factor * A_RUN[key]}, monkeypatch)

    assert found == status
    assert row["far"] == [key] * status
    assert row["ratios"][key] == CLOSE(1 / factor, rel=0.03)


def test_given_errors_that_cancel_then_the_run_is_not_met(tmp_path, monkeypatch):
    # Given: tokens/s as simulated, of fewer and longer rounds than it says.
    wrong = {"rounds_per_s": 0.8 / VERIFY_S, "tokens_per_round": TOKENS / 0.8}

    status, row = validated(tmp_path / "run.json", A_RUN | wrong, monkeypatch)

    assert status == 1
    assert row["far"] == ["rounds_per_s", "tokens_per_round"]


def test_given_a_run_that_says_too_little_then_it_is_not_judged(tmp_path, monkeypatch, capsys):
    old = {key: value for key, value in A_RUN.items() if key not in ("requests", "redrafted")}

    status, row = validated(tmp_path / "run.json", old, monkeypatch)

    assert (status, row["lacks"]) == (1, ["requests", "redrafted"])
    assert "cannot be judged: the run does not say requests, redrafted" in capsys.readouterr().out


def test_given_rounds_then_a_run_of_them_says_where_they_ended_and_what_was_made_anew():
    from types import SimpleNamespace

    from lane_runs import Raced, measured_run
    from lanes_setup import lacking

    from forerun.stats import LaneStats, RoundStats

    def one(drafted, accepted, **lane):
        stats = LaneStats(num_passes=3, busy_s=3e-3, **lane)
        return RoundStats(1, drafted, accepted, 12e-3, 0.0, 10e-3, 0.0, lane=stats)

    # Given: 10 tokens; of the last round's room of one, the draft takes all and keeps it.
    rounds = [
        one(0, 0, num_cold=1),
        one(2, 0, num_cold=1),
        one(2, 2, num_hits=1),
        one(2, 1, num_wrong=1, num_redrafted=1, redraft_s=1e-3),
        one(1, 1, num_hits=1),
    ]
    done = SimpleNamespace(token_ids=[0] * 9, stats=SimpleNamespace(rounds=rounds))

    made = measured_run(Raced("one", "ahead:8", 2, is_chain=True), [done])

    assert lacking(made) == []
    assert made["requests"] == [8]
    assert (made["accepted"], made["redrafted"]) == ([1.0, 1.0], [1.0, 0.0])
    assert made["nearest"] == [0.0, 0.0]
    assert (made["redraft_rate"], made["redraft_s"]) == (0.5, 1e-3)
    assert made["step_s"] == CLOSE(1e-3)
    assert made["tokens_per_s"] == CLOSE(made["rounds_per_s"] * made["tokens_per_round"])


def test_given_a_run_with_a_key_that_nobody_reads_then_it_is_named():
    from lanes_setup import setup_of

    with pytest.raises(OptionError, match="hitrate"):
        setup_of({**A_RUN, "hitrate": 0.8})
    with pytest.raises(OptionError, match="verify_s"):
        setup_of({key: value for key, value in A_RUN.items() if key != "verify_s"})


def test_given_published_figures_then_the_step_they_imply_explains_their_gain():
    from lanes_devices import implied_steps

    rows = {row["acceptance"]: row for row in implied_steps()}

    assert rows[0.8]["most_gain"] < rows[0.8]["published_gain"]
    assert rows[0.9]["most_gain"] > rows[0.9]["published_gain"]
    assert 2e-3 < rows[0.9]["step_s"] < 2.6e-3


def test_given_assumptions_then_drafts_yield_the_published_tokens():
    from lanes_devices import TOKENS as PUBLISHED_TOKENS
    from lanes_devices import accepted_at

    for temperature, tokens in PUBLISHED_TOKENS.items():
        assert tokens_of(accepted_at(temperature)[:7]) == CLOSE(tokens, abs=0.01)
