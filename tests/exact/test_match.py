"""`match` is exact: a structural proof over all small trees, and the law of the noise it stands on.

Structure: a target is a function from (tokens so far) to its next token. Whatever the tree, what a
round emits is what the target would have said one token at a time. Law: the choice of a position
is a sample of the target's law there, and choices at different positions are independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from forerun.draft import Draft, Draw, Verdict
from forerun.noise import Purpose, RoundNoise, words
from forerun.options import SamplingParams
from forerun.protocols import Sampler
from forerun.rules.match import Match
from forerun.sampling import choose, select
from forerun.tree import TokenTree

NUM_TOKENS = 3
MAX_NODES = 5
PENDING = 0
NO_NOISE = RoundNoise(0, 0, 0)  # which `match` must not ask


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
                verdict = rule.judge(Draft(tree, Draw.POINT), choices, NO_NOISE)
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

    def judge(self, draft, choices, noise):
        verdict = Match().judge(draft, choices, noise)
        children = np.flatnonzero(draft.tree.parents == verdict.path[-1])
        if len(children) == 0:
            return verdict
        return Verdict((*verdict.path, int(children[0])), int(choices[children[0]]))


@dataclass(frozen=True)
class ReadsTheChoiceOfTheParent:
    """Mutant: choices shifted by one node."""

    def judge(self, draft, choices, noise):
        return Match().judge(draft, np.roll(choices, 1), noise)


@dataclass(frozen=True)
class StopsEarly:
    """Mutant: never keeps the last node, though it agrees."""

    def judge(self, draft, choices, noise):
        verdict = Match().judge(draft, choices, noise)
        if verdict.num_accepted == 0:
            return verdict
        return Verdict(verdict.path[:-1], int(draft.tree.tokens[verdict.path[-1]]))


@pytest.mark.parametrize("mutant", [AcceptsOneTooMany(), ReadsTheChoiceOfTheParent(), StopsEarly()])
def test_given_a_mutant_then_the_proof_fails(mutant):
    assert counterexample(mutant, max_nodes=3) is not None


# --- what the target says at a node ---------------------------------------------------------------

# Every text of two tokens below the pending one is drafted, so a choice that differs is met.
EVERYTHING = TokenTree(
    np.array([PENDING, 0, 1, 2, *range(3), *range(3), *range(3)], np.int32),
    np.array([-1, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], np.int32),
)
SAMPLING = {
    "penalties": SamplingParams(
        temperature=0.7, repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=0.5
    ),
    "greedy penalties": SamplingParams(repetition_penalty=1.6, presence_penalty=0.8),
    "mask": SamplingParams(temperature=1.3, allowed_tokens=(0, 2)),
    "ties": SamplingParams(),
}


def logits_of(text):
    """Small whole numbers, so that ties are common."""
    rng = np.random.default_rng([11, len(text), *text])
    return rng.integers(0, 3, NUM_TOKENS).astype(np.float32)


def sampler_of(params, seed, text):
    ids, counts = np.unique(np.array(text, np.int32), return_counts=True)
    made = {"output_ids": ids, "output_counts": counts.astype(np.int32)}
    return Sampler(params, seed, np.array([PENDING], np.int32), **made)


@dataclass(frozen=True)
class Target:
    """What is said behind a text that ends in drafted tokens `path`; each part can be mutated."""

    params: SamplingParams
    logits: Callable = lambda text, path: logits_of((*text, *path))
    seen: Callable = lambda path: path
    at_a_node: Callable = lambda params, path: params

    def says(self, seed, text, path=()):
        params = self.at_a_node(self.params, path)
        sampler = sampler_of(params, seed, text)
        position = 1 + len(text) + len(path)
        return select(self.logits(text, path), sampler, position, self.seen(path))


def alone(target, seed, num_tokens):
    text = ()
    while len(text) < num_tokens:
        text += (target.says(seed, text),)
    return text


def drafted(target, seed, num_tokens):
    tokens = EVERYTHING.tokens.tolist()
    paths = [[tokens[at] for at in EVERYTHING.path(node)[1:]] for node in range(len(EVERYTHING))]
    text = ()
    while len(text) < num_tokens:
        choices = np.array([target.says(seed, text, tuple(path)) for path in paths], np.int32)
        verdict = Match().judge(Draft(EVERYTHING, Draw.POINT), choices, NO_NOISE)
        text += (*[tokens[node] for node in verdict.path[1:]], verdict.bonus)
    return text[:num_tokens]


def same_text(right, told, num_seeds=12):
    """Whether what is told at the nodes gives the text that is right one token at a time."""
    return all(alone(right, seed, 12) == drafted(told, seed, 12) for seed in range(num_seeds))


@pytest.mark.parametrize("name", SAMPLING)
def test_given_any_sampling_then_a_tree_gives_the_text_of_one_token_at_a_time(name):
    target = Target(SAMPLING[name])

    assert same_text(target, target)


def without_mask(params, path):
    return replace(params, allowed_tokens=None) if path else params


def highest_id_first(text, path):
    """As if the greatest logit were looked for from the other end, at drafted nodes only."""
    logits = logits_of((*text, *path))
    return logits + 1e-3 * np.arange(NUM_TOKENS, dtype=np.float32) if path else logits


WRONG_AT_A_NODE = {
    "penalties forget the node's own token": ("penalties", {"seen": lambda path: path[:-1]}),
    "penalties forget the first token": ("penalties", {"seen": lambda path: path[1:]}),
    "penalties count the node twice": ("penalties", {"seen": lambda path: path + path[-1:]}),
    "mask on one side": ("mask", {"at_a_node": without_mask}),
    "tie rule changed": ("ties", {"logits": highest_id_first}),
}


@pytest.mark.parametrize("name", WRONG_AT_A_NODE)
def test_given_a_node_that_is_told_something_else_then_the_text_differs(name):
    sampling, wrong = WRONG_AT_A_NODE[name]
    right = Target(SAMPLING[sampling])

    assert not same_text(right, replace(right, **wrong))


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
