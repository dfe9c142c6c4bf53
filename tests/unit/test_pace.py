"""The pace of drafting: as many tokens as pay, for each row, and none where none does."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from forerun.control.pace import Paces
from forerun.stats import RoundStats

LONGEST = 8


class Machine:
    """Rounds of rows on a clock of its own: `verify` of so many nodes, `draft` of so many rows in
    so many passes. `kept(row, drafted)` tokens are kept."""

    def __init__(
        self,
        verify: Callable[[int], float],
        kept: Callable[[int, int], int],
        draft: Callable[[int, int], float] = lambda rows, passes: 0.0,
    ) -> None:
        self.verify, self.kept, self.draft = verify, kept, draft
        self.seconds, self.num_tokens = 0.0, 0

    def round_of(self, paces: Paces, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """One round, and what is learned of it."""
        kept = [(row, num, self.kept(row, num)) for row, num in zip(rows, lengths, strict=True)]
        num_drafted, num_kept = sum(lengths), sum(one[2] for one in kept)
        num_drafting, passes = sum(num > 0 for num in lengths), max(lengths)
        verify_s = self.verify(len(rows) + num_drafted)
        draft_s = self.draft(num_drafting, passes) if num_drafting else 0.0
        stats = RoundStats(
            len(rows), num_drafted, num_kept, verify_s + draft_s, draft_s, verify_s, 0.0, passes
        )
        paces.learn(stats, kept)
        self.seconds += verify_s + draft_s
        self.num_tokens += num_kept + len(rows)


def played(
    paces: Paces, machine: Machine, num_rounds: int, rows: Sequence[int] = (0,)
) -> list[list[int]]:
    """The lengths chosen over so many rounds."""
    found = []
    for _ in range(num_rounds):
        found.append(paces.lengths_for(rows, len(rows)))
        machine.round_of(paces, rows, found[-1])
    return found


def flat(nodes: int) -> float:
    return 1.0 + 0.01 * nodes


def steep(nodes: int) -> float:
    return 0.1 + 0.9 * nodes


def like_a_cpu(nodes: int) -> float:
    """Bound by memory up to some nodes, by arithmetic beyond."""
    return max(20.0, 2.0 * nodes)


def everything(row: int, drafted: int) -> int:
    return drafted


def nothing(row: int, drafted: int) -> int:
    return 0


def by_chance(chance: Callable[[int], float]) -> Callable[[int, int], int]:
    """Each token is kept with its row's chance, if all before it were."""
    rng = random.Random(7)

    def kept(row: int, drafted: int) -> int:
        return next((n for n in range(drafted) if rng.random() >= chance(row)), drafted)

    return kept


half = by_chance(lambda row: 0.5)


most = by_chance(lambda row: 0.8)


# --- one row -------------------------------------------------------------------------------------


def test_given_free_verification_and_a_good_drafter_then_chains_grow_to_the_longest() -> None:
    assert played(Paces(LONGEST), Machine(flat, everything), 60)[-1] == [LONGEST]


def test_given_dear_verification_and_a_bad_drafter_then_decoding_is_plain_but_for_rare_probes() -> (
    None
):
    late = played(Paces(LONGEST), Machine(steep, nothing), 400)[100:]
    assert late.count([0]) >= 0.95 * len(late)
    assert any(lengths != [0] for lengths in late)


def test_given_a_drafter_that_becomes_good_then_drafting_comes_back() -> None:
    paces = Paces(LONGEST)
    assert played(paces, Machine(steep, nothing), 100)[-1] == [0]
    assert played(paces, Machine(flat, everything), 400)[-1] == [LONGEST]


def test_given_a_drafter_that_becomes_bad_then_drafting_stops() -> None:
    paces = Paces(LONGEST)
    assert played(paces, Machine(flat, everything), 100)[-1] == [LONGEST]
    assert played(paces, Machine(steep, nothing), 200)[-1] == [0]


def test_given_drafting_that_pays_then_a_plain_round_is_rare() -> None:
    late = played(Paces(LONGEST), Machine(flat, everything), 400)[10:]
    assert 3 <= late.count([0]) <= 8


def test_given_a_machine_that_stalls_once_then_one_time_does_not_decide() -> None:
    paces = Paces(LONGEST)
    played(paces, Machine(flat, everything), 60)
    assert played(paces, Machine(lambda nodes: 100.0, everything), 1) == [[LONGEST]]
    assert played(paces, Machine(flat, everything), 10)[-1] == [LONGEST]


def test_given_nothing_to_draft_then_plain_rounds_teach_only_their_cost() -> None:
    paces = Paces(LONGEST)
    before = paces.acceptance
    for _ in range(50):  # a lookup that finds nothing
        paces.lengths_for((0,), 1)
        paces.learn(RoundStats(1, 0, 0, 1.0, 0.0, 1.0, 0.0), [(0, 0, 0)])
    assert paces.acceptance == before
    assert paces.lengths_for((0,), 1) != [0]  # and when it finds something, it may draft


def block(rows: int, passes: int) -> float:
    """A drafter whose first token is dear and whose others cost nothing."""
    return 0.5


