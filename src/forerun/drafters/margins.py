"""How often is a drafted child the target's choice? By its rank and margin, learned online.

Under coupling a drafted token's own probability says little; how far its `log q + g` lies above its
best rival says a lot. Knows rounds as drafts and commits only. A wrong figure costs speed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft
from forerun.protocols import LEAST_MARGIN, MARGIN_STEP, NUM_MARGINS, NUM_RANKS, DraftRow

_PRIOR_TRIALS = 12.0  # observations that the starting figures are worth
_MOST_TRIALS = 400.0  # beyond, older observations fade: texts change

# Starting figures: low, high, middle and width of a logistic curve over the margin, a line a rank,
# near what benchmarks/margins.py fitted for an earlier embedded drafter.
_SAMPLED = (
    (0.00, 0.95, 1.5, 1.4),
    (0.00, 0.80, 1.5, 2.0),
    (0.00, 0.10, -3.0, 0.8),
    *[(0.00, 0.10, -1.0, 2.0)] * (NUM_RANKS - 3),
)
_GREEDY = (
    (0.05, 0.99, 1.0, 0.6),
    (0.00, 0.20, -1.5, 0.6),
    (0.00, 0.20, -1.5, 0.4),
    *[(0.00, 0.10, -1.0, 0.6)] * (NUM_RANKS - 3),
)


class Margins:
    """The table `[NUM_RANKS, NUM_MARGINS]` of acceptance for greedy rows, and that for sampled."""

    def __init__(self) -> None:
        self._tables = {True: _starting(_GREEDY), False: _starting(_SAMPLED)}
        self._trials = {
            is_greedy: np.full((NUM_RANKS, NUM_MARGINS), _PRIOR_TRIALS, np.float32)
            for is_greedy in (True, False)
        }

    def table(self, *, is_greedy: bool) -> NDArray[np.float32]:
        """Acceptance by rank and margin; a view, not to be written to."""
        return self._tables[is_greedy]

    def of(self, rows: Sequence[DraftRow]) -> NDArray[np.float32]:
        """`[B, NUM_RANKS, NUM_MARGINS]`, each row's table: `GrowthPlan.acceptance`. A single row's
        is a view, not to be written to nor kept over `learn`."""
        if len(rows) == 1:
            return self.table(is_greedy=rows[0].sampler.params.temperature == 0)[None]
        return np.stack([self.table(is_greedy=row.sampler.params.temperature == 0) for row in rows])

    def learn(self, draft: Draft, commit: Commit, *, is_greedy: bool) -> None:
        """Take in what became of the children of every node on the kept path."""
        if draft.margins is None or draft.ranks is None:
            return
        margins, ranks = draft.margins.tolist(), draft.ranks.tolist()
        on_path = {0: 0}  # kept nodes, and how many tokens of the commit lead to them
        edges = zip(draft.tree.tokens.tolist(), draft.tree.parents.tolist(), strict=True)
        # Parents come before children, so one walk in node order meets the whole path.
        for node, (token, parent) in enumerate(edges):
            depth = on_path.get(parent)
            if depth is None or depth == len(commit.tokens):
                continue
            is_kept = token == commit.tokens[depth]
            self._count(is_greedy, ranks[node], margins[node], is_kept)
            if is_kept:
                on_path[node] = depth + 1

    def _count(self, is_greedy: bool, rank: int, margin: float, is_kept: bool) -> None:  # noqa: FBT001
        bin_at = (min(max(margin, -1e9), 1e9) - LEAST_MARGIN) // MARGIN_STEP
        at = min(rank, NUM_RANKS - 1), min(max(int(bin_at), 0), NUM_MARGINS - 1)
        trials = self._trials[is_greedy]
        trials[at] = min(trials[at] + 1, _MOST_TRIALS)
        table = self._tables[is_greedy]
        table[at] += (is_kept - table[at]) / trials[at]


def _starting(lines: tuple[tuple[float, float, float, float], ...]) -> NDArray[np.float32]:
    margins = LEAST_MARGIN + MARGIN_STEP * (np.arange(NUM_MARGINS) + 0.5)
    rows = [
        low + (high - low) / (1 + np.exp(-(margins - middle) / width))
        for low, high, middle, width in lines
    ]
    return np.array(rows, np.float32)
