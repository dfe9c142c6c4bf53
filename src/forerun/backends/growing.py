"""How a tree grows, in readable Python: what the native core's one call must agree with.

Knows plans, laws and candidates; the forward pass is whatever `read` does. The torch backend grows
by it, and tests hold the native core against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun import sampling
from forerun.composition import LONGEST
from forerun.draft import Damping, Draft, Draw
from forerun.errors import BackendError
from forerun.noise import RoundNoise
from forerun.protocols import (
    LEAST_MARGIN,
    MARGIN_STEP,
    NUM_MARGINS,
    NUM_RANKS,
    ForwardBatch,
    ForwardOutput,
    GrowthPlan,
    Sampler,
)
from forerun.shapes.draw import damp, draw_children
from forerun.shapes.tree import children_of
from forerun.tree import TokenTree

Logits = NDArray[np.float32]
# Of each leaf `(row, candidate)`: the logits below it, given every row's candidates so far.
Read: TypeAlias = Callable[[Sequence["Row"], Sequence[tuple[int, int]]], Logits]


@dataclass(slots=True)
class Candidate:
    """A token that was offered; `place` is its node in a given tree."""

    token: int
    parent: int
    rank: int = -1
    depth: int = 0
    place: int = 0
    margin: float = math.nan
    score: float = 1.0
    chance: float = math.nan
    is_expanded: bool = False


@dataclass(slots=True)
class Row:
    """One row's candidates; 0 is the pending token. `laws`, `draws` and `damped` of sampled nodes:
    what was drawn from, what was drawn, and which tokens the law was damped at."""

    sampler: Sampler
    known: int
    budget: int
    depth: int
    acceptance: NDArray[np.float32]
    nodes: list[Candidate]
    laws: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    draws: dict[int, list[int]] = field(default_factory=dict)
    damped: dict[int, list[int]] = field(default_factory=dict)

    def path(self, node: int) -> list[int]:
        """Drafted tokens from a child of the pending one down to `node`."""
        tokens: list[int] = []
        while node > 0:
            tokens.append(self.nodes[node].token)
            node = self.nodes[node].parent
        return tokens[::-1]


def grow(plan: GrowthPlan, read: Read) -> list[Draft]:
    """One draft a row; see `protocols.Growth`."""
    rows = [begun(plan, index) for index in range(len(plan.committed))]
    children = children_of(plan.growth.parents or ())
    leaves = [(index, 0) for index in range(len(rows))]
    num_passes = 0
    for level in range(1, 1 + max(1, min(LONGEST, int(plan.depths.max())))):
        for (index, node), line in zip(leaves, read(rows, leaves), strict=True):
            _offer(rows[index], node, line, plan, children)
        num_passes += 1
        leaves = [
            (index, node)
            for index, row in enumerate(rows)
            if level < row.depth
            for node in _chosen(row, plan, children)
        ]
        hope = sum(rows[index].nodes[node].score for index, node in leaves)
        if not leaves or (plan.growth.parents is None and hope < plan.pass_price):
            break
    return [replace(_draft(row, plan), num_passes=num_passes) for row in rows]


def begun(plan: GrowthPlan, index: int) -> Row:
    """A row with its pending token and nothing below."""
    start, end = plan.catch_up_starts[index : index + 2].tolist()
    return Row(
        sampler=plan.samplers[index],
        known=int(plan.committed[index]) + end - start,
        budget=int(plan.budgets[index]),
        depth=min(LONGEST, int(plan.depths[index])),
        acceptance=plan.acceptance[index],
        nodes=[Candidate(int(plan.catch_up[end - 1]), -1)],
    )


def _places(row: Row, node: int, plan: GrowthPlan, children: list[list[int]]) -> list[int]:
    """Where the children of a node would stand; none where it may have none."""
    if row.nodes[node].depth >= row.depth:
        return []
    if plan.growth.parents is None:
        return [0] * plan.growth.width if row.budget > 0 else []
    return [place for place in children[row.nodes[node].place] if place <= row.budget]


def _offer(
    row: Row, node: int, logits: Logits, plan: GrowthPlan, children: list[list[int]]
) -> None:
    """Add what a node offers within budget and depth."""
    add_children(row, node, logits, plan, _places(row, node, plan, children))


def add_children(
    row: Row, node: int, logits: Logits, plan: GrowthPlan, places: Sequence[int]
) -> None:
    """Add what a node offers, at most one child a place; a row without a law offers nothing."""
    row.nodes[node].is_expanded = True
    if not places:
        return
    if plan.growth.draw.is_sampled:
        with suppress(BackendError):
            _offer_drawn(row, node, logits, places, plan)
        return
    listed = offered(row, node, logits, len(places), plan.growth.draw)
    for rank, (one, place) in enumerate(zip(listed, places, strict=False)):
        child = _child(row, node, one.token, rank, place)
        child.margin = one.margin
        child.score *= one.chance
    if _tells(plan) and listed:
        law = _softened(row, node, logits)
        for child in row.nodes[-len(listed) :]:
            child.chance = float(law[child.token])


def _tells(plan: GrowthPlan) -> bool:
    return plan.is_told and plan.growth.draw is Draw.COUPLED


@dataclass(frozen=True, slots=True)
class Offered:
    """A child that a node may have; `chance`: how likely it is kept if its parent is."""

    token: int
    margin: float
    chance: float


def offered(row: Row, node: int, logits: Logits, count: int, draw: Draw) -> list[Offered]:
    """The `count` best children of a node by `COUPLED` or `POINT`; none without a law or token."""
    try:
        if draw is Draw.COUPLED:
            return _coupled(row, node, logits, count)
        return _likeliest(row, node, logits, count)
    except BackendError:
        return []


def _coupled(row: Row, node: int, logits: Logits, count: int) -> list[Offered]:
    path = row.path(node)
    asked = max(2, count)  # a margin needs somebody to be compared with
    tokens, values = sampling.ranked(logits, row.sampler, row.known + len(path), path, asked)
    made: list[Offered] = []
    for rank, token in enumerate(tokens[:count]):
        rival = 0 if rank else 1
        apart = values[rank] - values[rival] if rival < len(values) else math.inf
        margin = float(np.float32(apart))
        made.append(Offered(token, margin, acceptance(row, rank, margin)))
    return made


def _softened(row: Row, node: int, logits: Logits) -> NDArray[np.float32]:
    """The law below a node; a greedy row's is that of temperature 1."""
    sampler = row.sampler
    if sampler.params.temperature == 0:
        sampler = replace(sampler, params=replace(sampler.params, temperature=1.0))
    return sampling.law(sampling.process(logits, sampler, row.path(node))).astype(np.float32)


