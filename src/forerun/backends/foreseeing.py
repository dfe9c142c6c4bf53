"""How drafts grow further while they are verified, in readable Python: what the native core's one
call must agree with.

Knows plans, laws and candidates; the forward pass is whatever `read` does (`growing.Read`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from forerun.backends.growing import (
    Candidate,
    Offered,
    Read,
    Row,
    acceptance,
    add_children,
    begun,
    offered,
)
from forerun.draft import Draft, Draw
from forerun.forecast import ForecastPlan
from forerun.protocols import GrowthPlan
from forerun.shapes.tree import children_of
from forerun.tree import TokenTree

# Of each node of a row's draft: its children, best first, as far as they are known.
Offers = dict[int, list[Offered]]


@dataclass(slots=True)
class _Branch:
    """What grows below a guess: candidates of its row, the guess first. Their scores are as if the
    guess were certain; `chance` is how likely it is."""

    chance: float
    nodes: list[int]


@dataclass(slots=True)
class _Ahead:
    """A row whose candidates are its draft's nodes, then guesses, then what grows below them."""

    row: Row
    num_verified: int
    branches: list[_Branch]


def foresee(plan: ForecastPlan, read: Read, *, by_level: bool = False) -> list[Draft]:
    """`plan.trees` grown further; see `forecast.ForeseesText`.

    `by_level`: a node is read after the one above it, a pass a level; else drafts are read in the
    pass that reads the text.
    """
    rows = [_row(plan, index) for index in range(len(plan.trees))]
    offers, num_passes = _read_drafts(plan, rows, read, by_level=by_level)
    ahead = [
        _guessed(plan, index, row, own)
        for index, (row, own) in enumerate(zip(rows, offers, strict=True))
    ]
    num_passes += _grow(plan, ahead, read)
    return [_draft(one, plan.below, num_passes) for one in ahead]


def _row(plan: ForecastPlan, index: int) -> Row:
    row, tree = begun(plan.below, index), plan.trees[index]
    for token, parent in zip(tree.tokens[1:].tolist(), tree.parents[1:].tolist(), strict=True):
        row.nodes.append(Candidate(token, parent, depth=row.nodes[parent].depth + 1))
    return row


# --- the draft ------------------------------------------------------------------------------------


def _read_drafts(
    plan: ForecastPlan, rows: list[Row], read: Read, *, by_level: bool
) -> tuple[list[Offers], int]:
    """What all nodes of all drafts offer, and how many passes that took."""
    offers: list[Offers] = [{} for _ in rows]
    draw = plan.below.growth.draw
    waves = list(_waves(rows, by_level=by_level))
    for leaves in waves:
        for (index, node), line in zip(leaves, read(rows, leaves), strict=True):
            row = rows[index]
            row.nodes[node].is_expanded = True
            # Of a law every token's probability is known.
            most = len(line) if draw is Draw.POINT else plan.num_offers
            offers[index][node] = offered(row, node, line, most, draw)
    return offers, len(waves) if by_level else 1


def _waves(rows: list[Row], *, by_level: bool) -> Iterator[list[tuple[int, int]]]:
    """Nodes in the order they are read: the pending ones with the text, then the drafted ones."""
    for level in count():
        leaves = [
            (index, node)
            for index, row in enumerate(rows)
            for node, one in enumerate(row.nodes)
            if one.depth == level or (level == 1 and one.depth > 1 and not by_level)
        ]
        if not leaves or (level > 1 and not by_level):
            return
        yield leaves


def _guessed(plan: ForecastPlan, index: int, row: Row, offers: Offers) -> _Ahead:
    """Weigh a row's draft, then add the likeliest bonuses that it lacks."""
    num_verified = len(row.nodes)
    for node in range(1, num_verified):
        _weigh(plan, row, node, offers)
    guesses = [
        (node, rank, one)
        for node in sorted(set(plan.exits[index].tolist()))
        for rank, one in enumerate(offers[node][: plan.num_offers])
        if plan.trees[index].child(node, one.token) is None
    ]
    chances = [row.nodes[node].score * one.chance for node, _, one in guesses]
    best = sorted(range(len(guesses)), key=lambda at: -chances[at])
    if plan.per_exit:
        places = _places_of([guesses[at][0] for at in best])
        best = [at for at, place in zip(best, places, strict=True) if place < plan.per_exit]
    branches: list[_Branch] = []
    for at in sorted(best[: int(plan.num_branches[index])]):
        node, rank, one = guesses[at]
        branches.append(_Branch(chances[at], [len(row.nodes)]))
        depth = row.nodes[node].depth + 1
        row.nodes.append(Candidate(one.token, node, rank, depth, margin=one.margin))
    return _Ahead(row, num_verified, branches)


def _places_of(exits: list[int]) -> list[int]:
    """Of each of these how many like it stand before it."""
    seen: Counter[int] = Counter()
    places = []
    for node in exits:
        places.append(seen[node])
        seen[node] += 1
    return places


