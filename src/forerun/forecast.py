"""What is prepared while a verdict is pending: the draft's own tree, grown further.

An outcome is (exit node, bonus token): a child that the draft does not have, below one of its
nodes. A guess is such a child; the next draft is what grows below it. So a forecast is one tree
whose first nodes are those under verification, and a hit is finding the bonus among its guesses.

    draft      0 ── a ── b            being verified
    forecast   0 ── a ── b ── x ── …  all accepted, then x
                    │
                    └── y ── …        b rejected, y instead
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draft
from forerun.protocols import GrowthPlan
from forerun.tree import Tokens, TokenTree


@dataclass(frozen=True, slots=True, eq=False)
class ForecastPlan:
    """Drafts of B rows that are being verified, to be grown further; a backend runs it in one call.

    `below`: of the same rows what a `GrowthPlan` says: tokens not read yet with the pending one
    last, blocks, samplers, `growth` (`COUPLED` or `POINT`) and acceptance; `budgets` and `depths`
    are those of the next draft, below each guess. Its block table has room for all known tokens,
    the deepest draft, a guess and `depths`. `trees [B]`: the drafts, node 0 pending.
    `exits [B]`: nodes of each draft where its verdict may end, as far as that is prepared for.
    `num_branches [B]`: the most guesses. `num_offers`: so many best children of an exit are looked
    at. `deepest [1]` int32 may be written to while the call runs: 0 is as deep as planned, n > 0 no
    deeper than n levels below the guesses; a level that was begun is finished.
    """

    below: GrowthPlan
    trees: Sequence[TokenTree]
    exits: Sequence[Tokens]
    num_branches: Tokens
    num_offers: int
    deepest: NDArray[np.int32]


@runtime_checkable
class ForeseesText(Protocol):
    """A `Backend` whose model can grow drafts further."""

    def foresee(self, plan: ForecastPlan) -> list[Draft]:
        """Each row's draft grown further; the first nodes are those of `trees[b]`, as they are.

        The draft's nodes are read, and below each of `exits` its `num_offers` best children that
        the draft lacks are weighed by the chance that the verdict ends there with them: the score
        of the exit's path times acceptance by rank (among all children) and margin. The best
        `num_branches` are guesses; below them growth goes on level by level, all guesses at once,
        as `below` says. Margins, ranks and scores of all nodes are this model's; a drafted node
        that is not among its parent's `num_offers` best has rank `num_offers`, margin -inf.
        `expanded` are the nodes that were read. K/V of the catch-up tokens is kept in place; that
        of read nodes stays until the next call, for `keep(plan.below, row, path)`.
        """


@runtime_checkable
class ForeseesFeatures(Protocol):
    """A `FeatureBackend` that can grow drafts further, without features of any drafted token."""

    def foresee(self, plan: ForecastPlan, features: NDArray[np.float32]) -> list[Draft]:
        """As `ForeseesText.foresee`, with features as `FeatureBackend.grow` takes them."""


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """A draft grown further: the first `num_verified` nodes of `grown` are the draft's own.

    `version`: how many tokens the sequence had as the draft was made. A forecast answers verdicts
    on that very draft and no other.
    """

    version: int
    num_verified: int
    grown: Draft

    def guessed(self, tokens: Sequence[int]) -> int | None:
        """The guess that stands for what was kept: drafted tokens, then the bonus. None where the
        outcome was not prepared."""
        exit_node = self._exit(tokens)
        if exit_node is None:
            return None
        guess = self.grown.tree.child(exit_node, tokens[-1])
        return guess if guess is not None and guess >= self.num_verified else None

    def nearest(self, tokens: Sequence[int]) -> int | None:
        """The likeliest guess at the exit that came, whatever bonus it guessed: what follows one
        token often follows another. None where none was prepared there."""
        exit_node = self._exit(tokens)
        if exit_node is None:
            return None
        parents = self.grown.tree.parents
        here = np.flatnonzero(parents == exit_node)
        here = here[here >= self.num_verified]
        with_more = [int(node) for node in here if np.any(parents == node)]
        scores = self.grown.scores
        if not with_more or scores is None:
            return with_more[0] if with_more else None
        return max(with_more, key=lambda node: float(scores[node]))

    def below(self, guess: int, pending: int) -> Draft:
        """The draft prepared below a guess, whose node 0 is `pending`."""
        return subtree(self.grown, guess, pending)

    def _exit(self, tokens: Sequence[int]) -> int | None:
        """The draft's node where the kept tokens before the bonus end."""
        node = 0
        for token in tokens[:-1]:
            child = self.grown.tree.child(node, token)
            if child is None or child >= self.num_verified:
                return None
            node = child
        return node


def subtree(draft: Draft, root: int, pending: int) -> Draft:
    """What grows below `root`, which `pending` takes the place of; scores are relative to it."""
    parents = draft.tree.parents.tolist()
    place = {root: 0}
    for node in range(root + 1, len(parents)):
        if parents[node] in place:
            place[node] = len(place)
    kept = list(place)
    tokens = draft.tree.tokens[kept].copy()
    tokens[0] = pending
    own = [-1, *[place[parents[node]] for node in kept[1:]]]
    scores = draft.scores
    if scores is not None:
        whole = float(scores[root])
        scores = scores[kept] / whole if whole > 0 else scores[kept]
    return replace(
        draft,
        tree=TokenTree.made(tokens, np.array(own, np.int32)),
        expanded=None,
        margins=_first_unknown(draft.margins, kept),
        ranks=_first_unknown(draft.ranks, kept),
        scores=scores,
    )


_Value = TypeVar("_Value", bound=np.generic)


def _first_unknown(values: NDArray[_Value] | None, kept: list[int]) -> NDArray[_Value] | None:
    if values is None:
        return None
    own = values[kept].copy()
    own[0] = np.nan if own.dtype.kind == "f" else -1
    return own
