"""Drafts below given outcomes, drawn in one native call, are those that the round behind each of
them would draw: the same tokens, laws and draws, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from builders import PATHS, opened, require_same_bits
from test_foresee import below_of, drafted_later, random_tree
from test_grow import CHECKPOINT, PARAMS, SPEC, read_texts

from forerun.draft import Draft, Draw
from forerun.forecast import given_plan, subtree
from forerun.protocols import Growth, GrowthPlan, Sampler
from forerun.tree import TokenTree

CHAIN, TREE = (0, 1, 2), (0, 0, 1, 1, 2, 3)
GROWTHS = [
    Growth(Draw.SAMPLED, CHAIN),
    Growth(Draw.SAMPLED, CHAIN, least=0.05),
    Growth(Draw.SAMPLED, TREE),
    Growth(Draw.WITHOUT_REPLACEMENT, TREE),
    Growth(Draw.WITHOUT_REPLACEMENT, CHAIN, damped=(3, 0.25)),
    Growth(Draw.TOP_AND_ONE, TREE),
]


def setting(row: int, growth: Growth, which: int) -> tuple[GrowthPlan, TokenTree]:
    sampler = Sampler(PARAMS[which], 11 + row)
    below = replace(below_of([row], growth, budgets=6, depths=3), samplers=[sampler])
    return below, random_tree(row, (0, 0, 1, 3), which)


def outcomes_of(tree: TokenTree) -> list[tuple[int, int]]:
    """Two bonuses at every node, the deepest first."""
    nodes = reversed(range(len(tree)))
    return [(node, (7 * node + more) % SPEC.vocab) for node in nodes for more in (3, 20)]


def drawn(below: GrowthPlan, tree: TokenTree, row: int, isa: str = "auto") -> list[Draft]:
    outcomes = outcomes_of(tree)
    with opened(CHECKPOINT, isa=isa) as backend:
        read_texts(backend, [row])
        (whole,) = backend.foresee_given(given_plan(below, tree, outcomes))
    assert whole.tree.tokens[: len(tree)].tolist() == tree.tokens.tolist()
    return [subtree(whole, len(tree) + at, bonus) for at, (_, bonus) in enumerate(outcomes)]


def made_by(tree: TokenTree, outcome: tuple[int, int]) -> list[int]:
    exit_node, bonus = outcome
    return [*tree.tokens[tree.path(exit_node)[1:]].tolist(), bonus]


def require_same_draws(found: Draft, expected: Draft) -> None:
    assert found.draw is expected.draw
    assert found.tree.tokens.tolist() == expected.tree.tokens.tolist()
    assert found.tree.parents.tolist() == expected.tree.parents.tolist()
    for name in ("expanded", "draws"):
        left, right = getattr(found, name), getattr(expected, name)
        assert (left is None) == (right is None), name
        assert left is None or left.tolist() == right.tolist(), name
    assert found.law is not None
    assert expected.law is not None
    assert len(found.law) == len(expected.law)
    if len(found.law):
        require_same_bits(found.law, expected.law, "laws")
    assert (found.damping is None) == (expected.damping is None)
    if found.damping is not None and expected.damping is not None:
        assert found.damping.tokens.tolist() == expected.damping.tokens.tolist()


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("growth", GROWTHS, ids=lambda one: f"{one.draw.name} {one.parents}")
def test_given_outcomes_then_each_is_followed_by_the_draws_of_its_round(
    growth: Growth, which: int
) -> None:
    for row in range(4):
        below, tree = setting(row, growth, which)
        for outcome, found in zip(outcomes_of(tree), drawn(below, tree, row), strict=True):
            expected = drafted_later(below, row, made_by(tree, outcome))
            require_same_draws(found, expected)


@pytest.mark.parametrize("isa", PATHS)
def test_given_any_path_then_draws_and_laws_are_the_same(isa: str) -> None:
    below, tree = setting(1, GROWTHS[2], 1)
    for one, other in zip(
        drawn(below, tree, 1, isa), drawn(below, tree, 1, "portable"), strict=True
    ):
        require_same_draws(one, other)


def differing(pairs: Sequence[tuple[Draft, Draft]]) -> int:
    return sum(one.tree.tokens.tolist()[1:] != two.tree.tokens.tolist()[1:] for one, two in pairs)


def test_control_given_another_seed_or_outcome_then_draws_are_others() -> None:
    below, tree = setting(1, GROWTHS[0], 1)
    outcomes = outcomes_of(tree)
    found = drawn(below, tree, 1)
    reseeded = replace(below, samplers=[Sampler(PARAMS[1], 99)])
    others = [drafted_later(reseeded, 1, made_by(tree, one)) for one in outcomes]
    moved = [drafted_later(below, 1, made_by(tree, one)) for one in reversed(outcomes)]

    assert differing(list(zip(found, others, strict=True))) > len(found) // 2
    assert differing(list(zip(found, moved, strict=True))) > len(found) // 2


def test_given_outcomes_outside_then_they_are_refused() -> None:
    below, tree = setting(1, GROWTHS[0], 1)
    with opened(CHECKPOINT) as backend:
        read_texts(backend, [1])
        for wrong in ((len(tree), 3), (-1, 3), (0, SPEC.vocab), (0, -1)):
            with pytest.raises(ValueError, match="outcome"):
                backend.foresee_given(given_plan(below, tree, [wrong]))
        with pytest.raises(ValueError, match="given"):
            backend.foresee_given(given_plan(below, tree, []))
        plan = replace(given_plan(below, tree, [(0, 3)]), deepest=np.zeros(0, np.int32))
        with pytest.raises(ValueError, match="sizes"):
            backend.foresee_given(plan)
