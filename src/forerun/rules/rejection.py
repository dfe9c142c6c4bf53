"""Rejection: each drawn child is kept with probability `p / q`, else its law is taken off.

Leviathan et al. 2023 (arXiv:2211.17192) for chains; over siblings one after another for trees
(SpecInfer, arXiv:2305.09781), their law without the earlier ones where they were drawn so (Sequoia,
arXiv:2402.12374), and deterministic siblings as point masses (arXiv:2502.18779).

Noise: whether draw j below node n is kept is ACCEPT (n, j); the token emitted at n is BONUS (n, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forerun.draft import Draft, Draw, Verdict
from forerun.protocols import Noise, Reads
from forerun.rules.laws import ANY_NUMBER, Branches, Row, read_draft, residual, walk_down, without

_DRAWS = (Draw.SAMPLED, Draw.WITHOUT_REPLACEMENT, Draw.TOP_AND_ONE, Draw.POINT)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Exact for chains and trees of any draws but coupled ones, and for deterministic children."""

    @property
    def reads(self) -> Reads:
        """The target's law at every node."""
        return Reads.LAWS

    def judge(self, draft: Draft, target: Any, noise: Noise) -> Verdict:
        """From node 0 down: the first draw kept at each node, until none is.

        `target`: laws `[N V]`. The bonus is -1 where the path ends at a node without a law.

        Raises:
            DrafterError: a draft whose law is not known.
        """
        branches = read_draft(draft, "rejection", _DRAWS, ANY_NUMBER)
        return walk_down(branches, target, noise, _first_kept)


def _first_kept(branches: Branches, node: int, p: Row, noise: Noise) -> tuple[int | None, Row]:
    """Which draw below a node is kept, and what is left of the target's law where none is."""
    tokens = branches.drawn[node]
    q = branches.law(node, p) if tokens else None
    for index, token in enumerate(tokens):
        if _is_certain(branches.draw, index, len(tokens)):
            if noise.accepts(node, index, float(p[token]), 1.0):
                return index, p
            left = without(p, token)
            p = p if left is None else left
        elif q is None:  # the draft's law is broken, so its draws are not looked at
            break
        else:
            if noise.accepts(node, index, float(p[token]), float(q[token])):
                return index, p
            p, _ = residual(p, q)
        if q is not None and branches.draw is not Draw.SAMPLED:
            q = without(q, token)
    return None, p


def _is_certain(draw: Draw, index: int, num_draws: int) -> bool:
    """Whether a child was not drawn but set. Of top-and-one siblings the last was drawn, an only
    one too; where the law ran out before, what is left of it is a point, which is the same."""
    return draw is Draw.POINT or (draw is Draw.TOP_AND_ONE and index < num_draws - 1)
