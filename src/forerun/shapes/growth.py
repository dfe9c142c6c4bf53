"""Best first: the tree of a budget that is expected to keep the most tokens.

Pure. Where every node offers its children in decreasing acceptance, taking the likeliest open node
again and again is optimal under any budget and depth; the dynamic programme of Sequoia (Chen et
al. 2024, arXiv 2402.12374) finds nothing better, and is the oracle of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import TypeAlias, TypeVar

S = TypeVar("S")
_Child: TypeAlias = tuple[int, float, S]
_Open: TypeAlias = tuple[_Child[S], Iterator[_Child[S]], int, int]  # …, its parent and level


def best_first(
    offer: Callable[[S], Iterable[_Child[S]]],
    root: S,
    budget: int,
    depth: int,
    least: float,
) -> tuple[list[int], list[int], list[float]]:
    """The `budget` likeliest nodes of at most `depth` levels below a root, likeliest first.

    `offer(state)` gives `(token, acceptance given the parent, the child's own state)`, best first
    and lazily: no more is taken of it than the tree needs. Returned are `tokens`, `parents` (0 is
    the root, k the k-th returned node) and `scores`, the products of acceptances along each path;
    none is below `least`; of equals the one offered first comes first.
    """
    tokens: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    heap: list[tuple[float, int, _Open[S]]] = []
    ages = count()

    def open_next(children: Iterator[_Child[S]], parent: int, level: int) -> None:
        """Put the next child of a node on the heap."""
        child = next(children, None)
        if child is not None:
            score = child[1] * (scores[parent - 1] if parent else 1.0)
            if score >= least:
                heappush(heap, (-score, next(ages), (child, children, parent, level)))

    if depth > 0:
        open_next(iter(offer(root)), 0, 1)
    while heap and len(tokens) < budget:
        negative, _, ((token, _, state), siblings, parent, level) = heappop(heap)
        tokens.append(token)
        parents.append(parent)
        scores.append(-negative)
        open_next(siblings, parent, level)
        if level < depth:
            open_next(iter(offer(state)), len(tokens), level + 1)
    return tokens, parents, scores
