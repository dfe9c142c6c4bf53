"""A draft grown further in one native call is what the readable reference makes of it, and what the
sequential drafter would draft once the verdict is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builders import EVERY_PATH, opened, require_same_bits, yardstick
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grow import (
    CHECKPOINT,
    KEPT,
    PARAMS,
    ROWS,
    SPEC,
    acceptance,
    given_trees,
    known_text,
    plan_of,
    read_texts,
    require_same,
)

from forerun.backends import foreseeing, growing
from forerun.draft import Draft, Draw
from forerun.forecast import ForecastPlan, subtree
from forerun.options import SamplingParams
from forerun.protocols import Growth, GrowthPlan, Sampler
from forerun.tree import TokenTree

WIDE = Growth(Draw.COUPLED, None, 3, 4)
CHAIN = Growth(Draw.COUPLED, tuple(range(4)))
LIKELIEST = Growth(Draw.POINT, None, 2, 2)
BRANCH = {"budgets": 4, "depths": 4}


def filled(rows: Sequence[int], value: int) -> Any:
    return np.full(len(rows), value, np.int32)


def forecast_of(
    below: GrowthPlan,
    trees: Sequence[TokenTree],
    *,
    exits: Sequence[Sequence[int]] | None = None,
    num_branches: Sequence[int] | None = None,
    num_offers: int = 4,
    deepest: int = 0,
    per_exit: int = 0,
) -> ForecastPlan:
    """All nodes are exits, and five outcomes are prepared for, unless it is said otherwise."""
    every = [range(len(tree)) for tree in trees] if exits is None else exits
    most = [5] * len(trees) if num_branches is None else num_branches
    return ForecastPlan(
        below,
        trees,
        [np.array(list(one), np.int32) for one in every],
        np.array(most, np.int32),
        num_offers,
        np.array([deepest], np.int32),
        per_exit=per_exit,
    )


def below_of(rows: Sequence[int], growth: Growth, which: int = 1, **changes: Any) -> GrowthPlan:
    samplers = [Sampler(PARAMS[(which + row) % 5], 7 + row) for row in rows]
    sizes = {name: filled(rows, size) for name, size in (BRANCH | changes).items()}
    return plan_of(rows, growth, samplers, **sizes)


def drafts_of(backend: Any, below: GrowthPlan, num_drafted: int = 6) -> list[TokenTree]:
    """What the model would draft itself: trees of so many nodes, three levels deep."""
    rows = range(len(below.committed))
    plan = replace(below, growth=WIDE, budgets=filled(rows, num_drafted), depths=filled(rows, 3))
    return [draft.tree for draft in backend.grow(plan)]


def random_tree(row: int, parents: Sequence[int], seed: int) -> TokenTree:
    """A draft of anybody's: all tokens differ, and that is all."""
    rng = np.random.default_rng([row, seed])
    tokens = rng.permutation(SPEC.vocab)[: len(parents) + 1]
    tokens[0] = known_text(row)[-1]
    return TokenTree(tokens.astype(np.int32), np.array([-1, *parents], np.int32))


def readable(plan: ForecastPlan, rows: Sequence[int]) -> list[Draft]:
    with opened(CHECKPOINT, isa="portable") as backend:
        read_texts(backend, rows)
        read = growing.rereader(backend.forward, backend.commit, plan.below)
        return foreseeing.foresee(plan, read)


def native(plan: ForecastPlan, rows: Sequence[int], isa: str = "auto") -> list[Draft]:
    with opened(CHECKPOINT, isa=isa) as backend:
        read_texts(backend, rows)
        return backend.foresee(plan)


def guesses_of(draft: Draft, num_verified: int) -> list[int]:
    parents = draft.tree.parents.tolist()
    return [at for at in range(num_verified, len(parents)) if parents[at] < num_verified]


@st.composite
def branch_growths(draw: st.DrawFn) -> Growth:
    parents = draw(given_trees()) if draw(st.booleans()) else None
    least = draw(st.sampled_from([0.0, 0.05, 0.3]))
    how = draw(st.sampled_from([Draw.COUPLED, Draw.POINT]))
    return Growth(how, parents, draw(st.integers(1, 3)), draw(st.integers(1, 3)), least)


