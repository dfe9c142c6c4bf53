"""Trees: best first under a budget, or a given one. Values only; growing is `growth.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forerun.composition import LONGEST
from forerun.errors import OptionError
from forerun.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Tree:
    """At most `max_drafted` nodes, grown best first."""

    max_drafted: int

    def __post_init__(self) -> None:
        if not 1 <= self.max_drafted <= LONGEST:
            raise OptionError(f"tree:N needs N in [1, {LONGEST}], found {self.max_drafted}")

    def fits(self, depth: int) -> int:
        """All of them in one level, if need be."""
        return self.max_drafted if depth > 0 else 0

    def limit(self, tree: TokenTree) -> TokenTree:
        """The first `max_drafted` nodes: parents come before children, so no node loses its own."""
        if len(tree) <= self.max_drafted + 1:
            return tree
        return TokenTree(tree.tokens[: self.max_drafted + 1], tree.parents[: self.max_drafted + 1])


def children_of(parents: Sequence[int]) -> list[list[int]]:
    """Children of node 0 and of every drafted node, whose `parents` these are, in order."""
    children: list[list[int]] = [[] for _ in range(len(parents) + 1)]
    for node, parent in enumerate(parents, start=1):
        children[parent].append(node)
    return children


@dataclass(frozen=True, slots=True)
class FixedTree:
    """A tree given by the user: `parents` of its drafted nodes, 0 being the pending token."""

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parents) <= LONGEST:
            raise OptionError(
                f"a fixed tree needs 1 to {LONGEST} drafted nodes, found {len(self.parents)}"
            )
        for node, parent in enumerate(self.parents, start=1):
            if not 0 <= parent < node:
                raise OptionError(
                    f"node {node} of a fixed tree has the parent {parent}: write parents before"
                    " their children, 0 being the pending token"
                )

    @staticmethod
    def of_widths(widths: tuple[int, ...]) -> FixedTree:
        """The full tree in which every node of level i has `widths[i]` children."""
        parents: list[int] = []
        level = [0]
        for width in widths:
            children = [node for node in level for _ in range(width)]
            first = len(parents) + 1
            parents += children
            level = list(range(first, first + len(children)))
        return FixedTree(tuple(parents))

    @property
    def max_drafted(self) -> int:
        return len(self.parents)

    @property
    def num_levels(self) -> int:
        """Nodes on the longest path below the pending token."""
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent] + 1)
        return max(depths)

    def fits(self, depth: int) -> int:
        """All of them; what lies deeper than allowed is left out by whoever fills the tree."""
        return self.max_drafted if depth > 0 else 0

    def limit(self, tree: TokenTree) -> TokenTree:
        """The nodes of an offered tree that have a place in this one, children in their order."""
        places, kept = {0: 0}, [0]
        free = [iter(places_below) for places_below in children_of(self.parents)]
        for node, parent in enumerate(tree.parents.tolist()[1:], start=1):
            place = next(free[places[parent]], None) if parent in places else None
            if place is not None:
                places[node] = place
                kept.append(node)
        if len(kept) == len(tree):
            return tree
        index = {node: at for at, node in enumerate(kept)}
        parents = [-1, *[index[int(tree.parents[node])] for node in kept[1:]]]
        return TokenTree(tree.tokens[kept], np.array(parents, np.int32))