def test_given_a_block_then_a_whole_one_is_looked_at_before_lengths_are_compared() -> None:
    lengths = played(Paces(LONGEST, (2, LONGEST)), Machine(flat, everything, block), 60)
    assert [LONGEST] in lengths[:6]
    assert lengths[-1] == [LONGEST]


def test_given_probes_beyond_the_longest_then_it_chooses_all_the_same() -> None:
    assert played(Paces(2, (2, 9)), Machine(flat, everything), 40)[-1] == [2]
    assert played(Paces(1, (2, 9)), Machine(flat, everything), 40)[-1] == [1]


# --- many rows -----------------------------------------------------------------------------------


def slow_passes(rows: int, passes: int) -> float:
    """A tenth of the target's passes."""
    return 0.1 * passes * like_a_cpu(rows)


@pytest.mark.parametrize("num_rows", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.5, 0.8])
def test_given_any_crowd_then_it_is_about_as_fast_as_the_best_length(
    num_rows: int, chance: float
) -> None:
    machine = Machine(like_a_cpu, by_chance(lambda row: chance), slow_passes)
    played(Paces(LONGEST), machine, 800, range(num_rows))
    best = max(expected_rate(chance, num_rows, length) for length in range(LONGEST + 1))
    assert machine.num_tokens / machine.seconds >= 0.95 * best


def expected_rate(chance: float, num_rows: int, length: int) -> float:
    """Tokens a second on that machine, if every row always drafts so many."""
    tokens = num_rows * sum(chance**depth for depth in range(length + 1))
    draft_s = slow_passes(num_rows, length) if length else 0.0
    return tokens / (like_a_cpu(num_rows * (1 + length)) + draft_s)


def test_control_given_lengths_that_fit_one_row_then_a_crowd_is_slower_by_far() -> None:
    best_alone = max(range(LONGEST + 1), key=lambda length: expected_rate(0.5, 1, length))
    assert expected_rate(0.5, 32, best_alone) < 0.7 * expected_rate(0.5, 32, 0)


def test_given_a_crowd_that_cannot_draft_then_almost_nothing_is_asked_for() -> None:
    machine = Machine(like_a_cpu, half, slow_passes)
    asked = [sum(lengths) for lengths in played(Paces(LONGEST), machine, 400, range(32))]
    assert sum(asked) <= 0.02 * 32 * 400
    assert max(asked[20:]) <= 2 * 2  # a look is one of two rows of thirty-two


def test_control_given_nodes_that_are_free_then_a_crowd_drafts() -> None:
    def free(nodes: int) -> float:
        return 20.0

    asked = played(Paces(LONGEST), Machine(free, half), 100, range(32))
    assert sum(asked[-1]) > 32


def test_given_a_crowd_that_leaves_then_the_next_rounds_draft_and_back_again() -> None:
    paces, machine = Paces(LONGEST), Machine(like_a_cpu, most, slow_passes)
    played(paces, machine, 60, range(32))
    assert sum(map(sum, played(paces, machine, 30, range(2))[10:])) > 20 * 2
    assert sum(map(sum, played(paces, machine, 30, range(32))[10:])) < 20


def test_given_costs_seen_beside_few_then_a_crowd_is_not_probed_to_learn_them() -> None:
    paces, machine = Paces(LONGEST), Machine(like_a_cpu, half, slow_passes)
    for num_rows in (1, 2, 4, 8, 16):
        played(paces, machine, 60, range(num_rows))
    asked = [sum(lengths) for lengths in played(paces, machine, 30, range(32))]
    assert sum(asked) <= 16


def test_given_rows_of_unlike_luck_then_the_lucky_ones_draft_more() -> None:
    def by_row(row: int, drafted: int) -> int:
        return drafted if row == 0 else 0

    lengths = played(Paces(LONGEST), Machine(like_a_cpu, by_row, slow_passes), 100, range(4))[-1]
    assert lengths[0] > 2
    assert lengths[0] > max(lengths[1:])


def test_given_a_row_that_ended_then_nothing_of_it_is_remembered() -> None:
    paces = Paces(LONGEST)
    played(paces, Machine(flat, everything), 20, range(3))
    for row in range(3):
        paces.forget(row)
    assert paces._chances.num_rows == 0
    paces.forget(99)


def test_given_rounds_with_prompts_in_them_then_they_teach_no_cost() -> None:
    paces = Paces(LONGEST)
    for _ in range(20):
        paces.lengths_for((0,), 1)
        paces.learn(RoundStats(1, 0, 0, 9.0, 0.0, 9.0, 0.0), [(0, 0, 0)], is_steady=False)
    assert paces.lengths_for((0,), 1) == [0]  # still to be seen what a plain round costs


def test_given_a_drafter_that_still_reads_then_its_seconds_are_no_price_of_drafting() -> None:
    paces, machine = Paces(LONGEST), Machine(flat, everything)
    played(paces, machine, 20, (0, 1))
    lengths = paces.lengths_for((0, 1), 2)
    num, first = sum(lengths), lengths[0]
    stats = RoundStats(2, first, first, 99.0, 90.0, 1.0, 0.0, num_draft_passes=max(1, first))
    paces.learn(stats, [(0, first, first), (1, 0, 0)])
    assert num > first
    assert played(paces, machine, 2, (0, 1))[-1] == lengths
