"""Loops and pairs: the definitions behind every speculation table."""

from __future__ import annotations

import pytest

from forerun.tools.loops import loop_share, looping
from forerun.tools.pairs import (
    Pair,
    Round,
    Run,
    num_without_loops,
    ratio_without_loops,
    speedup,
    tokens_per_s,
)


def test_a_token_loops_inside_a_repeated_4_gram() -> None:
    assert looping([1, 2, 3, 4, 5, 1, 2, 3, 4, 6]) == [False] * 5 + [True] * 4 + [False]


def test_three_equal_tokens_are_no_loop() -> None:
    assert not any(looping([1, 2, 3, 9, 1, 2, 3, 8]))
    assert looping([]) == []


def test_a_constant_text_loops_from_its_second_4_gram() -> None:
    assert looping([7] * 6) == [False] + [True] * 5


def test_the_share_counts_tokens_of_all_texts() -> None:
    assert loop_share([[1, 2, 3, 4], [7] * 6]) == pytest.approx(5 / 10)
    assert loop_share([]) == 0.0


def run_of(token_ids: list[int], *rounds: tuple[int, float]) -> Run:
    return Run(tuple(token_ids), tuple(Round(count, s, s / 10, s / 100) for count, s in rounds))


def pair_of(plain_s: float, speculative_s: float, num_tokens: int = 12) -> Pair:
    ids = list(range(num_tokens))
    plain = run_of(ids, *[(1, plain_s / num_tokens)] * num_tokens)
    return Pair(plain, run_of(ids, *[(3, speculative_s * 3 / num_tokens)] * (num_tokens // 3)))


def test_speed_is_tokens_of_rounds_over_median_time() -> None:
    runs = [[pair_of(seconds, 1.0).plain for seconds in (1.0, 2.0, 60.0)]]
    assert tokens_per_s(runs) == pytest.approx(12 / 2.0)


def test_the_ratio_compares_whole_sets_and_lies_in_its_interval() -> None:
    groups = [
        [pair_of(2.0, 1.0), pair_of(2.2, 1.0), pair_of(90.0, 1.0)],
        [pair_of(4.0, 2.0), pair_of(3.9, 2.0), pair_of(4.1, 2.1)],
    ]
    found = speedup(groups)
    assert found.ratio == pytest.approx((2.2 + 4.0) / (1.0 + 2.0))
    assert found.low <= found.ratio <= found.high


def test_equal_pairs_have_an_interval_of_one_point() -> None:
    found = speedup([[pair_of(3.0, 1.5)] * 3] * 4)
    assert (found.low, found.ratio, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_round_counts_by_its_tokens_outside_loops() -> None:
    looped = [1, 2, 3, 4, 1, 2, 3, 4]  # the second half loops
    plain = run_of(looped, *[(1, 1.0)] * 8)
    speculative = run_of(looped, (2, 1.0), (2, 1.0), (4, 1.0))
    assert plain.seconds_without_loops() == pytest.approx(4.0)
    assert speculative.seconds_without_loops() == pytest.approx(2.0)
    assert ratio_without_loops([[Pair(plain, speculative)]]) == pytest.approx(2.0)


def test_a_round_across_the_edge_counts_in_part() -> None:
    looped = [1, 2, 3, 4, 1, 2, 3, 4]
    assert run_of(looped, (3, 1.0), (4, 1.0), (1, 1.0)).seconds_without_loops() == pytest.approx(
        1.25
    )


def test_tokens_no_round_made_are_left_out() -> None:
    ids = [1, 2, 3, 4, 5]
    assert run_of(ids, (4, 1.0)).seconds_without_loops() == pytest.approx(1.0)


def test_other_tokens_are_noticed() -> None:
    assert pair_of(1.0, 1.0).is_identical
    assert not Pair(run_of([1, 2], (2, 1.0)), run_of([1, 3], (2, 1.0))).is_identical


def test_each_side_counts_its_own_tokens_outside_loops() -> None:
    ids = list(range(8))
    plain = run_of(ids, *[(1, 1.0)] * 7)  # the first round made one token, which is left out
    speculative = run_of(ids, (4, 4.0))  # here it made four: as fast, over fewer tokens
    assert ratio_without_loops([[Pair(plain, speculative)]]) == pytest.approx(1.0)
    assert num_without_loops([[Pair(plain, speculative)]]) == 4

    # The control: seconds alone would call the same speed a gain.
    assert plain.seconds_without_loops() / speculative.seconds_without_loops() > 1.5


def test_without_tokens_outside_loops_there_is_no_ratio() -> None:
    looped = run_of([7] * 9, (4, 1.0), (4, 1.0))
    assert looped.num_without_loops() == 0
    assert ratio_without_loops([[Pair(looped, looped)]]) is None
    assert num_without_loops([[Pair(looped, looped)]]) == 0
