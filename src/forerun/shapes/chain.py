"""The chain: candidates one after another, at most `max_drafted` of them."""

from __future__ import annotations

from dataclasses import dataclass

from forerun.composition import LONGEST
from forerun.errors import OptionError
from forerun.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Chain:
    """At most `max_drafted` tokens, no forks.

    `stop`: a chain ends where it is expected to be kept so far with less than this probability
    (`match`), or where its law is too even (sampled rules; `protocols.Growth`, `least`). 0: never.
    """

    max_drafted: int
    stop: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_drafted <= LONGEST:
            raise OptionError(f"chain:K needs K in [1, {LONGEST}], found {self.max_drafted}")

    def fits(self, depth: int) -> int:
        """A chain has a node a level."""
        return min(max(depth, 0), self.max_drafted)

    def limit(self, tree: TokenTree) -> TokenTree:
        """The first `max_drafted` tokens along the first child of every node."""
        if tree.is_chain:
            fits = len(tree.tokens) <= self.max_drafted + 1
            return tree if fits else TokenTree.chain(tree.tokens[: self.max_drafted + 1])
        nodes = [0]
        for node, parent in enumerate(tree.parents.tolist()):
            if parent == nodes[-1] and len(nodes) <= self.max_drafted:
                nodes.append(node)
        return TokenTree.chain(tree.tokens[nodes])
