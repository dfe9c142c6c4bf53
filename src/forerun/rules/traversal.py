"""Traversal: a tree is judged from its leaves to its root (Weng et al. 2025, arXiv:2505.12398).

`settle(node, chance)` asks the children in the order they were drawn, each reached with the chance
`min(1, chance * p/q)`; a child whose whole subtree says no takes its law off: of `(chance * p -
q)_+` with mass s remain p, and the chance `s / (s + 1 - chance)`. After the last child the node
itself ends the path with the chance that is left. On a chain this is `block`.

Noise: whether the path ends at node n is ACCEPT (n, 0), never asked of node 0; BONUS (n, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forerun.draft import Draft, Draw, Verdict
from forerun.protocols import Noise, Reads
from forerun.rules.block import reach
from forerun.rules.laws import (
    ANY_NUMBER,
    Branches,
    Row,
    emit,
    read_draft,
    residual,
    target_law,
    without,
)

_DRAWS = (Draw.SAMPLED, Draw.WITHOUT_REPLACEMENT)


@dataclass(frozen=True, slots=True)
class Traversal:
    """Exact for trees whose siblings were drawn without replacement, and for sampled chains."""

    @property
    def reads(self) -> Reads:
        """The target's law at every node."""
        return Reads.LAWS

    def judge(self, draft: Draft, target: Any, noise: Noise) -> Verdict:
        """From the leaves up: the first node accepted is the last of the path.

        `target`: laws `[N V]`. The bonus is -1 where the path ends at a node without a law.

        Raises:
            DrafterError: a draft whose law is not known, or with siblings drawn independently.
        """
        num_draws = 1 if draft.draw is Draw.SAMPLED else ANY_NUMBER
        walk = _Walk(read_draft(draft, "traversal", _DRAWS, num_draws), target, noise)
        end, bonus = walk.settle(0, 1.0) or (0, -1)
        return Verdict(tuple(draft.tree.path(end)), bonus)


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    branches: Branches
    target: Any
    noise: Noise

    def settle(self, node: int, chance: float) -> tuple[int, int] | None:
        """The last node of the path and the bonus, where the path ends at or below `node`."""
        if chance <= 0.0:
            return None
        p: Row | None = target_law(self.target, node)
        q = self.branches.law(node, p) if p is not None and self.branches.drawn[node] else None
        is_asked = node != 0  # node 0 is reached for certain, and whatever is left ends there
        mass, of = chance, 1.0
        for child, token in zip(
            self.branches.children[node], self.branches.drawn[node], strict=True
        ):
            if p is None or q is None or child is None:
                break
            found = self.settle(child, reach(chance, float(p[token]), float(q[token])))
            if found is not None:
                return found
            p, mass = residual(p, q, chance)
            of = mass + 1.0 - chance
            if mass <= 0.0 and is_asked:
                return None
            chance = mass / of if is_asked else 1.0
            q = without(q, token)
        if is_asked and not self.noise.accepts(node, 0, mass, of):
            return None
        return node, -1 if p is None else emit(self.noise, node, p)
