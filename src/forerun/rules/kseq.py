"""K-SEQ: k independent draws below a node, each kept with `p / (r q)` (SpecTr, arXiv:2310.15141).

With `b = sum min(q, p / r)` a draw is kept with probability b, so token x is emitted as a kept one
with `min(q, p / r)(x) * w`, `w = 1 + (1-b) + … + (1-b)^(k-1)`. Any r with `w <= r` leaves no token
more than its p; the rest of p is emitted where no draw is kept. The least such r keeps most.

Noise: whether draw j below node n is kept is ACCEPT (n, j); the token emitted at n is BONUS (n, 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forerun.draft import Draft, Draw, Verdict
from forerun.protocols import Noise, Reads
from forerun.rules.laws import (
    ANY_NUMBER,
    Branches,
    Row,
    namespace,
    normal,
    positive,
    read_draft,
    walk_down,
)

_DRAWS = (Draw.SAMPLED,)
_NUM_HALVINGS = 16  # r to within k / 2**16: a matter of acceptance, not of exactness


@dataclass(frozen=True, slots=True)
class KSeq:
    """Exact for chains and trees whose siblings were drawn independently, repetitions included."""

    @property
    def reads(self) -> Reads:
        """The target's law at every node."""
        return Reads.LAWS

    def judge(self, draft: Draft, target: Any, noise: Noise) -> Verdict:
        """From node 0 down: the first draw kept at each node, until none is.

        `target`: laws `[N V]`. The bonus is -1 where the path ends at a node without a law.

        Raises:
            DrafterError: a draft whose siblings were not drawn independently.
        """
        branches = read_draft(draft, "kseq", _DRAWS, ANY_NUMBER)
        return walk_down(branches, target, noise, _first_kept)


def _first_kept(branches: Branches, node: int, p: Row, noise: Noise) -> tuple[int | None, Row]:
    """Which draw below a node is kept, and the target's law that is left where none is."""
    tokens = branches.drawn[node]
    q = branches.law(node, p) if tokens else None
    if q is None:
        return None, p
    ratio = least_ratio(p, q, len(tokens))
    for index, token in enumerate(tokens):
        if noise.accepts(node, index, float(p[token]), ratio * float(q[token])):
            return index, p
    xp = namespace(p)
    common = xp.minimum(q, p / ratio)
    left = normal(positive(p - common * _weight(float(xp.sum(common)), len(tokens))))
    return None, p if left is None else left


def least_ratio(p: Row, q: Row, num_draws: int) -> float:
    """The least r in [1, k] with `w(r) <= r`, from above, over the tokens that both laws have."""
    low, high = 1.0, float(num_draws)
    if num_draws == 1:
        return high
    xp, is_common = namespace(p), (p > 0.0) & (q > 0.0)
    p, q = p[is_common], q[is_common]
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        kept = float(xp.sum(xp.minimum(q, p / middle)))
        if _weight(kept, num_draws) <= middle:
            high = middle
        else:
            low = middle
    return high


def _weight(chance: float, num_draws: int) -> float:
    """`1 + (1-b) + … + (1-b)^(k-1)` for draws that are each kept with `chance` b."""
    weight, term = 0.0, 1.0
    for _ in range(num_draws):
        weight += term
        term *= 1.0 - chance
    return weight
