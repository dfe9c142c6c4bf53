"""One memory, two models: the inequality in figures of a machine, and what a hand-over takes."""

from __future__ import annotations

import time

import pytest

from forerun.control.lane_trial import handover_s
from forerun.control.memory import Bandwidths, measured_bandwidths

PLAIN = Bandwidths(  # 520 MB and 52 MB, 17.5 GB/s a core, both 27.65, 13.8 beside one another
    520_000_000, 52_000_000, 17.5e9, 27.65e9, 13.8e9, 17.5e9, 27.65e9
)


class Model:
    """A backend on cores that read at given rates, slower while another reads."""

    def __init__(self, weight_bytes, cores, rates, seen):
        self.weight_bytes, self.cores, self.rates, self.seen = weight_bytes, cores, rates, seen

    def reader(self, cores):
        def read(num_bytes):
            self.seen.append((cores, num_bytes))
            time.sleep(1e-3)  # others run
            return self.rates[len(cores)] * (1 if num_bytes > 1 << 20 else 4)

        return read


def test_given_two_models_in_one_memory_then_ahead_is_the_longer_round():
    memory = PLAIN.memory(4)

    assert memory.draft == pytest.approx(0.4)
    assert memory.sequential == pytest.approx(1.4 / 1.58)
    assert memory.ahead == pytest.approx(1 + 0.4 * (17.5 / 13.8 - 1))
    assert "s = 0.40" in PLAIN.line(4)
    assert "1.11 > sequential on all 0.89" in PLAIN.line(4)


def test_control_given_a_drafter_in_a_cache_and_a_target_that_one_core_feeds_then_ahead_wins():
    # one core saturates the memory, the drafter rests in a cache: nothing is taken from the target
    quiet = Bandwidths(520_000_000, 52_000_000, 17e9, 17.5e9, 17e9, 40e9, 40e9)

    memory = quiet.memory(8)

    assert memory.ahead < memory.sequential
    assert " < sequential" in quiet.line(8)


def test_given_backends_then_each_is_read_in_its_own_size_within_a_limit():
    seen = []
    rates = {1: 10e9, 2: 16e9}
    target = Model(1 << 40, (3, 5), rates, seen)
    drafter = Model(1 << 18, (3,), rates, seen)

    found = measured_bandwidths(target, drafter)

    assert found is not None
    assert (found.one, found.all, found.draft_one) == (10e9, 16e9, 40e9)
    assert found.beside <= found.one
    assert {cores for cores, _ in seen} == {(3,), (5,), (3, 5)}
    assert max(size for _, size in seen) <= 100 << 20
    assert ((5,), 1 << 18) in seen


def test_given_one_core_then_there_is_nothing_to_compare():
    model = Model(1 << 20, (0,), {1: 1e9}, [])

    assert measured_bandwidths(model, model) is None


def test_given_hand_overs_then_their_median_is_told_and_the_first_is_left_out(own_time):
    waits, passes = iter([0.05] + [2e-3] * 40), []

    found = handover_s(lambda: own_time.sleep(next(waits)), lambda: passes.append(1))

    assert found == pytest.approx(2e-3)
    assert len(passes) > 5