def _likeliest(row: Row, node: int, logits: Logits, count: int) -> list[Offered]:
    law = _softened(row, node, logits)
    best = np.argsort(-law, kind="stable")[:count].tolist()
    return [Offered(token, math.nan, float(law[token])) for token in best if law[token] > 0]


def _offer_drawn(
    row: Row, node: int, logits: Logits, places: Sequence[int], plan: GrowthPlan
) -> None:
    law = sampling.law(sampling.process(logits, row.sampler, row.path(node))).astype(np.float32)
    if plan.growth.least > 0:
        some = law[law > 0].astype(np.float64)
        if 1 - math.sqrt(0.2 * -float(some @ np.log(some))) < plan.growth.least:
            return
    noise = RoundNoise(row.sampler.seed, row.sampler.params.choice, row.known)
    law, row.damped[node] = damp(law, plan.growth.damped, plan.growth.draw, len(places))
    drawn = draw_children(law, len(places), plan.growth.draw, node, noise)
    row.laws[node], row.draws[node] = law, drawn
    for rank, (token, place) in enumerate(zip(dict.fromkeys(drawn), places, strict=False)):
        _child(row, node, token, rank, place)


def _child(row: Row, node: int, token: int, rank: int, place: int) -> Candidate:
    parent = row.nodes[node]
    child = Candidate(token, node, rank, parent.depth + 1, place, score=parent.score)
    row.nodes.append(child)
    return child


def acceptance(row: Row, rank: int, margin: float) -> float:
    """How often a child of that rank and margin is kept."""
    within = min(max(margin, -1e9), 1e9)
    at = min(max(math.floor((within - LEAST_MARGIN) / MARGIN_STEP), 0), NUM_MARGINS - 1)
    return min(1.0, max(0.0, float(row.acceptance[min(rank, NUM_RANKS - 1), at])))


def _chosen(row: Row, plan: GrowthPlan, children: list[list[int]]) -> list[int]:
    """Which nodes to expand next, in order of age."""
    growth = plan.growth
    open_nodes = [
        node
        for node, one in enumerate(row.nodes)
        if not one.is_expanded and _places(row, node, plan, children)
    ]
    if growth.parents is not None or not open_nodes:
        return open_nodes
    scores, paid = _paid(row, plan)
    has_room = paid < row.budget

    def may_pay(score: float) -> bool:
        # A child is no better than its parent.
        better = paid > 0 and score > scores[paid - 1]
        return better or (has_room and score >= _price(plan, paid))

    could = [node for node in open_nodes if may_pay(row.nodes[node].score)]
    best = sorted(could, key=lambda node: -row.nodes[node].score)[: growth.frontier]
    return sorted(best)


def _price(plan: GrowthPlan, at: int) -> float:
    """What the node at a place, best first from 0, must score."""
    own = float(np.float32(plan.prices[min(at, len(plan.prices) - 1)]))
    return max(plan.growth.least, own)


