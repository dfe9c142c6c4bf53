"""What a forecast read of the branch that came is not read again: the next one has the same bits,
and reads what is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from builders import EVERY_PATH, opened, require_same_bits
from test_foresee import CHAIN, LIKELIEST, WIDE, after, below_of, forecast_of, random_tree
from test_grow import BLOCKS, CHECKPOINT, KEPT, NEW, PARAMS, known_text, plainly, read_texts

from forerun.draft import Draft
from forerun.drafters.carrying import Kept, Winner, winner_of
from forerun.forecast import Carried, ForecastPlan, cut, subtree
from forerun.protocols import Growth, GrowthPlan, Sampler

GROWTHS = [WIDE, CHAIN, LIKELIEST]
NUM_GUESSES = 6


@dataclass(frozen=True)
class Came:
    """A row's outcome: the tokens kept, the draft that was prepared for it, and what is held."""

    made: list[int]
    winner: Winner
    draft: Draft
    kept: Kept


def first_plan(rows: Sequence[int], growth: Growth, which: int = 1) -> ForecastPlan:
    samplers = [Sampler(PARAMS[(which + row) % 5], 7 + row) for row in rows]
    below = replace(below_of(rows, growth), samplers=samplers)
    trees = [random_tree(row, (0, 0, 1, 3), which) for row in rows]
    return forecast_of(below, trees, num_branches=[NUM_GUESSES] * len(rows), num_offers=8)


def guesses(draft: Draft, num_verified: int) -> list[int]:
    """Guesses below which something was read."""
    assert draft.expanded is not None
    parents, expanded = draft.tree.parents.tolist(), set(draft.expanded.tolist())
    found = [n for n in range(num_verified, len(parents)) if parents[n] < num_verified]
    return [n for n in found if n in expanded]


def came(backend: Any, plan: ForecastPlan, drafts: Sequence[Draft], at: int) -> list[Came]:
    """Of every row the `at`-th guess comes: its accepted path is text, and its branch is held."""
    outcomes = []
    for index, draft in enumerate(drafts):
        every = guesses(draft, len(plan.trees[index]))
        node = every[at % len(every)]
        path = draft.tree.path(node)[1:]
        made = draft.tree.tokens[path].tolist()
        winner = winner_of(draft, num_known(plan.below, index), made)
        assert winner is not None
        assert winner.nodes[0] == node
        assert backend.keep(plan.below, index, path[:-1])
        num_held, held = backend.take(plan.below, index, winner.nodes)
        assert num_held == len(winner.nodes)
        kept = Kept.of(winner, draft.tree, num_held, held)
        next_draft = cut(subtree(draft, node, made[-1]), 5, 3)
        outcomes.append(Came(made, winner, next_draft, kept))
    return outcomes


def num_known(below: GrowthPlan, row: int) -> int:
    start, end = below.catch_up_starts[row : row + 2].tolist()
    return int(below.committed[row]) + end - start


def next_plan(plan: ForecastPlan, outcomes: Sequence[Came]) -> ForecastPlan:
    """The forecast of the round that follows; only the bonus of each row is unread."""
    known = [num_known(plan.below, at) + len(one.made) for at, one in enumerate(outcomes)]
    below = replace(
        plan.below,
        catch_up=np.array([one.made[-1] for one in outcomes], np.int32),
        catch_up_starts=np.arange(len(outcomes) + 1, dtype=np.int32),
        committed=np.array(known, np.int32) - 1,
        samplers=[
            after(sampler, one.made)
            for sampler, one in zip(plan.below.samplers, outcomes, strict=True)
        ],
        acceptance=plan.below.acceptance[::-1].copy(),  # other figures have been learned since
    )
    trees = [one.draft.tree for one in outcomes]
    return forecast_of(below, trees, num_branches=[NUM_GUESSES] * len(trees), num_offers=8)


def carried(plan: ForecastPlan, outcomes: Sequence[Came]) -> list[Carried | None]:
    return [
        one.kept.carried(num_known(plan.below, at), one.draft.tree)
        for at, one in enumerate(outcomes)
    ]


