"""The tree a sampled rule is drafted: its form is settled before anything is drawn.

Whether a drafted token is verified may not depend on the token (design 3, law 2), so a sampled tree
cannot be grown by what was drawn. It is the best tree for how often the first, second, … draw
below a node is kept (Sequoia, Chen et al. 2024, arXiv:2402.12374; best first finds its optimum).
"""

from __future__ import annotations

from collections.abc import Iterator

from forerun.shapes.growth import best_first
from forerun.shapes.tree import FixedTree

# How often the first, second, … draw below a node is kept: set by hand, near what
# `benchmarks/margins.py` prints for coupled children of the embedded pair. Not fitted.
KEPT_BY_RANK = (0.62, 0.12, 0.05, 0.03, 0.02, 0.01)
DEEPEST = 16


def likeliest_tree(budget: int) -> FixedTree:
    """The tree of `budget` drafted nodes that is expected to keep the most."""

    def offer(_: None) -> Iterator[tuple[int, float, None]]:
        for rank, kept in enumerate(KEPT_BY_RANK):
            yield rank, kept, None

    _, parents, _ = best_first(offer, None, budget, DEEPEST, 0.0)
    return FixedTree(tuple(parents))
