"""What a forecast read of the branch that came, for the forecast of the round that follows.

Knows trees and tokens; what was read is the backend's own. A branch was read below the text that
the sequence now has, so what it says of a token there is what reading it again would say:

    forecast       0 ── a ── x ── y ── z     read but for z; then the verdict was a, x
    next draft                x ── y ── z    x is pending: only z is new
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forerun.draft import Draft
from forerun.forecast import Carried
from forerun.tree import Tokens, TokenTree


def computed_path(draft: Draft, tokens: Sequence[int]) -> list[int]:
    """The nodes of these tokens whose K/V was computed, from a child of node 0 down."""
    expanded = set() if draft.expanded is None else set(draft.expanded.tolist())
    path: list[int] = []
    node = 0
    for token in tokens:
        child = draft.tree.child(node, token)
        if child is None or child not in expanded:
            break
        path.append(child)
        node = child
    return path


@dataclass(frozen=True, slots=True, eq=False)
class Winner:
    """The branch that came, as far as it was read: `nodes` of a forecast, parents before children,
    the first is the token pending now. `length`: tokens of the text with it."""

    length: int
    nodes: list[int]


def winner_of(grown: Draft, num_known: int, kept: Sequence[int]) -> Winner | None:
    """What was read at the outcome `kept`, accepted tokens and then the bonus, of a forecast that
    was made when `num_known` tokens were; None if that was not read."""
    node: int | None = 0
    for token in kept:
        node = None if node is None else grown.tree.child(node, token)
    expanded = [] if grown.expanded is None else grown.expanded.tolist()
    if node is None or node not in expanded:
        return None
    parents, nodes = grown.tree.parents, [node]
    for other in sorted(expanded):
        if other > node and int(parents[other]) in nodes:
            nodes.append(other)
    return Winner(num_known + len(kept), nodes)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A winner with what the backend holds of it: `parents` and `tokens` of its nodes, by place."""

    length: int
    tokens: list[int]
    parents: list[int]
    held: Any

    @staticmethod
    def of(winner: Winner, tree: TokenTree, num_held: int, held: Any) -> Kept:
        """Of the first nodes of a winner in a forecast's tree."""
        nodes = winner.nodes[:num_held]
        place = {node: at for at, node in enumerate(nodes)}
        parents = [place.get(int(tree.parents[node]), -1) for node in nodes]
        parents[0] = -1
        return Kept(winner.length, tree.tokens[nodes].tolist(), parents, held)

    def carried(self, length: int, draft: TokenTree) -> Carried | None:
        """What is held of a draft below a text of so many tokens; None if that is another text."""
        if length != self.length or int(draft.tokens[0]) != self.tokens[0]:
            return None
        children = {
            (parent, token): at
            for at, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True))
        }
        nodes: Tokens = np.full(len(draft), -1, np.int32)
        nodes[0] = 0
        for node in range(1, len(draft)):
            above = int(nodes[draft.parents[node]])
            if above >= 0:
                nodes[node] = children.get((above, int(draft.tokens[node])), -1)
        return Carried(nodes, self.held)