def require_all_bits(found: Draft, expected: Draft) -> None:
    assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
    assert found.tree.parents.tolist() == expected.tree.parents.tolist()
    for name in ("ranks", "expanded"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    for name in ("scores", "margins"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None)
        if left is not None:
            require_same_bits(left, right, name)


# --- the same bits, fewer nodes ------------------------------------------------------------------


@pytest.mark.parametrize("isa", EVERY_PATH)
@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("threads", [1, 2])
def test_given_a_branch_that_came_then_the_next_forecast_is_that_which_reads_it_again(
    isa: str, growth: Growth, threads: int
) -> None:
    rows = [2, 0, 3]
    for at in range(NUM_GUESSES):
        with opened(CHECKPOINT, isa=isa, threads=threads) as backend:
            # given a verdict that ends with one of the guesses of a forecast
            read_texts(backend, rows)
            plan = first_plan(rows, growth, at)
            outcomes = came(backend, plan, backend.foresee(plan), at)
            following = next_plan(plan, outcomes)
            # when what was read of it is read again, and when it is not
            before = backend.num_computed
            anew = backend.foresee(following)
            num_anew = backend.num_computed - before
            found = backend.foresee(replace(following, carried=carried(following, outcomes)))
            num_found = backend.num_computed - before - num_anew
        # then all is the same to the bit, and read is only what was not read before
        for one, other in zip(found, anew, strict=True):
            require_all_bits(one, other)
        num_held = sum(
            int(np.count_nonzero(one.nodes >= 0))
            for one in carried(following, outcomes)
            if one is not None
        )
        assert num_held >= len(rows)
        assert num_found == num_anew - num_held


def test_given_other_passes_in_between_then_what_is_held_stays_what_it_is() -> None:
    rows = [1, 3]
    with opened(CHECKPOINT) as backend:
        texts = read_texts(backend, rows)
        plan = first_plan(rows, CHAIN)
        outcomes = came(backend, plan, backend.foresee(plan), 1)
        following = next_plan(plan, outcomes)
        anew = backend.foresee(following)
        # when another text was read, and a tree was grown for somebody, in between
        other = type(texts[0])(backend, BLOCKS[2])
        other.read(list(range(40)))
        backend.grow(below_of([0], WIDE))
        found = backend.foresee(replace(following, carried=carried(following, outcomes)))
    for one, two in zip(found, anew, strict=True):
        require_all_bits(one, two)


def test_given_one_row_that_missed_then_it_is_read_and_the_other_is_not() -> None:
    rows = [2, 1]
    with opened(CHECKPOINT) as backend:
        read_texts(backend, rows)
        plan = first_plan(rows, WIDE)
        outcomes = came(backend, plan, backend.foresee(plan), 2)
        following = next_plan(plan, outcomes)
        anew = backend.foresee(following)
        one = carried(following, outcomes)[1]
        found = backend.foresee(replace(following, carried=[None, one]))
    for left, right in zip(found, anew, strict=True):
        require_all_bits(left, right)


@pytest.mark.parametrize("isa", EVERY_PATH)
def test_given_a_carried_draft_then_what_is_kept_of_it_is_text(isa: str) -> None:
    # a second verdict keeps a path through nodes that were carried, and through one that was read
    rows = [1, 2, 3]
    with opened(CHECKPOINT, isa=isa) as backend:
        texts = read_texts(backend, rows)
        plan = first_plan(rows, CHAIN)
        outcomes = came(backend, plan, backend.foresee(plan), 0)
        following = next_plan(plan, outcomes)
        following = replace(following, carried=carried(following, outcomes))
        again = came(backend, following, backend.foresee(following), 3)
        for row, text, one, two in zip(rows, texts, outcomes, again, strict=True):
            made = [*one.made, *two.made[:-1]]
            text.committed = KEPT[row] + NEW[row] + len(made)
            require_same_bits(
                text.decode([3])[0],
                plainly(known_text(row) + made, isa),
                f"row {row} {BLOCKS[row]}",
            )


# --- controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", GROWTHS)
def test_control_given_another_branch_s_states_then_the_forecast_is_another(growth: Growth) -> None:
    differs = 0
    for at in range(NUM_GUESSES):
        with opened(CHECKPOINT) as backend:
            read_texts(backend, [2])
            plan = first_plan([2], growth)
            drafts = backend.foresee(plan)
            right, wrong = (came(backend, plan, drafts, one) for one in (at, at + 1))
            following = next_plan(plan, right)
            backend.foresee(plan)
            assert backend.keep(plan.below, 0, drafts[0].tree.path(right[0].winner.nodes[0])[1:-1])
            expected = backend.foresee(following)
            (own,) = carried(following, right)
            assert own is not None
            nodes = np.where(own.nodes < len(wrong[0].winner.nodes), own.nodes, -1)
            stale = Carried(nodes.astype(np.int32), wrong[0].kept.held)
            found = backend.foresee(replace(following, carried=[stale]))
        try:
            require_all_bits(found[0], expected[0])
        except AssertionError:
            differs += 1
    assert differs == NUM_GUESSES


def test_given_another_text_then_nothing_is_carried() -> None:
    with opened(CHECKPOINT) as backend:
        read_texts(backend, [2])
        plan = first_plan([2], CHAIN)
        (one,) = came(backend, plan, backend.foresee(plan), 0)
    tree = one.draft.tree
    other = replace(tree, tokens=np.array([tree.tokens[0] + 1, *tree.tokens[1:]], np.int32))

    assert one.kept.carried(one.winner.length, tree) is not None
    assert one.kept.carried(one.winner.length, other) is None
    assert one.kept.carried(one.winner.length + 1, tree) is None


def test_given_states_that_do_not_fit_then_they_are_refused() -> None:
    with opened(CHECKPOINT) as backend:
        read_texts(backend, [2])
        plan = first_plan([2], CHAIN)
        (one,) = came(backend, plan, backend.foresee(plan), 0)
        following = next_plan(plan, [one])
        (own,) = carried(following, [one])
        assert own is not None
        orphan, foreign = own.nodes.copy(), own.nodes.copy()
        orphan[0] = -1
        foreign[-1] = 99
        for wrong in (
            Carried(orphan, own.held),
            Carried(foreign, own.held),
            Carried(own.nodes, None),
            Carried(own.nodes[:-1], own.held),
        ):
            with pytest.raises(ValueError, match=r"."):
                backend.foresee(replace(following, carried=[wrong]))
        unread = replace(plan, carried=[Carried(np.zeros(5, np.int32), own.held)])
        with pytest.raises(ValueError, match=r"."):
            backend.foresee(unread)  # more of its text than the pending token is unread
        backend.foresee(following)
        assert backend.take(plan.below, 0, [0]) == (0, None)  # of a forecast before the last