# --- against the reference ------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    rows=ROWS,
    growth=branch_growths(),
    seed=st.integers(0, 2**40),
    parents=given_trees(),
    is_own=st.booleans(),
    exits=st.sets(st.integers(0, 6), max_size=6),
    num_branches=st.integers(0, 7),
    per_exit=st.integers(0, 3),
    num_offers=st.integers(1, 6),
    room=st.tuples(st.integers(0, 6), st.integers(0, 5)),
    which=st.integers(0, 4),
    deepest=st.integers(0, 3),
)
def test_a_native_forecast_is_the_readable_one(
    rows,
    growth,
    seed,
    parents,
    is_own,
    exits,
    num_branches,
    per_exit,
    num_offers,
    room,
    which,
    deepest,
):
    # given drafts of the model's own or of anybody's, some of whose nodes are exits
    below = replace(
        below_of(rows, growth, which),
        budgets=np.array([max(0, room[0] - row) for row in rows], np.int32),
        depths=np.array([max(0, room[1] - row % 2) for row in rows], np.int32),
        acceptance=acceptance(seed, len(rows)),
    )
    with opened(CHECKPOINT) as backend:
        read_texts(backend, rows)
        trees = [random_tree(row, parents, seed) for row in rows]
        trees = drafts_of(backend, below) if is_own else trees
        plan = forecast_of(
            below,
            trees,
            exits=[[one for one in exits if one < len(tree)] for tree in trees],
            num_branches=[max(0, num_branches - row) for row in rows],
            num_offers=num_offers,
            deepest=deepest,
            per_exit=per_exit,
        )
        # when both grow them further
        found = backend.foresee(plan)
    expected = readable(plan, rows)
    # then trees and figures are the same, the draft is first and as it was
    for one, other, tree in zip(found, expected, trees, strict=True):
        require_same(one, other)
        assert one.num_passes == other.num_passes
        assert one.tree.tokens[: len(tree)].tolist() == tree.tokens.tolist()
        assert one.tree.parents[: len(tree)].tolist() == tree.parents.tolist()
        assert one.expanded is not None
        assert one.expanded[: len(tree)].tolist() == list(range(len(tree)))


def test_control_another_draft_is_grown_otherwise() -> None:
    below = below_of([1], WIDE)
    one, other = (forecast_of(below, [random_tree(1, (0, 1, 1, 2), seed)]) for seed in (0, 1))

    with pytest.raises(AssertionError):
        require_same(native(one, [1])[0], readable(other, [1])[0])


@pytest.mark.parametrize("isa", EVERY_PATH)
@pytest.mark.parametrize("growth", [WIDE, CHAIN, LIKELIEST])
def test_each_row_has_the_bits_it_has_alone_on_every_path(isa: str, growth: Growth) -> None:
    # given three rows with drafts of other sizes
    rows = [2, 0, 3]
    below = below_of(rows, growth)
    trees = [random_tree(row, (0, 0, 1, 3)[: row + 1], 5) for row in rows]

    together = native(forecast_of(below, trees, num_branches=[3, 6, 2]), rows, isa)

    for index, row in enumerate(rows):
        alone = replace(below_of([row], growth), acceptance=below.acceptance[index : index + 1])
        plan = forecast_of(alone, [trees[index]], num_branches=[[3, 6, 2][index]])
        (expected,) = native(plan, [row], yardstick(isa))
        found = together[index]
        assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
        assert found.tree.parents.tolist() == expected.tree.parents.tolist()
        require_same_bits(found.scores, expected.scores, f"scores of row {row}")


@pytest.mark.parametrize("growth", [WIDE, CHAIN, LIKELIEST])
@pytest.mark.parametrize("deepest", [1, 2, 3])
def test_a_cut_leaves_all_branches_as_deep(growth: Growth, deepest: int) -> None:
    rows = [1, 3]
    trees = [random_tree(row, (0, 1, 1), 2) for row in rows]

    cut = native(forecast_of(below_of(rows, growth), trees, deepest=deepest), rows)
    planned = native(forecast_of(below_of(rows, growth, depths=deepest), trees), rows)

    for one, other in zip(cut, planned, strict=True):
        require_same(one, other)
        assert one.num_passes == 1 + deepest
    assert native(forecast_of(below_of(rows, growth), trees), rows)[0].num_passes == 5


