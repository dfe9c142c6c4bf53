"""Parallel: while a draft is verified, go on as if it were kept, with a hedge at its weakest place.

Liu et al. 2024, PEARL, arXiv:2408.11850, drafts on below "all accepted"; the hedge is one rejection
more, where the draft itself was least sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from forerun.draft import Draft


@dataclass(frozen=True, slots=True)
class Parallel:
    """Prepare two outcomes: all of the likeliest path is kept, or its least certain node is not;
    of each the bonus that is likeliest there."""

    num_branches = 2
    per_exit: ClassVar[int] = 1  # else both might be guesses at the likelier of the two

    def exits(self, draft: Draft) -> list[int]:
        """The end of the likeliest path, and the node above its weakest one."""
        path = _likeliest_path(draft)
        if draft.scores is None or len(path) < 2:
            return path[-1:]
        scores = np.nan_to_num(draft.scores.astype(np.float64), nan=1.0)[path]
        kept = scores[1:] / np.maximum(scores[:-1], 1e-9)
        return sorted({path[int(np.argmin(kept))], path[-1]})


def _likeliest_path(draft: Draft) -> list[int]:
    """Down from node 0 by each node's best child: its first where nobody has figures."""
    parents, scores = draft.tree.parents.tolist(), draft.scores
    path = [0]
    while True:
        below = [node for node in range(path[-1] + 1, len(parents)) if parents[node] == path[-1]]
        if not below:
            return path
        path.append(below[0] if scores is None else max(below, key=lambda at: float(scores[at])))
