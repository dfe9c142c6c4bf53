"""Engines with parts of a test's own."""

from __future__ import annotations

import dataclasses

from forerun import Engine
from forerun.drafters.guard import Guard
from forerun.tree import TokenTree


@dataclasses.dataclass(frozen=True)
class AnyTree:
    """A shape that takes any tree, cut to its first nodes; a chain of as many fits the row."""

    max_drafted: int

    def fits(self, depth: int) -> int:
        return min(max(depth, 0), self.max_drafted)

    def limit(self, tree: TokenTree) -> TokenTree:
        if len(tree) <= self.max_drafted + 1:
            return tree
        return TokenTree(tree.tokens[: self.max_drafted + 1], tree.parents[: self.max_drafted + 1])


def with_parts(engine: Engine, *, drafter=None, num_steps=4, **parts) -> Engine:
    """The engine with parts of the test's own; its own drafter is closed."""
    if drafter is not None:
        engine._parts.drafter.close()
        shape = AnyTree(num_steps)
        vocab = engine._parts.target.spec.vocab
        parts |= {"shape": shape, "drafter": Guard(drafter, shape, vocab)}
    engine._parts = dataclasses.replace(engine._parts, **parts)
    return engine
