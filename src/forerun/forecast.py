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
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draft
from forerun.protocols import GrowthPlan, Outlook
from forerun.tree import Tokens, TokenTree


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What an earlier forecast read of a draft: `nodes [N]` int32, of each of its nodes which of
    those that `held`, a backend's own, is about; -1 is none. A node is not carried without its
    parent, and a row whose node 0 is has read all but that."""

    nodes: Tokens
    held: Any


@dataclass(frozen=True, slots=True, eq=False)
class ForecastPlan:
    """Drafts of B rows that are being verified, to be grown further; a backend runs it in one call.

    `below`: of the same rows what a `GrowthPlan` says: tokens not read yet with the pending one
    last, blocks, samplers, `growth` (`COUPLED` or `POINT`) and acceptance; `budgets` and `depths`
    are those of the next draft, below each guess. Its block table has room for all known tokens,
    the deepest draft, a guess and `depths`. `trees [B]`: the drafts, node 0 pending.
    `exits [B]`: nodes of each draft where its verdict may end, as far as that is prepared for.
    `num_branches [B]`: the most guesses; `per_exit`: the most of them below one exit, 0 for as many
    as there are. `num_offers`: so many best children of an exit are looked at. `deepest [1]`
    int32 may be written to while the call runs: 0 is as deep as planned, n > 0 no deeper than n
    levels below the guesses; a level that was begun is finished. `carried [B]`, or nothing: what
    need not be read again; a backend may read it again. `outcomes [B]`, or nothing: (exit, bonus)
    of each guess; then none are weighed, all of these are grown, and `growth` may be of draws,
    which are those of the round that follows its outcome.
    """

    below: GrowthPlan
    trees: Sequence[TokenTree]
    exits: Sequence[Tokens]
    num_branches: Tokens
    num_offers: int
    deepest: NDArray[np.int32]
    carried: Sequence[Carried | None] = ()
    outcomes: Sequence[Sequence[tuple[int, int]]] = ()
    per_exit: int = 0


NUM_OFFERS = 8  # children of a draft's node that are looked at for guesses


def forecast_plan(
    text: GrowthPlan,
    drafts: Sequence[Draft],
    outlook: Outlook,
    rows: Sequence[int],
    num_levels: int,
    carried: Sequence[Carried | None] = (),
) -> ForecastPlan:
    """What an outlook asks of some of its rows, no deeper than `num_levels` below a guess.

    `text` is those rows' plan of an ordinary proposal: what they have not read, and how they grow;
    `carried` is of the same rows.
    """
    at = list(rows)
    depths = np.minimum(outlook.depths[at], num_levels).astype(np.int32)
    return ForecastPlan(
        replace(text, budgets=outlook.most[at], depths=depths),
        trees=[drafts[row].tree for row in at],
        exits=[outlook.exits[row] for row in at],
        num_branches=np.full(len(at), outlook.num_branches, np.int32),
        num_offers=NUM_OFFERS,
        deepest=outlook.deepest,
        carried=carried,
        per_exit=outlook.per_exit,
    )


def given_plan(
    text: GrowthPlan, tree: TokenTree, outcomes: Sequence[tuple[int, int]]
) -> ForecastPlan:
    """Drafts below these outcomes of one row's draft; `text` is its plan of a proposal."""
    none = np.zeros(1, np.int32)
    return ForecastPlan(text, [tree], [none[:0]], none, 1, none.copy(), outcomes=[outcomes])


@runtime_checkable
class ForeseesText(Protocol):
    """A `Backend` whose model can grow drafts further."""

    def foresee(self, plan: ForecastPlan) -> list[Draft]:
        """Each row's draft grown further; the first nodes are those of `trees[b]`, as they are.

        The draft's nodes are read, and below each of `exits` its `num_offers` best children that
        the draft lacks are weighed by the chance that the verdict ends there with them: the score
        of the exit's path times acceptance by rank (among all children) and margin. The best
        `num_branches` are guesses, of one exit `per_exit` at most; below them growth goes on level
        by level, all guesses at once, as `below` says. Margins, ranks and scores of all nodes are
        this model's; a drafted node that is not among its parent's `num_offers` best has rank
        `num_offers`, margin -inf. `expanded` are the nodes that were read. K/V of the catch-up
        tokens is kept in place; that of read nodes stays until the next call, for
        `keep(plan.below, row, path)`.
        """


@runtime_checkable
class Carries(Protocol):
    """A backend that lets what a forecast read be taken over by a later one."""

    def take(self, plan: GrowthPlan, row: int, nodes: Sequence[int]) -> tuple[int, Any]:
        """What was read of the first so many of expanded nodes, parents before children, below
        guesses of a row of the last forecast, whose plan `below` is `plan`; as `Carried.held`.
        None of them if another call came between."""


