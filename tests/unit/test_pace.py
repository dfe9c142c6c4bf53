"""The pace of drafting: as many tokens as pay, and none where none does."""

from __future__ import annotations

from collections.abc import Callable

from forerun.control.pace import Pace, Paces
from forerun.stats import RoundStats

LONGEST = 8


def played(
    pace: Pace, num_rounds: int, cost: Callable[[int], float], kept: Callable[[int], int]
) -> list[int]:
    """The lengths chosen over so many rounds of a machine and a drafter."""
    lengths = []
    for _ in range(num_rounds):
        drafted = pace.length
        lengths.append(drafted)
        pace.learn(RoundStats(1, drafted, min(drafted, kept(drafted)), cost(drafted), 0, 0, 0))
    return lengths


def flat(length: int) -> float:
    return 1.0 + 0.01 * length


def steep(length: int) -> float:
    return 1.0 + 0.9 * length


def everything(drafted: int) -> int:
    return drafted


def nothing(drafted: int) -> int:
    return 0


def test_given_free_verification_and_a_good_drafter_then_chains_grow_to_the_longest() -> None:
    lengths = played(Pace(LONGEST), 60, flat, everything)
    assert lengths[-1] == LONGEST


def test_given_dear_verification_and_a_bad_drafter_then_decoding_is_plain_but_for_rare_probes() -> (
    None
):
    lengths = played(Pace(LONGEST), 400, steep, nothing)
    late = lengths[100:]
    assert late.count(0) >= 0.95 * len(late)
    assert any(late)


def test_given_a_drafter_that_becomes_good_then_drafting_comes_back() -> None:
    pace = Pace(LONGEST)
    assert played(pace, 100, flat, nothing)[-1] == 0
    assert played(pace, 400, flat, everything)[-1] == LONGEST


def test_given_a_drafter_that_becomes_bad_then_drafting_stops() -> None:
    pace = Pace(LONGEST)
    assert played(pace, 100, steep, everything)[-1] >= 0
    assert played(pace, 100, steep, nothing)[-1] == 0


def test_given_a_machine_that_stalls_once_then_one_time_does_not_decide() -> None:
    pace = Pace(LONGEST)
    played(pace, 60, flat, everything)
    stalled = played(pace, 1, lambda length: 100.0, everything)
    assert stalled == [LONGEST]
    assert played(pace, 10, flat, everything)[-1] == LONGEST


def test_given_nothing_to_draft_then_plain_rounds_teach_only_their_cost() -> None:
    pace = Pace(LONGEST)
    before = pace.acceptance
    for _ in range(50):  # a lookup that finds nothing
        pace.learn(RoundStats(1, 0, 0, 1.0, 0, 0, 0))
    assert pace.acceptance == before
    assert 0 <= pace.length <= LONGEST


def block(length: int) -> float:
    """A drafter whose first token is dear and whose others cost next to nothing."""
    return 1.0 + (0.5 + 0.02 * length if length else 0.0)


def test_given_a_block_then_a_whole_one_is_looked_at_before_lengths_are_compared() -> None:
    lengths = played(Pace(LONGEST, (2, LONGEST)), 60, block, everything)
    assert LONGEST in lengths[:6]
    assert lengths[-1] == LONGEST


def test_control_given_one_probe_then_its_price_is_taken_for_that_of_every_token() -> None:
    def first_three(drafted: int) -> int:
        return min(drafted, 3)

    short = played(Pace(LONGEST), 12, block, first_three)
    both = played(Pace(LONGEST, (2, LONGEST)), 12, block, first_three)
    assert max(short[:5]) < LONGEST <= max(both[:5])


def test_given_probes_beyond_the_longest_then_it_chooses_all_the_same() -> None:
    assert played(Pace(2, (2, 9)), 40, flat, everything)[-1] == 2
    assert played(Pace(1, (2, 9)), 40, flat, everything)[-1] == 1


def test_given_rounds_of_many_rows_then_those_of_one_row_are_paced_as_before():
    paces, only = Paces(6), Pace(6)

    def round_of(num_rows, length, seconds):
        num = num_rows * length
        return RoundStats(num_rows, num, num // 2, seconds, 0.0, seconds, 0.0)

    for _ in range(60):
        alone, together = paces.length_for(1), paces.length_for(32)
        assert alone == only.length
        paces.learn(round_of(1, alone, 0.01))
        only.learn(round_of(1, alone, 0.01))
        # beside thirty others every drafted token costs as much as a plain round
        paces.learn(round_of(32, together, 0.03 * (1 + together)))

    assert paces.length_for(1) > 0
    assert paces.length_for(20) == paces.length_for(32) == 0
    assert paces.length_for(5) == 2  # nothing is known of five rows yet