def test_a_cut_that_comes_while_it_runs_leaves_all_branches_as_deep() -> None:
    # given chains that may be forty tokens deep
    deep = Growth(Draw.COUPLED, tuple(range(40)))
    tree = random_tree(1, (0, 0), 2)
    plan = forecast_of(below_of([1], deep, budgets=40, depths=40), [tree], num_branches=[9])
    with opened(CHECKPOINT) as backend, ThreadPoolExecutor(1) as lane:
        read_texts(backend, [1])
        # when somebody says in the middle of it that one level is enough
        running = lane.submit(backend.foresee, plan)
        plan.deepest[0] = 1
        (draft,) = running.result()
    # then it ends, and no branch is longer than another
    guesses = guesses_of(draft, len(tree))
    lengths = {subtree(draft, guess, 0).num_drafted for guess in guesses}
    assert len(guesses) == 9
    assert len(lengths) == 1
    assert 1 <= lengths.pop() < 40


# --- what it is for -------------------------------------------------------------------------------


def after(sampler: Sampler, made: Sequence[int]) -> Sampler:
    """How a sequence chooses once it has so many tokens more."""
    counts = Counter(made)
    return replace(
        sampler,
        output_ids=np.array(list(counts), np.int32),
        output_counts=np.array(list(counts.values()), np.int32),
    )


def drafted_later(below: GrowthPlan, row: int, made: Sequence[int]) -> Draft:
    """What `grow` drafts in the next round, when the verdict was `made`."""
    unread = [*known_text(row)[KEPT[row] :], *made]
    plan = replace(
        below,
        catch_up=np.array(unread, np.int32),
        catch_up_starts=np.array([0, len(unread)], np.int32),
        samplers=[after(below.samplers[0], made)],
    )
    with opened(CHECKPOINT) as backend:
        read_texts(backend, [row])
        return backend.grow(plan)[0]


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("growth", [WIDE, CHAIN, LIKELIEST])
def test_below_a_guess_stands_what_the_next_round_would_draft(
    row: int, which: int, growth: Growth
) -> None:
    # given a draft grown further
    below = replace(below_of([row], growth), samplers=[Sampler(PARAMS[which], 3)])
    tree = random_tree(row, (0, 0, 1, 3), which)
    (draft,) = native(forecast_of(below, [tree], num_branches=[9]), [row])
    guesses = guesses_of(draft, len(tree))
    assert len({int(draft.tree.parents[guess]) for guess in guesses}) > 1
    for guess in guesses:
        # when a verdict is what was guessed
        made = draft.tree.tokens[draft.tree.path(guess)[1:]].tolist()
        expected = drafted_later(below, row, made)
        # then the draft of the next round is there already
        found = subtree(draft, guess, made[-1])
        assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
        assert found.tree.parents.tolist() == expected.tree.parents.tolist()
        assert found.ranks is not None
        assert expected.ranks is not None
        assert found.ranks.tolist() == expected.ranks.tolist()
        assert found.scores is not None
        assert expected.scores is not None
        assert draft.scores is not None
        if draft.scores[guess] == 0:  # below a token that the law has not
            continue
        np.testing.assert_allclose(found.scores[1:], expected.scores[1:], rtol=1e-5)


def test_control_another_bonus_than_the_guessed_is_followed_by_another_draft() -> None:
    below = replace(below_of([1], CHAIN), samplers=[Sampler(SamplingParams(temperature=0.7), 3)])
    tree = random_tree(1, (0, 1), 0)
    (draft,) = native(forecast_of(below, [tree]), [1])
    guess = guesses_of(draft, len(tree))[0]
    made = draft.tree.tokens[draft.tree.path(guess)[1:]].tolist()
    found = subtree(draft, guess, made[-1])

    other = drafted_later(below, 1, [*made[:-1], (made[-1] + 1) % SPEC.vocab])

    assert other.tree.tokens[1:].tolist() != found.tree.tokens[1:].tolist()


