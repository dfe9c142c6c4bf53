"""Rules, draws, laws and counters that are wrong on purpose, each in one way seen in the wild.

Every one is as small as the mistake is; the oracle must catch them all, and pass their control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from forerun.draft import Draft, Draw, Verdict
from forerun.noise import Purpose
from forerun.rules.block import Block
from forerun.rules.kseq import KSeq
from forerun.rules.laws import (
    ANY_NUMBER,
    emit,
    normal,
    positive,
    read_draft,
    residual,
    target_law,
    walk_down,
    without,
)
from forerun.rules.rejection import Rejection
from forerun.rules.traversal import Traversal
from forerun.tools.oracle import Grower, Table, certainty, counter_words, prove
from forerun.tools.toy_laws import toy_pair
from forerun.tree import TokenTree

TARGET, DRAFT = toy_pair("dense", 3)
SPARSE_TARGET, SPARSE_DRAFT = toy_pair("sparse", 3)
NARROW, NARROW_DRAFT = toy_pair("dense", 2)  # where histories are followed one by one
EVERY_DRAW = tuple(Draw)
REPEATED, APART = Draw.SAMPLED, Draw.WITHOUT_REPLACEMENT
CHAIN, PAIR, TREE = (0, 1), (0, 0), (0, 0, 1, 2)


@dataclass(frozen=True)
class Mutant:
    """A proof that must fail, and the same with nothing wrong in it."""

    wrong: Callable
    control: Callable


# --- rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TopDown:
    """A rule that walks down with some `first_kept` of its own."""

    first_kept: Callable

    def judge(self, draft, target, noise):
        branches = read_draft(draft, "wrong", EVERY_DRAW, ANY_NUMBER)
        return walk_down(branches, target, noise, self.first_kept)


def one_by_one(branches, node, p, noise, leave, remove=without):
    """Rejection with its two steps exchangeable: what a refused draw leaves of p, and of q."""
    tokens = branches.drawn[node]
    q = branches.law(node, p) if tokens else None
    for index, token in enumerate(tokens):
        if noise.accepts(node, index, float(p[token]), float(q[token])):
            return index, p
        p = leave(p, q)
        if branches.draw is not Draw.SAMPLED:
            q = remove(q, token)
    return None, p


def taken_off(p, q):
    return residual(p, q)[0]


def bonus_from_the_draft(branches, node, p, noise):
    return one_by_one(branches, node, p, noise, lambda p, q: q)


def no_residual(branches, node, p, noise):
    return one_by_one(branches, node, p, noise, lambda p, q: p)


def not_normalised(q, token):
    """Wrong normaliser: the law without a sibling keeps its smaller sum."""
    left = q.copy()
    left[token] = 0.0
    return left


def wrong_normaliser(branches, node, p, noise):
    return one_by_one(branches, node, p, noise, taken_off, not_normalised)


def equal_draws_once(branches, node, p, noise):
    """Repetitions dropped before they are judged."""
    drawn = [tuple(dict.fromkeys(row)) for row in branches.drawn]
    children = [
        tuple(branches.children[at][branches.drawn[at].index(token)] for token in row)
        for at, row in enumerate(drawn)
    ]
    merged = replace(branches, drawn=tuple(drawn), children=tuple(children))
    return one_by_one(merged, node, p, noise, taken_off)


def set_ones_as_drawn(branches, node, p, noise):
    """Top-and-one siblings judged as if all had been drawn."""
    return one_by_one(branches, node, p, noise, taken_off)


def too_eager(branches, node, p, noise):
    """K-SEQ with r = 1: every draw is judged as if it were the only one."""
    tokens = branches.drawn[node]
    q = branches.law(node, p) if tokens else None
    for index, token in enumerate(tokens):
        if noise.accepts(node, index, float(p[token]), float(q[token])):
            return index, p
    left = None if q is None else normal(positive(p - q))
    return None, p if left is None else left


@dataclass(frozen=True)
class UncappedEnd:
    """Block whose last node is accepted with the uncapped ratio of the whole path."""

    def judge(self, draft, target, noise):
        branches = read_draft(draft, "wrong", EVERY_DRAW, 1)
        node, ratio = 0, 1.0
        while branches.drawn[node]:
            p, token = target_law(target, node), branches.drawn[node][0]
            ratio *= p[token] / branches.law(node, p)[token]
            node = branches.children[node][0]
        if node and noise.accepts(node, 0, ratio, 1.0):
            bonus = emit(noise, node, target_law(target, node))
            return Verdict(tuple(range(node + 1)), bonus)
        return Block().judge(draft, target, Shifted(noise))


@dataclass(frozen=True)
class Shifted:
    """Noise of numbers nobody else asks."""

    noise: object

    def accepts(self, node, index, p, q):
        return self.noise.accepts(node, index + 100, p, q)

    def picks(self, purpose, node, index, weights):
        return self.noise.picks(purpose, node, index + 100, weights)


# --- drafts ---------------------------------------------------------------------------------------


def cut(draft, keep):
    """The first `keep` nodes of a chain."""
    tree = TokenTree.chain(draft.tree.tokens[:keep])
    num_laws = keep - 1
    return replace(
        draft,
        tree=tree,
        expanded=draft.expanded[:num_laws],
        law=draft.law[:num_laws],
        draws=None,
    )


@dataclass(frozen=True)
class Peeking:
    """Drops a drawn token, and what follows it, when its own q is low."""

    inner: Grower

    def __call__(self, text, noise):
        draft = self.inner(text, noise)
        tokens = draft.tree.tokens.tolist()
        for node in range(1, len(tokens)):
            if draft.law[node - 1][tokens[node]] < 0.4:
                return cut(draft, node)
        return draft


@dataclass(frozen=True)
class PeekingAtTheNextLaw:
    """Drops a drawn token when the law behind it is uncertain."""

    inner: Grower

    def __call__(self, text, noise):
        draft = self.inner(text, noise)
        path = text
        for node, token in enumerate(draft.tree.tokens.tolist()[1:], start=1):
            path = (*path, token)
            if certainty(self.inner.law(path)) < 0.6:
                return cut(draft, node)
        return draft


@dataclass(frozen=True)
class Reordered:
    """Siblings in order of their probability instead of the order they were drawn in."""

    inner: Grower

    def __call__(self, text, noise):
        draft = self.inner(text, noise)
        drawn = sorted(draft.tree.tokens[1:].tolist(), key=lambda token: -draft.law[0][token])
        tokens = np.array([draft.tree.tokens[0], *drawn], np.int32)
        return replace(draft, tree=TokenTree(tokens, draft.tree.parents))


@dataclass(frozen=True)
class WithAnotherLaw:
    """Says another law than the one the draws came from."""

    inner: Grower
    said: Table

    def __call__(self, text, noise):
        draft = self.inner(text, noise)
        paths = [text]
        for node in range(1, len(draft.tree)):
            token = int(draft.tree.tokens[node])
            paths.append((*paths[draft.tree.parents[node]], token))
        law = np.stack([self.said(paths[node]) for node in draft.expanded.tolist()])
        return replace(draft, law=law)


@dataclass(frozen=True)
class SharedBudget:
    """Expands the first sibling only if the second one turned out unlikely. No mutant: what stands
    below a node changes neither whether it is kept nor, so, what is known of its siblings."""

    inner: Grower

    def __call__(self, text, noise):
        draft = self.inner(text, noise)
        tokens, parents = draft.tree.tokens, draft.tree.parents
        second = int(tokens[2]) if len(tokens) > 2 and parents[2] == 0 else None
        if second is None or draft.law[0][second] < 0.3:
            return draft
        kept = [node for node in range(len(tokens)) if parents[node] != 1]
        place = {node: at for at, node in enumerate(kept)}
        rows = [row for row, node in enumerate(draft.expanded.tolist()) if node != 1]
        above = np.array([place.get(int(parents[node]), -1) for node in kept], np.int32)
        return Draft(
            TokenTree(tokens[kept], above),
            draft.draw,
            np.array([place[int(draft.expanded[row])] for row in rows], np.int32),
            draft.law[rows],
        )


# --- laws -----------------------------------------------------------------------------------------


def best_two(law):
    """The law cut to its two likeliest tokens, as a top-k or top-p sampler does."""
    cut_law = np.where(law >= np.sort(law)[-2], law, 0)
    return (cut_law / cut_law.sum()).astype(np.float32)


def truncated(law):
    return Table(lambda text: best_two(law(text)))


def masked(law):
    """Token 0 is forbidden."""
    return Table(lambda text: (lambda row: row / row.sum())(law(text) * np.float32([0, 1, 1])))


def penalised(law, shift):
    """Tokens of the text count against themselves; `shift` is how much of its end is forgotten."""

    def row(text):
        seen = np.bincount(text[: len(text) - shift], minlength=3)
        weights = law(text) * np.exp(-0.7 * seen)
        return (weights / weights.sum()).astype(np.float32)

    return Table(row)


def tied(text):
    return np.float32([0.4, 0.4, 0.2])


def lowest_of_the_best(text):
    return np.eye(3, dtype=np.float32)[int(np.argmax(tied(text)))]


def highest_of_the_best(text):
    return np.eye(3, dtype=np.float32)[2 - int(np.argmax(tied(text)[::-1]))]


# --- counters -------------------------------------------------------------------------------------


def same_in_every_round(purpose, start, node, index):
    return counter_words(purpose, 0, node, index)


def same_for_siblings(purpose, start, node, index):
    return counter_words(purpose, start, node, 0)


def same_for_every_node(purpose, start, node, index):
    return counter_words(purpose, start, 0, index)


def same_for_draft_and_verdict(purpose, start, node, index):
    return counter_words(Purpose.DRAFT, start, node, index)


def by_position(purpose, start, node, index):
    """A chain's node n stands at position start + n: what `match` counts by, on purpose."""
    return counter_words(purpose, start + node, 0, index)


