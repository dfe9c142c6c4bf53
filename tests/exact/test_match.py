"""`match` is exact: a structural proof over all small trees, and the law of the noise it stands on.

Structure: a target is a function from (tokens so far) to its next token. Whatever the tree, what a
round emits is what the target would have said one token at a time. Law: the choice of a position
is a sample of the target's law there, and choices at different positions are independent.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from forerun.draft import Draft, Draw, Verdict
from forerun.noise import Purpose, words
from forerun.rules.match import Match
from forerun.sampling import choose
from forerun.tree import TokenTree

NUM_TOKENS = 3
MAX_NODES = 5
PENDING = 0


def all_trees(max_nodes):
    """Every tree of up to `max_nodes` nodes with distinct siblings, in every node order."""
    grown = [((PENDING,), (-1,))]
    yield from grown
    for _ in range(max_nodes - 1):
        larger = []
        for tokens, parents in grown:
            edges = set(zip(parents, tokens, strict=True))
            for parent, token in itertools.product(range(len(tokens)), range(NUM_TOKENS)):
                if (parent, token) not in edges:
                    larger.append(((*tokens, token), (*parents, parent)))
        yield from larger
        grown = larger


def depths_of(parents):
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return depths


def counterexample(rule, max_nodes=MAX_NODES):
    """A tree and a target for which the rule emits another text than the target's, or None.

    A target that speaks `path` next says `path[d]` at depth d below the path; nodes off the path
    get a choice too (here that of the same depth), which must not matter.
    """
    for tokens, parents in all_trees(max_nodes):
        tree = TokenTree(np.array(tokens, np.int32), np.array(parents, np.int32))
        depths = depths_of(parents)
        for path in itertools.product(range(NUM_TOKENS), repeat=max(depths) + 1):
            for off_path in range(2):
                choices = target_choices(tokens, parents, depths, path, off_path)
                verdict = rule.judge(Draft(tree, Draw.POINT), choices)
                emitted = [tokens[node] for node in verdict.path[1:]] + [verdict.bonus]
                if tuple(emitted) != path[: len(emitted)] or not is_path(verdict.path, parents):
                    return tokens, parents, path
                if extends(tree, verdict):
                    return tokens, parents, path
    return None


def target_choices(tokens, parents, depths, path, off_path):
    on_path = [True]
    for node in range(1, len(tokens)):
        parent = parents[node]
        on_path.append(on_path[parent] and tokens[node] == path[depths[parent]])
    return np.array(
        [
            path[depth] if on else (path[depth] + off_path) % NUM_TOKENS
            for depth, on in zip(depths, on_path, strict=True)
        ],
        np.int32,
    )


def is_path(nodes, parents):
    return nodes[0] == 0 and all(
        parents[below] == above for above, below in itertools.pairwise(nodes)
    )


def extends(tree, verdict):
    """Whether the verdict stopped although the bonus had been drafted."""
    return tree.child(verdict.path[-1], verdict.bonus) is not None


def test_given_every_small_tree_and_every_target_then_match_emits_the_target_s_own_text():
    assert counterexample(Match()) is None


@dataclass(frozen=True)
class AcceptsOneTooMany:
    """Mutant: keeps one more drafted token than agrees."""

    def judge(self, draft, choices):
        verdict = Match().judge(draft, choices)
        children = np.flatnonzero(draft.tree.parents == verdict.path[-1])
        if len(children) == 0:
            return verdict
        return Verdict((*verdict.path, int(children[0])), int(choices[children[0]]))


@dataclass(frozen=True)
class ReadsTheChoiceOfTheParent:
    """Mutant: choices shifted by one node."""

    def judge(self, draft, choices):
        return Match().judge(draft, np.roll(choices, 1))


@dataclass(frozen=True)
class StopsEarly:
    """Mutant: never keeps the last node, though it agrees."""

    def judge(self, draft, choices):
        verdict = Match().judge(draft, choices)
        if verdict.num_accepted == 0:
            return verdict
        return Verdict(verdict.path[:-1], int(draft.tree.tokens[verdict.path[-1]]))


@pytest.mark.parametrize("mutant", [AcceptsOneTooMany(), ReadsTheChoiceOfTheParent(), StopsEarly()])
def test_given_a_mutant_then_the_proof_fails(mutant):
    assert counterexample(mutant, max_nodes=3) is not None


# --- the law of the noise -----------------------------------------------------------------------

LAW = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
NUM_SAMPLES = 4000
ALPHA = 1e-6


def p_value(counts, expected):
    """Chi-square tail for cells - 1 = 8 degrees of freedom; even ones have a closed form."""
    assert counts.size == 9
    half = float(((counts - expected) ** 2 / expected).sum()) / 2
    return math.exp(-half) * sum(half**power / math.factorial(power) for power in range(4))


DECISIONS = {
    "two positions": ((0, 7), (0, 8)),
    "far positions": ((2, 0), (2, 10**6)),
    "two choices": ((0, 7), (1, 7)),
}


def joint_p_value(decisions, counter_of=lambda choice, position: (choice, position)):
    """How likely the joint of two decisions (choice index, position) is if they are independent,
    over many seeds; `counter_of` says which counter a decision consults."""
    counts = np.zeros((3, 3))
    for seed in range(NUM_SAMPLES):
        pair = []
        for law, decision in zip(LAW, decisions, strict=True):
            choice, position = counter_of(*decision)
            noise = words(seed, choice, Purpose.VERDICT, position, 3)
            pair.append(choose(np.log(law), noise, 1.0))
        counts[pair[0], pair[1]] += 1
    return p_value(counts, NUM_SAMPLES * np.outer(LAW[0], LAW[1]))


@pytest.mark.parametrize("decisions", DECISIONS.values(), ids=DECISIONS)
def test_given_two_decisions_then_their_joint_law_is_the_product(decisions):
    assert joint_p_value(decisions) > ALPHA


def test_given_noise_reused_at_two_positions_then_the_test_notices():
    assert joint_p_value(DECISIONS["two positions"], lambda choice, _: (choice, 0)) < ALPHA


def test_given_two_choices_with_one_key_then_the_test_notices():
    assert joint_p_value(DECISIONS["two choices"], lambda _, position: (0, position)) < ALPHA


def test_given_one_seed_then_its_positions_are_independent_too():
    counts = np.zeros((3, 3))
    for place in range(NUM_SAMPLES):
        pair = [
            choose(np.log(law), words(42, 0, Purpose.VERDICT, 2 * place + step, 3), 1.0)
            for step, law in enumerate(LAW)
        ]
        counts[pair[0], pair[1]] += 1

    assert p_value(counts, NUM_SAMPLES * np.outer(LAW[0], LAW[1])) > ALPHA