def test_guesses_are_the_likeliest_outcomes() -> None:
    # given all outcomes
    below = below_of([2], CHAIN, budgets=0)
    tree = random_tree(2, (0, 0, 1, 1), 4)
    (every,) = native(forecast_of(below, [tree], num_branches=[99]), [2])
    assert every.scores is not None
    scores = every.scores[len(tree) :]
    assert len(scores) > 8
    # when only some are prepared
    (some,) = native(forecast_of(below, [tree], num_branches=[4]), [2])
    # then they are the best of them
    assert some.scores is not None
    assert sorted(some.scores[len(tree) :]) == sorted(scores)[-4:]


def test_with_a_limit_of_an_exit_each_has_its_own_likeliest_outcome() -> None:
    # given a chain whose outcomes are likelier at one of two exits
    below = below_of([2], CHAIN, budgets=0)
    tree, two = random_tree(2, (0, 1), 4), {"exits": [[0, 2]]}
    (every,) = native(forecast_of(below, [tree], num_branches=[99], **two), [2])
    (anywhere,) = native(forecast_of(below, [tree], num_branches=[2], **two), [2])
    # when each may have one guess
    (each,) = native(forecast_of(below, [tree], num_branches=[2], per_exit=1, **two), [2])
    # then that is its best one, where both would have been at the likelier exit
    assert each.scores is not None
    assert every.scores is not None
    below_exits = [every.tree.parents == exit_node for exit_node in (0, 2)]
    best = [max(every.scores[own][-4:]) for own in below_exits]
    assert each.tree.parents[len(tree) :].tolist() == [0, 2]
    assert each.scores[len(tree) :].tolist() == [float(one) for one in best]
    assert len(set(anywhere.tree.parents[len(tree) :].tolist())) == 1


# --- edges ----------------------------------------------------------------------------------------


def test_below_logits_that_are_no_numbers_nothing_is_guessed() -> None:
    # given a model that says nothing
    table = CHECKPOINT.tensor("model.embed_tokens.weight").float32().copy()
    table[9] = np.nan
    mute = CHECKPOINT.changed(model__embed_tokens__weight=table)
    for growth in (WIDE, CHAIN, LIKELIEST):
        tree = random_tree(1, (0, 1, 1), 3)
        # when a draft of somebody else's is to be grown further
        with opened(mute) as backend:
            read_texts(backend, [1])
            (draft,) = backend.foresee(forecast_of(below_of([1], growth), [tree]))
        # then it stays as it is, and none of its nodes was expected
        assert draft.tree.tokens.tolist() == tree.tokens.tolist()
        assert draft.ranks is not None
        assert draft.ranks.tolist() == [-1, 4, 4, 4]


def test_a_forecast_that_does_not_fit_is_refused() -> None:
    tree = random_tree(0, (0, 1), 1)
    outside = TokenTree(np.array([1, 50], np.int32), np.array([-1, 0], np.int32))
    below = below_of([0], CHAIN)
    plans = [
        forecast_of(below, [outside]),
        forecast_of(below, [tree], exits=[[3]]),
        forecast_of(below, [tree], exits=[[-1]]),
        forecast_of(below, [tree], num_offers=0),
        forecast_of(below, [tree], num_branches=[-1]),
        forecast_of(below, [tree], per_exit=-1),
        forecast_of(below, [tree], num_branches=[1, 1]),
        forecast_of(below_of([0], CHAIN, depths=126), [tree]),
        forecast_of(below_of([0], Growth(Draw.SAMPLED, (0,))), [tree]),
        replace(forecast_of(below, [tree]), deepest=np.zeros(0, np.int32)),
    ]
    with opened(CHECKPOINT) as backend:
        for plan in plans:
            with pytest.raises(ValueError, match=r"."):
                backend.foresee(plan)
        assert backend.foresee(forecast_of(below_of([0], CHAIN, depths=125), [tree]))