# --- all of them ----------------------------------------------------------------------------------


def proof(rule, draw, parents, **options):
    laws = {"target": TARGET, "draft": DRAFT} | options.pop("laws", {})
    wrap = options.pop("wrap", lambda inner: inner)
    drafting = wrap(Grower(laws["draft"], draw, parents))
    options = {"num_tokens": 3} | options
    return lambda: prove(rule, drafting, laws["target"], **options)


def wrong_rule(rule, right, draw, parents):
    return Mutant(proof(rule, draw, parents), proof(right, draw, parents))


def wrong_draft(wrap, rule, draw, parents):
    return Mutant(proof(rule, draw, parents, wrap=wrap), proof(rule, draw, parents))


def wrong_counter(counter, rule, draw, parents, num_tokens=4):
    laws = {"target": NARROW, "draft": NARROW_DRAFT}
    options = {"laws": laws, "num_tokens": num_tokens}
    return Mutant(
        proof(rule, draw, parents, counter=counter, **options),
        proof(rule, draw, parents, **options),
    )


def one_sided(told, truth, rule=Rejection(), draw=REPEATED, parents=CHAIN):  # noqa: B008
    return Mutant(
        proof(rule, draw, parents, laws={"target": told}, truth=truth),
        proof(rule, draw, parents, laws={"target": truth}),
    )


