"""Drafting while verifying, in formulas: the published ones, the inequality, and what is best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from forerun.control.outcomes import (
    PowerLaw,
    accepted_of,
    exits_of,
    hit_rate,
    spread,
    stationary,
    tokens_of,
)
from forerun.control.overlap import (
    AHEAD,
    PARALLEL,
    SEQUENTIAL,
    LaneCosts,
    OneMemory,
    PublishedAhead,
    PublishedSequential,
    Way,
    Yields,
    best_overlapped,
    best_sequential,
    compared,
    levels_worth_waiting,
    overlapped,
    published_gain,
)
from forerun.errors import OptionError
from forerun.schedules.parallel import Parallel

chances = some.floats(0.01, 0.99)
# Accepted lengths of Qwen3-8B with 0.6B, K = 7, as published.
HISTOGRAM = np.array([0.247, 0.159, 0.115, 0.079, 0.059, 0.046, 0.038, 0.257])
COSTS = LaneCosts(
    verify=((1, 16e-3), (17, 16e-3)), step_s=1e-3, branch_s=1e-5, num_reads=1,
    wide_verify=((1, 10e-3), (17, 10e-3)), wide_step_s=0.8e-3,
)  # fmt: skip
YIELDS = Yields((0.8,) * 8, PowerLaw(1.4))


def geometric_shares(acceptance, num_levels, exponent):
    """Shares `[K+1]` of Theorem 12 of SSD (arXiv:2603.03251), the closed form for one acceptance.

    F_k = F_0 a^(k / (1 + r)), and for all accepted F_0 a^(K / (1 + r)) (1 - a)^(-1 / (1 + r)).
    """
    power = 1.0 / (1.0 + exponent)
    weights = acceptance ** (power * np.arange(num_levels + 1, dtype=np.float64))
    weights[-1] *= (1.0 - acceptance) ** -power
    return weights / weights.sum()


def best_spread(exits, num_branches, bonus):
    """The whole numbers of the highest hit rate: branch by branch where it adds most.

    That is the optimum because each further guess at an exit adds less than the one before.
    """
    chances = np.asarray(exits, np.float64)
    found = np.zeros(len(chances), np.int64)
    for _ in range(num_branches):
        found[int(np.argmax(chances * (bonus.hits(found + 1) - bonus.hits(found))))] += 1
    return found


@given(chances, chances, some.floats(1, 8))
def test_given_the_backup_is_the_primary_then_ahead_is_never_slower(hit, draft, tokens):
    sequential = PublishedSequential(tokens, draft)
    ahead = PublishedAhead(hit, tokens, tokens, draft, draft)

    assert published_gain(ahead, sequential) > 1.0
    assert published_gain(ahead, sequential) <= 1.0 + draft + 1e-12


def test_given_branches_that_cost_time_then_the_same_drafter_ahead_can_be_slower():
    sequential = PublishedSequential(4.0, 0.3)

    assert published_gain(PublishedAhead(0.9, 4.0, 4.0, 1.4, 0.3), sequential) < 1.0


def test_given_a_backup_that_yields_more_then_the_published_bound_does_not_hold():
    sequential = PublishedSequential(3.0, 0.3)
    bound = (1.0 + 0.3) * 3.0 / 3.0

    assert published_gain(PublishedAhead(0.1, 3.0, 4.0, 0.3, 0.0), sequential) > bound
    assert published_gain(PublishedAhead(0.1, 3.0, 3.0, 0.3, 0.0), sequential) <= bound


def test_given_many_rows_then_one_miss_of_any_delays_all():
    alone = PublishedAhead(0.8, 4.0, 2.0, 0.5, 0.5)
    many = replace(alone, num_rows=10_000)

    assert alone.speed_up == pytest.approx((0.8 * 4 + 0.2 * 2) / (0.8 + 0.2 * 1.5))
    assert many.speed_up == pytest.approx((0.8 * 4 + 0.2 * 2) / 1.5)


@given(chances, chances)
def test_given_a_chance_after_a_hit_and_after_a_miss_then_the_share_reproduces_itself(after, rare):
    hit, miss = stationary(np.array([[after, 1 - after], [rare, 1 - rare]]))

    assert hit == pytest.approx(rare / (1 - after + rare))
    assert hit + miss == pytest.approx(1.0)


def test_given_states_that_are_never_left_or_left_at_once_then_there_are_shares_still():
    assert stationary(np.eye(2)) == pytest.approx([1.0, 0.0])
    assert stationary(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx([0.5, 0.5])


@given(some.floats(0.05, 3), some.floats(1, 2))
def test_given_two_cores_and_one_memory_then_ahead_is_never_faster(draft, scaling):
    memory = OneMemory(draft, scaling)

    excess = abs(1 - draft) * (1 - 1 / scaling)
    assert memory.ahead - memory.sequential == pytest.approx(excess, abs=1e-12)


def test_given_a_drafter_that_takes_nothing_from_the_memory_then_ahead_wins():
    # The control: without the slow-down the same arithmetic says the opposite.
    assert OneMemory(0.8, 1.58, busy=1.0).ahead < OneMemory(0.8, 1.58, busy=1.0).sequential


@given(some.lists(chances, min_size=1, max_size=8))
def test_given_exits_then_their_chances_are_told_back(accepted):
    exits = exits_of(accepted)

    assert exits.sum() == pytest.approx(1.0)
    assert accepted_of(exits) == pytest.approx(accepted)
    assert tokens_of(accepted) == pytest.approx(1 + exits @ np.arange(len(exits)))


@given(chances, some.integers(1, 10), some.floats(0.3, 3), some.integers(1, 64))
def test_given_one_acceptance_then_the_general_shares_are_the_published_closed_form(
    acceptance, levels, exponent, branches
):
    exact = branches * geometric_shares(acceptance, levels, exponent)
    whole = spread(exits_of([acceptance] * levels), branches, exponent)

    assert whole.sum() == branches
    assert np.all(np.abs(whole - exact) < 1.0)


def test_given_the_worked_numbers_then_they_come_out():
    small, large = 20 * geometric_shares(0.64, 4, 1.0), 24 * geometric_shares(0.9, 7, 1.0)

    assert small == pytest.approx([5.5, 4.4, 3.5, 2.8, 3.8], abs=0.05)
    assert large == pytest.approx([2.9, 2.8, 2.6, 2.5, 2.4, 2.3, 2.1, 6.4], abs=0.06)


def test_given_the_published_histogram_then_shares_by_chance_beat_uniform_ones():
    published = PowerLaw(1.0, offset=0.0)
    uniform = np.full(8, 3)

    assert hit_rate(HISTOGRAM / HISTOGRAM.sum(), uniform, published) == pytest.approx(
        0.667, abs=1e-3
    )
    assert hit_rate(HISTOGRAM / HISTOGRAM.sum(), spread(HISTOGRAM, 24, 1.0), published) > 0.69


@given(some.lists(chances, min_size=2, max_size=6), some.integers(1, 40), some.floats(0.5, 2))
def test_given_branch_by_branch_then_no_other_whole_numbers_hit_more(accepted, branches, exponent):
    exits, bonus = exits_of(accepted), PowerLaw(exponent)
    best = hit_rate(exits, best_spread(exits, branches, bonus), bonus)

    assert best >= hit_rate(exits, spread(exits, branches, exponent), bonus) - 1e-12
    assert best >= hit_rate(exits, np.bincount([0] * branches, minlength=len(exits)), bonus) - 1e-12


def test_given_the_published_law_then_one_guess_never_hits_and_the_shifted_law_mends_it():
    assert PowerLaw(1.4, offset=0.0).hit(1) == 0.0
    assert PowerLaw(1.4).hit(1) > 0.5
    assert PowerLaw(1.4).hit(0) == 0.0


def test_given_a_measured_hit_rate_then_the_law_goes_through_it():
    assert PowerLaw.through(0.8, 3).hit(3) == pytest.approx(0.8)
    with pytest.raises(OptionError, match="no power law"):
        PowerLaw.through(1.0, 3)


def test_given_nothing_is_likely_then_no_branch_is_spread():
    assert spread([0.0, 0.0], 5, 1.0).tolist() == [0, 0]


def test_given_both_lanes_at_work_then_a_verification_is_slowed_for_as_long_as_drafting_runs():
    costs = replace(COSTS, busy=1.25)

    assert costs.overlapped_s(5, 0.0) == pytest.approx(16e-3)
    assert costs.overlapped_s(5, 10e-3) == pytest.approx(18e-3)
    assert costs.overlapped_s(5, 20e-3) == pytest.approx(20e-3)
    assert costs.overlapped_s(5, 30e-3) == pytest.approx(30e-3)


def test_given_a_plain_two_core_machine_then_sequential_is_chosen_and_says_why():
    costs = replace(COSTS, busy=1.27)

    chosen = compared(costs, YIELDS)

    assert chosen.best.way.schedule == SEQUENTIAL
    assert chosen.reason.startswith(f"sequential, {chosen.best.way.num_levels} deep:")
    assert [one.way.schedule for one in chosen.each] == [SEQUENTIAL, PARALLEL, AHEAD]


def test_given_lanes_that_the_target_cannot_use_then_ahead_is_chosen_and_says_how():
    costs = replace(COSTS, wide_verify=(), wide_step_s=None)

    chosen = compared(costs, YIELDS)

    assert chosen.best.way.schedule == AHEAD
    assert chosen.best.tokens_per_s > 1.1 * chosen.each[0].tokens_per_s
    way = chosen.best.way
    assert chosen.reason.startswith(f"ahead:{way.num_branches}, {way.num_levels} deep:")


def test_given_a_tie_then_the_simpler_schedule_is_chosen():
    free = LaneCosts(verify=((1, 1e-2),), step_s=0.0)

    chosen = compared(free, Yields((0.8,) * 4, PowerLaw(1.4)))

    assert chosen.best.way.schedule == SEQUENTIAL


def test_given_all_hits_none_hidden_and_free_branches_then_rates_are_the_closed_ones():
    costs = LaneCosts(verify=((1, 10e-3),), step_s=1e-3, num_reads=0)
    sure, never = PowerLaw(60.0), PowerLaw(1e-12)
    own = Way(AHEAD, 4, 5, redrafts=True)

    all_hit = overlapped(costs, Yields((0.8,) * 4, sure), own)
    none_hit = overlapped(costs, Yields((0.8,) * 4, never), own)

    assert all_hit.tokens_per_s == pytest.approx(tokens_of([0.8] * 4) / 10e-3)
    assert none_hit.tokens_per_s == pytest.approx(tokens_of([0.8] * 4) / 14e-3)


def test_given_parallel_then_both_of_its_exits_are_costed_with_one_guess_each():
    # given a chain whose second token is its weakest
    chances = (0.9, 0.4, 0.8)
    exits, bonus = exits_of(chances), PowerLaw(1.4)

    found = overlapped(COSTS, Yields(chances, bonus), Way(PARALLEL, 3, 2, redrafts=True))
    chosen = best_overlapped(COSTS, Yields(chances, bonus), PARALLEL, 24)

    # then outcomes are found there that are refused after the first, and those all accepted
    assert found.hit == pytest.approx((exits[1] + exits[3]) * bonus.hit(1))
    # ... and what the drafter pays for is what the schedule asks for
    assert chosen.way.num_branches == Parallel().num_branches == 2


def test_given_parallel_and_nothing_drafted_then_its_two_exits_are_one():
    bonus = PowerLaw(1.4)

    found = overlapped(COSTS, Yields((), bonus), Way(PARALLEL, 0, 2, redrafts=True))

    assert found.hit == pytest.approx(bonus.hit(1))


def test_given_dear_branches_then_fewer_are_prepared():
    cheap = best_overlapped(COSTS, YIELDS, AHEAD, 24)
    dear = best_overlapped(replace(COSTS, branch_s=5e-4), YIELDS, AHEAD, 24)

    assert dear.way.num_branches < cheap.way.num_branches


def test_given_dear_steps_then_drafts_are_shorter_and_in_the_end_there_are_none():
    near = best_sequential(replace(COSTS, wide_step_s=1e-4), YIELDS)
    far = best_sequential(replace(COSTS, wide_step_s=4e-3), YIELDS)
    none = best_sequential(replace(COSTS, wide_step_s=1.0), YIELDS)

    assert near.way.num_levels > far.way.num_levels > none.way.num_levels == 0


def test_given_chances_and_a_rate_then_levels_are_waited_for_while_they_pay():
    reach = np.cumprod([0.8] * 6)

    assert levels_worth_waiting(reach, level_s=1e-3, rate=500.0) == 3
    assert levels_worth_waiting(reach, level_s=1e-3, rate=900.0) == 0
    assert levels_worth_waiting(reach, level_s=1e-3, rate=500.0, first_s=2e-3) == 0
    assert levels_worth_waiting([], level_s=1e-3, rate=1.0) == 0


def test_given_costs_that_cannot_be_then_it_is_said():
    with pytest.raises(OptionError, match="verify is empty"):
        LaneCosts(verify=(), step_s=1e-3)
    with pytest.raises(OptionError, match="busy is"):
        replace(COSTS, busy=0.9)
