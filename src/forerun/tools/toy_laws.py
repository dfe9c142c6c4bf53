"""Tiny laws, and the draws and trees that go with each rule: what the oracle proves things on.

A law is a seeded table by text: behind every text another one, so nothing is exact by symmetry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draw
from forerun.protocols import Rule
from forerun.rules.block import Block
from forerun.rules.kseq import KSeq
from forerun.rules.rejection import Rejection
from forerun.rules.traversal import Traversal
from forerun.tools.oracle import Grower, Law, Proof, Table, Text, prove

# How target and draft relate: any laws; with zeros; all but disjoint; the same; the same but for
# rounding; both greedy; a greedy target of a sampling draft, and the other way round.
KINDS = (
    "dense", "sparse", "apart", "same", "rounded", "greedy", "greedy target", "greedy draft",
)  # fmt: skip
PLAIN: tuple[int, ...] = ()
CHAINS = (PLAIN, (0,), (0, 1), (0, 1, 2))
TREES = ((0, 0), (0, 1, 0), (0, 0, 1, 1, 2))
LEAST = 0.7  # of `certainty`: about half of the dense laws are below

RULES: dict[str, Rule] = {
    "rejection": Rejection(),
    "block": Block(),
    "traversal": Traversal(),
    "kseq": KSeq(),
}
# Which draws a rule may judge, and whether in trees.
ALLOWED = (
    ("rejection", Draw.SAMPLED, True),
    ("rejection", Draw.WITHOUT_REPLACEMENT, True),
    ("rejection", Draw.TOP_AND_ONE, True),
    ("rejection", Draw.POINT, True),
    ("block", Draw.SAMPLED, False),
    ("block", Draw.WITHOUT_REPLACEMENT, False),
    ("traversal", Draw.SAMPLED, False),
    ("traversal", Draw.WITHOUT_REPLACEMENT, True),
    ("kseq", Draw.SAMPLED, True),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One composition on one pair of laws."""

    rule: str
    draw: Draw
    parents: tuple[int, ...]
    kind: str
    vocab: int = 2
    least: float = 0.0
    num_tokens: int = 4
    damped: tuple[int, float] | None = None

    def __str__(self) -> str:
        shape = "".join(map(str, self.parents)) or "plain"
        stop = "-stop" if self.least else ""
        laws = f"{self.kind}-V{self.vocab}-{self.num_tokens}"
        less = "-{}x{:g}".format(*self.damped) if self.damped else ""
        return f"{self.rule}-{self.draw.value}-{shape}{stop}{less}-{laws}"

    def prove(self, seed: int = 0) -> Proof:
        """Play it to the end."""
        target, draft = toy_pair(self.kind, self.vocab, seed)
        drafting = Grower(draft, self.draw, self.parents, self.least, self.damped)
        return prove(RULES[self.rule], drafting, target, num_tokens=self.num_tokens)


def shapes(*, has_trees: bool) -> tuple[tuple[int, ...], ...]:
    """Templates by the parents of their drafted nodes."""
    return CHAINS + TREES if has_trees else CHAINS


def every_case() -> Iterator[Case]:
    """Every allowed rule, draw and shape on every kind of laws; stops and more tokens on some."""
    for rule, draw, has_trees in ALLOWED:
        for parents in shapes(has_trees=has_trees):
            num_tokens = 3 if parents in TREES else 4
            for kind in KINDS:
                yield Case(rule, draw, parents, kind, num_tokens=num_tokens)
            if len(parents) > 1:
                yield Case(rule, draw, parents, "dense", 2, LEAST, num_tokens)
            if parents in ((0,), (0, 0)):  # two tokens a round at most: three rounds on every path
                yield Case(rule, draw, parents, "dense", num_tokens=6)
            if len(parents) in (1, 2):
                yield Case(rule, draw, parents, "dense", 3, LEAST, 3)
                yield Case(rule, draw, parents, "sparse", 3, 0.0, 3)
                yield Case(rule, draw, parents, "sparse", 4, 0.0, 3)
    yield from damped_cases()


def damped_cases() -> Iterator[Case]:
    """Every rule and draw that has a law, with its likeliest tokens drawn more rarely."""
    for rule, draw, has_trees in ALLOWED:
        if draw is Draw.POINT:
            continue
        for parents in shapes(has_trees=has_trees)[1:]:
            num_tokens = 3 if parents in TREES else 4
            for kind in ("dense", "sparse", "rounded", "greedy target", "greedy draft"):
                yield Case(rule, draw, parents, kind, 2, 0.0, num_tokens, (1, 0.5))
            if len(parents) > 1:
                yield Case(rule, draw, parents, "dense", 2, LEAST, num_tokens, (1, 0.25))
            if len(parents) < 3:
                yield Case(rule, draw, parents, "dense", 3, 0.0, 3, (1, 0.25))
                yield Case(rule, draw, parents, "same", 3, 0.0, 3, (1, 0.5))
                yield Case(rule, draw, parents, "dense", 4, 0.0, 3, (2, 0.5))
            if parents in ((0,), (0, 0)):  # three rounds on every path
                yield Case(rule, draw, parents, "dense", 2, 0.0, 6, (1, 0.5))


def representative() -> list[tuple[Case, Proof]]:
    """A few seconds' worth of proofs that covers every rule and draw, chains and trees."""
    cases = [
        Case(rule, draw, parents, "dense", num_tokens=3, damped=damped)
        for damped in (None, (1, 0.5))
        for rule, draw, has_trees in ALLOWED
        for parents in ((0, 1), (0, 0))
        if (has_trees or parents == (0, 1)) and not (damped and draw is Draw.POINT)
    ]
    return [(case, case.prove()) for case in cases]


def toy_pair(kind: str, vocab: int, seed: int = 0) -> tuple[Law, Law]:
    """The laws of a target and of its draft."""
    target = Table(lambda text: _law(_kind_of_target(kind), vocab, (seed, 1), text))
    if kind == "same":
        return target, target
    if kind == "rounded":
        return target, Table(lambda text: _rounded(target(text)))
    if kind == "apart":
        return target, Table(lambda text: _apart(target(text), seed, text))
    return target, Table(lambda text: _law(_kind_of_draft(kind), vocab, (seed, 2), text))


def _kind_of_target(kind: str) -> str:
    return {"greedy target": "greedy", "apart": "sparse"}.get(kind, kind)


def _kind_of_draft(kind: str) -> str:
    return {"greedy draft": "greedy", "greedy target": "dense"}.get(kind, kind)


def _law(kind: str, vocab: int, key: tuple[int, int], text: Text) -> NDArray[np.float32]:
    rng = np.random.default_rng([*key, len(text), *text])
    weights = rng.dirichlet(np.ones(vocab))
    if kind == "greedy":
        weights = np.eye(vocab)[rng.integers(vocab)]
    if kind == "sparse":
        weights[1 + rng.integers(vocab - 1) :] = 0.0
        weights = rng.permutation(weights / weights.sum())
    law: NDArray[np.float32] = weights.astype(np.float32)
    return law


def _rounded(law: NDArray[np.float32]) -> NDArray[np.float32]:
    """The next float32 of every probability."""
    next_one: NDArray[np.float32] = np.nextafter(law, np.float32(2.0))
    return next_one


def _apart(law: NDArray[np.float32], seed: int, text: Text) -> NDArray[np.float32]:
    """Most of its weight where the law has none."""
    rng = np.random.default_rng([seed, 3, len(text), *text])
    weights = np.where(law > 0, 0.1 * rng.integers(2, size=len(law)), 1.0)
    if not weights.any():
        weights[rng.integers(len(law))] = 1.0
    other: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return other
