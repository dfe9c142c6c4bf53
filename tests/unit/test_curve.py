"""A curve of costs: what was measured, what lies between, and what is not believed."""

from __future__ import annotations

import random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.control.curve import Curve


def curve_of(*times: tuple[int, float]) -> Curve:
    curve = Curve()
    for size, seconds in times:
        curve.take(size, seconds)
    return curve


def test_given_two_sizes_then_those_between_lie_on_a_line():
    curve = curve_of((4, 10.0), (8, 14.0))
    assert [curve.at(size) for size in (4, 5, 6, 8)] == [10.0, 11.0, 12.0, 14.0]


def test_given_sizes_beyond_all_then_it_goes_on_as_steeply_as_it_ended():
    curve = curve_of(*[(1, 10.0), (8, 10.0), (16, 18.0)] * 20)
    assert curve.at(32) == pytest.approx(34.0, rel=0.05)


def test_given_times_that_fall_then_beyond_them_nothing_gets_cheaper():
    curve = curve_of((1, 10.0), (2, 9.0))
    assert 9.0 <= curve.at(1) <= curve.at(2) == curve.at(64) <= 10.0


def test_given_sizes_below_all_then_half_of_the_time_is_there_at_any_size():
    assert curve_of((32, 10.0)).at(0) == 5.0
    assert curve_of((32, 10.0)).at(16) == 7.5


def test_given_one_stall_then_it_counts_as_little_as_it_says():
    curve = curve_of(*[(4, 10.0)] * 10, (4, 1000.0))
    assert curve.at(4) <= 10.5


def test_given_a_stall_as_the_first_time_of_a_size_then_others_are_believed():
    curve = curve_of((4, 10.0), (8, 1000.0))
    assert curve.at(8) <= 1.5 * 2 * 10.0


def test_given_a_new_pace_of_the_machine_then_the_mean_follows():
    curve = curve_of(*[(4, 10.0)] * 30, *[(4, 20.0)] * 30)
    assert curve.at(4) == pytest.approx(20.0, rel=0.03)


def noisy(num_times: int) -> list[tuple[int, float]]:
    """Times of some sizes on a machine on which a size costs one, with nine besides."""
    rng = random.Random(5)
    return [(size, (9.0 + size) * rng.lognormvariate(0.0, 0.15))
            for _ in range(num_times) for size in range(1, 17)]  # fmt: skip


def test_given_noise_then_the_luckiest_size_is_not_believed():
    # given few times of every size
    curve = curve_of(*noisy(3))
    # then none is expected to take much less than it does
    assert min(curve.at(size) / (9.0 + size) for size in range(1, 17)) > 0.9


def test_control_given_noise_then_a_mean_for_each_size_has_a_lucky_one():
    times = noisy(3)
    means = [fmean(seconds for one, seconds in times if one == size) for size in range(1, 17)]
    assert min(mean / (9.0 + size) for size, mean in enumerate(means, start=1)) < 0.85


def test_given_a_step_that_was_seen_often_then_it_is_no_noise():
    rng = random.Random(3)
    curve = curve_of(*[
        (size, (20.0 if size <= 8 else 30.0) * rng.lognormvariate(0.0, 0.1))
        for _ in range(60) for size in range(6, 12)
    ])  # fmt: skip
    assert curve.at(8) == pytest.approx(20.0, rel=0.05)
    assert curve.at(9) == pytest.approx(30.0, rel=0.05)


def test_given_a_size_that_was_never_seen_then_it_is_doubted_more_than_its_neighbours():
    curve = curve_of(*[(4, 10.0), (8, 14.0)] * 30)
    seen, between, beyond = curve.doubts(np.array([4.0, 6.0, 16.0]))
    assert seen < between
    assert seen < beyond


def test_given_a_size_near_a_known_one_then_it_is_known_and_a_far_one_is_not():
    curve = curve_of((16, 1.0))
    assert curve.knows(16)
    assert curve.knows(18)
    assert not curve.knows(32)
    assert not curve.knows(4)
    assert not Curve().knows(1)


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 1e3)), max_size=40))
def test_given_any_times_then_every_size_has_some_that_are_finite_and_not_negative(times):
    curve = curve_of(*times)
    assert all(0.0 <= curve.at(size) < 1e9 for size in range(400))
    assert curve.is_empty == (not times)