@runtime_checkable
class ForeseesDraws(Protocol):
    """A backend whose model can grow drafts further below given outcomes, by draws."""

    def foresee_given(self, plan: ForecastPlan) -> list[Draft]:
        """As `ForeseesText.foresee`, below `plan.outcomes` in their order. A draft's nodes have no
        figures and no law; `expanded` are the nodes below that have one. Nothing can be kept."""


@runtime_checkable
class ForeseesFeatures(Protocol):
    """A `FeatureBackend` that can grow drafts further, without features of any drafted token."""

    def foresee(self, plan: ForecastPlan, features: NDArray[np.float32]) -> list[Draft]:
        """As `ForeseesText.foresee`, with features as `FeatureBackend.grow` takes them."""


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """A draft grown further: the first `num_verified` nodes of `grown` are the draft's own.

    `version`: how many tokens the sequence had as the draft was made. What is asked of a forecast
    is always all that was kept since, so one that comes late can only be of less use, never wrong.
    """

    version: int
    num_verified: int
    grown: Draft

    def reached(self, kept: Sequence[int]) -> int | None:
        """The node that stands for the last token kept; None where none was prepared for it."""
        node = self._walk(kept)
        return node if node is not None and node >= self.num_verified else None

    def nearest(self, kept: Sequence[int]) -> int | None:
        """The likeliest guess with something below it where the drafted tokens end, whatever bonus
        it guessed: what follows one token often follows another. None where there is none."""
        exit_node = self._walk(kept[:-1])
        if exit_node is None:
            return None
        parents, scores = self.grown.tree.parents, self.grown.scores
        below = [int(node) for node in np.flatnonzero(parents == exit_node)]
        guesses = [at for at in below if at >= self.num_verified and np.any(parents == at)]
        if not guesses or scores is None:
            return guesses[0] if guesses else None
        return max(guesses, key=lambda at: float(scores[at]))

    def _walk(self, tokens: Sequence[int]) -> int | None:
        node = 0
        for token in tokens:
            child = self.grown.tree.child(node, token)
            if child is None:
                return None
            node = child
        return node


def subtree(draft: Draft, root: int, pending: int) -> Draft:
    """What grows below `root`, whose place `pending` takes; scores are relative to it.

    Nodes keep their order, so draws that count by node keep their numbers.
    """
    parents = draft.tree.parents.tolist()
    place = {root: 0}
    for node in range(root + 1, len(parents)):
        if parents[node] in place:
            place[node] = len(place)
    tokens = draft.tree.tokens[list(place)].copy()
    tokens[0] = pending
    own = [-1, *[place[parents[node]] for node in list(place)[1:]]]
    tree = TokenTree.made(tokens, np.array(own, np.int32))
    return _restricted(draft, place, tree)


def cut(draft: Draft, most: int, depth: int) -> Draft:
    """The first `most` drafted nodes that are no deeper than `depth`."""
    tree = draft.tree
    if len(tree) <= 1 + most and (depth >= len(tree) - 1 or int(tree.depths().max()) <= depth):
        return draft
    shallow = np.flatnonzero(tree.depths() <= depth).tolist()[: 1 + max(0, most)]
    return keeping(draft, shallow)


def keeping(draft: Draft, nodes: Sequence[int]) -> Draft:
    """Only these nodes of a draft: node 0 first, ascending, each with its parent."""
    place = {node: at for at, node in enumerate(nodes)}
    parents = draft.tree.parents.tolist()
    own = [-1, *[place[parents[node]] for node in nodes[1:]]]
    tree = TokenTree.made(draft.tree.tokens[list(nodes)], np.array(own, np.int32))
    return _restricted(draft, place, tree)


def _restricted(draft: Draft, place: dict[int, int], tree: TokenTree) -> Draft:
    """A draft's figures of the nodes in `place`, which says where each stands in `tree`."""
    kept = list(place)
    scores, expanded = draft.scores, draft.expanded
    if scores is not None:
        whole = float(scores[kept[0]])
        scores = scores[kept] / whole if whole > 0 else scores[kept]
        scores[0] = np.nan
    damping, rows = draft.damping, list[int]()
    if expanded is not None:
        rows = [at for at, node in enumerate(expanded.tolist()) if node in place]
        expanded = np.array([place[int(node)] for node in expanded[rows]], np.int32)
    if damping is not None:
        damping = replace(damping, tokens=damping.tokens[rows])
    return replace(
        draft,
        tree=tree,
        expanded=expanded,
        law=None if draft.law is None else draft.law[rows],
        draws=None if draft.draws is None else draft.draws[rows],
        damping=damping,
        margins=_rootless(draft.margins, kept),
        ranks=_rootless(draft.ranks, kept),
        scores=scores,
        chances=_rootless(draft.chances, kept),
    )


_Value = TypeVar("_Value", bound=np.generic)


def _rootless(values: NDArray[_Value] | None, kept: list[int]) -> NDArray[_Value] | None:
    """Figures of the kept nodes; the first is a root now, of which there are none."""
    if values is None:
        return None
    own = values[kept].copy()
    own[0] = np.nan if own.dtype.kind == "f" else -1
    return own