def _weigh(plan: ForecastPlan, row: Row, node: int, offers: Offers) -> None:
    """Rank, margin and score of a drafted node, whose parent has them."""
    one = row.nodes[node]
    siblings = offers[one.parent]
    rank = next((at for at, other in enumerate(siblings) if other.token == one.token), None)
    is_known = rank is not None and rank < plan.num_offers
    one.rank = rank if is_known and rank is not None else plan.num_offers
    one.margin = siblings[one.rank].margin if is_known else -math.inf
    if rank is not None:
        chance = siblings[rank].chance
    elif plan.below.growth.draw is Draw.POINT:
        chance = 0.0
    else:
        chance = acceptance(row, one.rank, one.margin)
    one.score = row.nodes[one.parent].score * chance


# --- what grows below guesses ---------------------------------------------------------------------


def _grow(plan: ForecastPlan, ahead: list[_Ahead], read: Read) -> int:
    """Grow all branches level by level; how many levels that were."""
    below, rows = plan.below, [one.row for one in ahead]
    children = children_of(below.growth.parents or ())
    level = 0
    while not 0 < int(plan.deepest[0]) <= level:
        tips = [
            (index, node, branch)
            for index, one in enumerate(ahead)
            if level < one.row.depth
            for branch in one.branches
            for node in _tips(one.row, branch, below, children)
        ]
        if not tips:
            break
        lines = read(rows, [(index, node) for index, node, _ in tips])
        for (index, node, branch), line in zip(tips, lines, strict=True):
            nodes = rows[index].nodes
            first = len(nodes)
            places = _places(rows[index], branch, node, below, children)
            add_children(rows[index], node, line, below, places)
            branch.nodes += range(first, len(nodes))
        level += 1
    return level


def _places(
    row: Row, branch: _Branch, node: int, plan: GrowthPlan, children: list[list[int]]
) -> list[int]:
    """Where the children of a node would stand in its branch; none where it may have none."""
    depth = row.nodes[node].depth - row.nodes[branch.nodes[0]].depth
    if depth >= row.depth:
        return []
    if plan.growth.parents is None:
        return [0] * plan.growth.width if row.budget > 0 else []
    return [place for place in children[row.nodes[node].place] if place <= row.budget]


def _tips(row: Row, branch: _Branch, plan: GrowthPlan, children: list[list[int]]) -> list[int]:
    """Which nodes of a branch to read next, in order of age: the guess alone at first."""
    growth = plan.growth
    open_nodes = [
        node
        for node in branch.nodes
        if not row.nodes[node].is_expanded and _places(row, branch, node, plan, children)
    ]
    if growth.parents is not None or open_nodes == branch.nodes:
        return open_nodes
    scores = [row.nodes[node].score for node in _paid(row, branch, growth.least)]

    def may_pay(score: float) -> bool:
        # A child is no better than its parent.
        better = bool(scores) and score > scores[-1]
        return better or (len(scores) < row.budget and score >= growth.least)

    could = [node for node in open_nodes if may_pay(row.nodes[node].score)]
    best = sorted(could, key=lambda node: -row.nodes[node].score)[: growth.frontier]
    return sorted(best)


def _paid(row: Row, branch: _Branch, least: float) -> list[int]:
    """The nodes below a guess that are good enough and within its budget, best first."""
    enough = [node for node in branch.nodes[1:] if row.nodes[node].score >= least]
    return sorted(enough, key=lambda node: -row.nodes[node].score)[: row.budget]


def _draft(ahead: _Ahead, plan: GrowthPlan, num_passes: int) -> Draft:
    """The draft, guesses and what is kept below them, in order of age."""
    nodes, growth = ahead.row.nodes, plan.growth
    chances = dict.fromkeys(range(ahead.num_verified), 1.0)
    for branch in ahead.branches:
        kept = branch.nodes[1:]
        if growth.parents is None:
            kept = _paid(ahead.row, branch, growth.least)
        chances |= dict.fromkeys([branch.nodes[0], *kept], branch.chance)
    place = {node: at for at, node in enumerate(sorted(chances))}
    tree = TokenTree(
        np.array([nodes[node].token for node in place], np.int32),
        np.array([place.get(nodes[node].parent, -1) for node in place], np.int32),
    )
    margins = np.array([nodes[node].margin for node in place], np.float32)
    told = plan.is_told and growth.draw is Draw.COUPLED
    return Draft(
        tree,
        growth.draw,
        np.array([at for node, at in place.items() if nodes[node].is_expanded], np.int32),
        margins=margins if growth.draw is Draw.COUPLED else None,
        ranks=np.array([nodes[node].rank for node in place], np.int32),
        scores=np.array([chances[node] * nodes[node].score for node in place], np.float32),
        num_passes=num_passes,
        chances=np.array([nodes[node].chance for node in place], np.float32) if told else None,
    )