def _paid(row: Row, plan: GrowthPlan) -> tuple[list[float], int]:
    """All scores, best first, and how many of them pay for themselves within the budget."""
    scores = sorted((one.score for one in row.nodes[1:]), reverse=True)
    paid = 0
    while paid < min(row.budget, len(scores)) and scores[paid] >= _price(plan, paid):
        paid += 1
    return scores, paid


def _draft(row: Row, plan: GrowthPlan) -> Draft:
    """The best of the budget, in order of age: a parent is older than its child and no worse."""
    nodes, growth = row.nodes, plan.growth
    kept = list(range(1, len(nodes)))
    if growth.parents is None:
        _, paid = _paid(row, plan)
        kept = sorted(sorted(kept, key=lambda node: -nodes[node].score)[:paid])
    kept = [0, *kept]
    place = {node: at for at, node in enumerate(kept)}
    tree = TokenTree(
        np.array([nodes[node].token for node in kept], np.int32),
        np.array([place.get(nodes[node].parent, -1) for node in kept], np.int32),
    )
    ranks = np.array([nodes[node].rank for node in kept], np.int32)
    if not growth.draw.is_sampled:
        return Draft(
            tree,
            growth.draw,
            np.array([place[node] for node in kept if nodes[node].is_expanded], np.int32),
            margins=_floats(nodes, kept, "margin") if growth.draw is Draw.COUPLED else None,
            ranks=ranks,
            scores=_floats(nodes, kept, "score"),
            chances=_floats(nodes, kept, "chance") if _tells(plan) else None,
        )
    return Draft(
        tree,
        growth.draw,
        np.array(list(row.laws), np.int32),
        _stacked(row),
        _draws(row) if growth.draw is Draw.SAMPLED else None,
        ranks=ranks,
        damping=Damping.of(list(row.damped.values()), growth.damped),
    )


def _floats(nodes: list[Candidate], kept: list[int], name: str) -> NDArray[np.float32]:
    return np.array([getattr(nodes[node], name) for node in kept], np.float32)


def _stacked(row: Row) -> NDArray[np.float32]:
    laws = list(row.laws.values())
    return np.stack(laws) if laws else np.zeros((0, 0), np.float32)


def _draws(row: Row) -> NDArray[np.int32]:
    width = max((len(drawn) for drawn in row.draws.values()), default=0)
    padded = [drawn + [-1] * (width - len(drawn)) for drawn in row.draws.values()]
    return np.array(padded, np.int32).reshape(len(padded), width)


Forward: TypeAlias = Callable[[ForwardBatch], ForwardOutput]
Keep: TypeAlias = Callable[[ForwardBatch, Sequence[Sequence[int]]], None]


def rereader(forward: Forward, keep: Keep, plan: GrowthPlan) -> Read:
    """Reads leaves by computing each row's whole tree anew: right on every backend, fast on none.

    `forward` and `keep` are a backend's (`commit`). The first call reads the unread text and keeps
    its K/V.
    """

    def read(rows: Sequence[Row], leaves: Sequence[tuple[int, int]]) -> Logits:
        if all(node == 0 for _, node in leaves):
            return _read_text(forward, keep, plan)
        return _read_trees(forward, plan, rows, leaves)

    return read


def _read_text(forward: Forward, keep: Keep, plan: GrowthPlan) -> Logits:
    starts = plan.catch_up_starts
    lengths = np.diff(starts)
    batch = ForwardBatch(
        token_ids=plan.catch_up,
        parents=np.concatenate([np.arange(-1, length - 1) for length in lengths]).astype(np.int32),
        row_starts=starts,
        committed=plan.committed,
        block_table=plan.block_table,
        logit_nodes=(starts[1:] - 1).astype(np.int32),
    )
    logits = np.array(forward(batch).logits, np.float32)
    keep(batch, [range(length) for length in lengths])
    return logits


def _read_trees(
    forward: Forward, plan: GrowthPlan, rows: Sequence[Row], leaves: Sequence[tuple[int, int]]
) -> Logits:
    token_ids, parents, starts, logit_nodes = list[int](), list[int](), [0], list[int]()
    wanted = sorted({index for index, _ in leaves})
    for index in wanted:
        nodes = rows[index].nodes
        below = [node for row, node in leaves if row == index]
        read = [node for node, one in enumerate(nodes) if one.is_expanded or node in below]
        place = {node: at for at, node in enumerate(read)}
        logit_nodes += [len(token_ids) + place[node] for node in below]
        token_ids += [nodes[node].token for node in read]
        parents += [place.get(nodes[node].parent, -1) for node in read]
        starts.append(len(token_ids))
    batch = ForwardBatch(
        token_ids=np.array(token_ids, np.int32),
        parents=np.array(parents, np.int32),
        row_starts=np.array(starts, np.int32),
        committed=np.array([rows[index].known - 1 for index in wanted], np.int32),
        block_table=np.ascontiguousarray(plan.block_table[wanted]),
        logit_nodes=np.array(logit_nodes, np.int32),
    )
    return np.array(forward(batch).logits, np.float32)
