"""Damped draws are exact, because the law they came from is the law they are judged by.

The damped compositions themselves are proved in `test_rules_exact.py`; here are the two mistakes
that published code makes with them, and what damping is for: where a refusal's residual falls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from exact.test_rules_exact import TOLERANCE, plan_of
from exact.wrong_parts import DRAFT, TARGET, WithAnotherLaw
from forerun.backends.growing import grow
from forerun.draft import Draw
from forerun.noise import RoundNoise
from forerun.options import SamplingParams
from forerun.protocols import Growth, Sampler
from forerun.rules.laws import residual
from forerun.sampling import law as law_of
from forerun.sampling import process
from forerun.shapes.draw import damp
from forerun.tools.oracle import Grower, Table, prove
from forerun.tools.toy_laws import ALLOWED, RULES, damped_cases, toy_pair

SAMPLED = [(rule, draw) for rule, draw, _ in ALLOWED if draw is not Draw.POINT]
EVERY_RULE = pytest.mark.parametrize(("rule", "draw"), SAMPLED)
HALF = (1, 0.5)
CHAIN = (0, 1)


def error(rule, drafting):
    return prove(RULES[rule], drafting, TARGET, num_tokens=3).error


@dataclass(frozen=True)
class DampedByWhatWasDrawn:
    """Says the damped law only where the drawn token is one that it damps."""

    inner: Grower

    def __call__(self, text, noise):
        draft = self.inner(text, noise)
        law = draft.law.copy()
        for place, node in enumerate(draft.expanded.tolist()):
            lower, tokens = damp(law[place], HALF, draft.draw, 1)
            if int(draft.tree.tokens[draft.tree.parents == node][0]) in tokens:
                law[place] = lower
        return replace(draft, law=law)


@dataclass(frozen=True)
class DrawnAgain:
    """Draws from the drafter's own law, and again by half the chance where that gave the likeliest:
    what a sampler may take for damping."""

    inner: Grower

    def __call__(self, text, noise):
        return Grower(self.inner.law, Draw.SAMPLED, self.inner.parents, 0.0, HALF)(
            text, _Again(noise, self.inner.law(text))
        )


@dataclass(frozen=True)
class _Again:
    noise: object
    law: np.ndarray

    def accepts(self, node, index, p, q):
        return self.noise.accepts(node, index, p, q)

    def picks(self, purpose, node, index, weights):
        own = np.where(weights == weights[np.argmax(self.law)], weights / HALF[1], weights)
        token = self.noise.picks(purpose, node, index, own)
        if token == int(np.argmax(own)) and not self.noise.accepts(node, 100, HALF[1], 1.0):
            return self.noise.picks(purpose, node, 200, own)
        return token


@EVERY_RULE
def test_given_damped_draws_judged_by_the_law_they_came_from_then_the_proof_holds(rule, draw):
    assert error(rule, Grower(DRAFT, draw, CHAIN, 0.0, HALF)) < TOLERANCE


@EVERY_RULE
def test_given_damped_draws_judged_by_the_drafter_s_own_law_then_the_proof_fails(rule, draw):
    damped = Grower(DRAFT, draw, CHAIN, 0.0, HALF)

    assert error(rule, WithAnotherLaw(damped, DRAFT)) > 1e-3


@EVERY_RULE
def test_given_damping_that_waits_for_the_drawn_token_then_the_proof_fails(rule, draw):
    assert error(rule, DampedByWhatWasDrawn(Grower(DRAFT, draw, CHAIN))) > 1e-3


@pytest.mark.parametrize("rule", ["rejection", "block", "traversal", "kseq"])
def test_given_a_second_draw_instead_of_a_damped_one_then_the_proof_fails(rule):
    assert error(rule, DrawnAgain(Grower(DRAFT, Draw.SAMPLED, CHAIN))) > 1e-3


def test_given_the_proved_cases_then_every_rule_and_draw_goes_three_rounds():
    longest = [case for case in damped_cases() if case.num_tokens == 6]

    assert {(case.rule, case.draw) for case in longest} == set(SAMPLED)
    assert all(len(case.parents) <= 2 for case in longest)  # so a round gives two tokens at most


# --- what it is for ---------------------------------------------------------------------------


def caught(p, q, count, factor):
    """How much of a bonus after a refusal falls on the likeliest tokens of q, and how often a draw
    is kept."""
    law, _ = damp(q, (count, factor), Draw.SAMPLED, 1)
    drawn_from = law.astype(np.float64) / law.astype(np.float64).sum()
    own = p.astype(np.float64) / p.astype(np.float64).sum()
    left, _ = residual(own, drawn_from)
    best = np.argsort(-q, kind="stable")[:count]
    return left[best].sum(), np.minimum(own, drawn_from).sum()


def test_given_a_stronger_damping_then_the_bonus_is_guessed_more_often_and_drafts_kept_less():
    laws = np.random.default_rng(0)
    figures = {factor: [] for factor in (1.0, 0.75, 0.5, 0.25)}
    for _ in range(200):
        logits = laws.normal(0, 2, 32)
        p, q = (law_of(logits + laws.normal(0, 0.5, 32)).astype(np.float32) for _ in range(2))
        for factor, found in figures.items():
            found.append(caught(p, q, 3, factor))

    hits, kept = np.transpose([np.mean(found, axis=0) for found in figures.values()])
    assert np.all(np.diff(hits) > 0)
    assert hits[-1] > hits[0] + 0.2
    assert np.all(np.diff(kept[1:]) < 0)
    # A drafter is too sure of what it believes in most, so a little damping costs nothing.
    assert kept[1] == pytest.approx(kept[0], abs=0.01)


# --- what backends grow -----------------------------------------------------------------------


@pytest.mark.parametrize("draw", [Draw.SAMPLED, Draw.WITHOUT_REPLACEMENT, Draw.TOP_AND_ONE])
@pytest.mark.parametrize("parents", [(0,), (0, 1, 2), (0, 0, 1, 1, 2)])
@pytest.mark.parametrize("least", [0.0, 0.6])
def test_given_the_same_noise_then_backends_draw_the_damped_tree_that_was_proved(
    draw, parents, least
):
    def logits(text):
        return np.random.default_rng([5, len(text), *text]).normal(0, 2, 6).astype(np.float32)

    damped, lowered = (2, 0.3), 0
    for seed in range(8):
        text = (seed % 4, 2)
        sampler = Sampler(SamplingParams(temperature=1.0, top_k=5), seed)
        law = Table(lambda text, one=sampler: law_of(process(logits(text), one)).astype(np.float32))
        noise = RoundNoise(seed, 0, 1 + len(text))
        expected = Grower(law, draw, parents, least, damped)(text, noise)

        grown = grow(
            plan_of(sampler, text, Growth(draw, parents, least=least, damped=damped), len(parents)),
            lambda rows, leaves, text=text: np.stack(
                [logits((*text, *rows[row].path(node))) for row, node in leaves]
            ),
        )[0]

        assert grown.tree.tokens.tolist() == expected.tree.tokens.tolist()
        assert grown.tree.parents.tolist() == expected.tree.parents.tolist()
        for node in set(expected.tree.parents.tolist()) - {-1}:
            mine, theirs = (list(one.expanded).index(node) for one in (expected, grown))
            assert np.array_equal(expected.law[mine], grown.law[theirs])
            tokens = [one.damping.tokens[at] for one, at in ((expected, mine), (grown, theirs))]
            assert np.array_equal(*tokens)
            lowered += int(np.any(tokens[0] >= 0))
    assert lowered > 0


def test_given_greedy_laws_then_nothing_is_damped():
    one_hot = np.eye(5, dtype=np.float32)[3]

    law, tokens = damp(one_hot, (2, 0.5), Draw.SAMPLED, 1)

    assert law is one_hot
    assert tokens == []


def test_given_a_law_with_no_token_beside_the_damped_ones_then_it_stays_as_it_is():
    law = np.float32([0.5, 0.3, 0.2, 0.0])

    assert damp(law, (3, 0.5), Draw.SAMPLED, 1)[0] is law
    assert damp(law, (2, 0.5), Draw.SAMPLED, 1)[1] == [0, 1]


def test_given_set_siblings_then_they_stay_the_likeliest_and_the_next_ones_are_damped():
    law = np.float32([0.1, 0.4, 0.3, 0.1, 0.1])

    lower, tokens = damp(law, (2, 0.5), Draw.TOP_AND_ONE, 3)

    assert tokens == [0, 3]
    assert np.argsort(-lower, kind="stable").tolist()[:2] == [1, 2]


def test_given_a_damped_draft_then_its_drafter_s_own_law_is_told_back():
    for seed in range(20):
        law = toy_pair("dense", 4, seed)[1]

        draft = Grower(law, Draw.SAMPLED, CHAIN, 0.0, (2, 0.3))((), RoundNoise(seed, 0, 1))

        assert draft.damping is not None
        assert np.all(draft.damping.tokens >= 0)
        assert draft.believed(0) == pytest.approx(law(()), rel=1e-6)
        best = np.argsort(-draft.believed(0), kind="stable")[:2].tolist()
        assert best == draft.damping.tokens[0].tolist()