MUTANTS = {
    "bonus from the draft": wrong_rule(TopDown(bonus_from_the_draft), Rejection(), REPEATED, CHAIN),
    "residual missing": wrong_rule(TopDown(no_residual), Rejection(), REPEATED, CHAIN),
    "wrong normaliser": wrong_rule(TopDown(wrong_normaliser), Rejection(), APART, PAIR),
    "equal draws judged once": wrong_rule(TopDown(equal_draws_once), Rejection(), REPEATED, PAIR),
    "set siblings judged as drawn": wrong_rule(
        TopDown(set_ones_as_drawn), Rejection(), Draw.TOP_AND_ONE, PAIR
    ),
    "k-seq with r = 1": wrong_rule(TopDown(too_eager), KSeq(), REPEATED, PAIR),
    "uncapped last acceptance": wrong_rule(UncappedEnd(), Block(), REPEATED, CHAIN),
    "peeking stop": wrong_draft(Peeking, Rejection(), REPEATED, CHAIN),
    "peeking stop, block": wrong_draft(Peeking, Block(), REPEATED, CHAIN),
    "dropping by the next law": wrong_draft(PeekingAtTheNextLaw, Rejection(), REPEATED, CHAIN),
    "siblings reordered by value": wrong_draft(Reordered, Rejection(), APART, PAIR),
    "siblings reordered, traversal": wrong_draft(Reordered, Traversal(), APART, PAIR),
    "draft law is not the sampling law": wrong_draft(
        lambda inner: WithAnotherLaw(replace(inner, law=truncated(inner.law)), inner.law),
        Rejection(), REPEATED, CHAIN,
    ),
    "top-p on one side only": one_sided(truncated(TARGET), TARGET),
    "mask on one side": one_sided(TARGET, masked(TARGET), Block()),
    "off-by-one penalties on a path": one_sided(
        penalised(TARGET, 1), penalised(TARGET, 0), Traversal(), APART, PAIR
    ),
    "tie rule changed": one_sided(highest_of_the_best, lowest_of_the_best),
    "noise reused across rounds": wrong_counter(same_in_every_round, Rejection(), REPEATED, (0,)),
    "siblings share draws": wrong_counter(same_for_siblings, KSeq(), REPEATED, PAIR),
    "nodes share draws": wrong_counter(same_for_every_node, Rejection(), REPEATED, CHAIN),
    "draft and verdict share a key": wrong_counter(
        same_for_draft_and_verdict, Rejection(), REPEATED, CHAIN
    ),
    "noise by position, block": wrong_counter(by_position, Block(), REPEATED, CHAIN),
    "noise by position, traversal": wrong_counter(by_position, Traversal(), REPEATED, CHAIN),
}  # fmt: skip
