"""What the sampled rules share: a draft read node by node, laws as float64 rows, what is left.

Knows no rule. Rows are arrays of whatever library the target's laws came in (numpy, torch on any
device), by the array API; only the one row that a token is picked from is copied to numpy. Every
row is normalised in float64: a float32 law sums to one only roughly, and what was sampled from it
was sampled from `law / sum(law)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, to_device
from array_api_compat import numpy as of_numpy
from numpy.typing import NDArray

from forerun.draft import Draft, Draw, Verdict
from forerun.errors import DrafterError
from forerun.noise import Purpose
from forerun.protocols import Noise

Row: TypeAlias = Any  # [V] float64, summing to one

ANY_NUMBER = 1 << 30  # of draws below a node


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """A draft by node: `drawn[n]` the tokens drawn below node n in order, repetitions included;
    `children[n]` the child that carries each, None where the tree has none; `places[n]` the row of
    `draft.law` they were drawn from, or None."""

    draw: Draw
    drawn: tuple[tuple[int, ...], ...]
    children: tuple[tuple[int | None, ...], ...]
    places: tuple[int | None, ...]
    laws: NDArray[np.float32] | None

    def law(self, node: int, like: Row) -> Row | None:
        """The law that the children of `node` were drawn from; None where it is broken."""
        place = self.places[node]
        if self.laws is None or place is None:
            return None
        row = self.laws[place].astype(np.float64)
        return normal(namespace(like).asarray(row, device=device(like)))


def read_draft(draft: Draft, rule: str, draws: tuple[Draw, ...], num_draws: int) -> Branches:
    """The draft by node, for a rule that takes such `draws` and so many of them below a node.

    Raises:
        DrafterError: a draft this rule has no law for, or one without its laws.
    """
    num_nodes = len(draft.tree.tokens)
    if num_nodes > 1 and draft.draw not in draws:
        names = " or ".join(repr(draw.value) for draw in draws)
        raise DrafterError(
            f"rule {rule} judges siblings drawn as {names}, found {draft.draw.value!r}: use match,"
            " which is exact for any draft"
        )
    drawn, children = _drawn(draft)
    if (most := max(map(len, drawn))) > num_draws:
        raise DrafterError(
            f"rule {rule} judges at most {num_draws} draw below a node, found {most}: use a chain,"
            " or rejection"
        )
    places: list[int | None] = [None] * num_nodes
    if draft.expanded is not None:
        for place, node in enumerate(draft.expanded.tolist()):
            places[node] = place
    needs_law = draft.draw not in (Draw.POINT, Draw.COUPLED)
    for node, tokens in enumerate(drawn):
        if needs_law and tokens and (places[node] is None or draft.law is None):
            raise DrafterError(
                f"node {node} of a draft has children without the law they were drawn from, which"
                f" rule {rule} needs: use match"
            )
    return Branches(draft.draw, drawn, children, tuple(places), draft.law)


def _drawn(
    draft: Draft,
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int | None, ...], ...]]:
    tokens = draft.tree.tokens.tolist()
    child_at: dict[tuple[int, int], int] = {}
    drawn: list[list[int]] = [[] for _ in tokens]
    for node, parent in enumerate(draft.tree.parents.tolist()[1:], start=1):
        child_at[parent, tokens[node]] = node
        drawn[parent].append(tokens[node])
    if draft.draw is Draw.SAMPLED and draft.draws is not None and draft.expanded is not None:
        for node, row in zip(draft.expanded.tolist(), draft.draws.tolist(), strict=True):
            drawn[node] = [token for token in row if token >= 0]
    children = tuple(
        tuple(child_at.get((node, token)) for token in row) for node, row in enumerate(drawn)
    )
    return tuple(tuple(row) for row in drawn), children


# The draw kept below a node, or None and what is left of the target's law there.
FirstKept: TypeAlias = Callable[[Branches, int, Row, Noise], tuple[int | None, Row]]


def walk_down(branches: Branches, target: Any, noise: Noise, first_kept: FirstKept) -> Verdict:
    """From node 0 down the first draw kept at each node, until none is; then the bonus, which is -1
    where the path ends at a node without a law."""
    path = [0]
    while True:
        node = path[-1]
        p = target_law(target, node)
        if p is None:
            return Verdict(tuple(path), -1)
        kept, left = first_kept(branches, node, p, noise)
        if kept is None:
            return Verdict(tuple(path), emit(noise, node, left))
        child = branches.children[node][kept]
        if child is None:  # a draw without a node of its own: kept, it is the last token
            return Verdict(tuple(path), branches.drawn[node][kept])
        path.append(child)


def namespace(row: Any) -> Any:
    """The array API of a row's library; numpy's is known without a search."""
    return of_numpy if type(row) is np.ndarray else array_namespace(row)


def target_law(target: Any, node: int) -> Row | None:
    """The target's law at a node of laws `[N V]`; None where it holds NaN or no mass."""
    row = target[node, ...]
    xp = namespace(row)
    return normal(xp.astype(row, xp.float64))


def normal(weights: Row) -> Row | None:
    """Weights divided by their sum, or None where they have none that is finite."""
    total = float(namespace(weights).sum(weights))
    if not 0.0 < total < float("inf"):  # NaN fails every comparison
        return None
    return weights / total


def residual(p: Row, q: Row, chance: float = 1.0) -> tuple[Row, float]:
    """`(chance * p - q)_+` as a law, and its mass; p itself where none is left, which happens only
    where both are equal up to rounding, or the chance is zero."""
    left = positive(chance * p - q)
    mass = float(namespace(left).sum(left))
    return (left / mass, mass) if mass > 0.0 else (p, 0.0)


def positive(difference: Row) -> Row:
    """What is above zero."""
    xp = namespace(difference)
    return xp.maximum(difference, xp.zeros_like(difference))


def without(law: Row, token: int) -> Row | None:
    """The law with one token removed; None where nothing is left."""
    left = namespace(law).asarray(law, copy=True)
    left[token] = 0.0
    return normal(left)


def emit(noise: Noise, node: int, law: Row) -> int:
    """The bonus: a token of the law left at the node where the path ends."""
    weights = np.asarray(to_device(law, "cpu"), np.float64)
    return noise.picks(Purpose.BONUS, node, 0, weights)
