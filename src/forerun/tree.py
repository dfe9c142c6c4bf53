"""The token tree: node 0 is the pending token, every other node a candidate continuation.

Plain decoding is a tree of one node; a chain is a tree without forks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from forerun.errors import DrafterError

Tokens = NDArray[np.int32]

_new, _set = object.__new__, object.__setattr__


@lru_cache(maxsize=1024)
def _chain_parents(num_nodes: int) -> Tokens:
    parents = np.arange(-1, num_nodes - 1, dtype=np.int32)
    parents.flags.writeable = False  # shared by all chains of this length
    return parents


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """One row's candidates.

    `tokens [N]` int32; `parents [N]` int32, -1 at node 0, else a smaller index.
    Siblings carry different tokens, so a (node, token) pair names at most one child.
    """

    tokens: Tokens
    parents: Tokens

    def __post_init__(self) -> None:
        tokens, parents = self.tokens, self.parents
        if len(tokens) == 0 or tokens.shape != parents.shape or tokens.ndim != 1:
            raise DrafterError(f"a tree needs equal 1-d tokens and parents, got {tokens.shape}")
        if parents[0] != -1 or (
            len(parents) > 1
            and (np.any(parents[1:] < 0) or np.any(parents[1:] >= np.arange(1, len(parents))))
        ):
            raise DrafterError("parents must be -1 at node 0 and a smaller index elsewhere")
        edges = set(zip(parents.tolist(), tokens.tolist(), strict=True))
        if len(edges) != len(tokens):
            raise DrafterError("siblings must carry different tokens")

    @staticmethod
    def chain(tokens: Tokens) -> TokenTree:
        """The tree without forks: each token follows the one before it."""
        array = np.asarray(tokens, np.int32)
        return TokenTree(array, np.arange(-1, len(array) - 1, dtype=np.int32))

    @staticmethod
    def made(tokens: Tokens, parents: Tokens) -> TokenTree:
        """A tree built by our own code, unchecked."""
        tree = _new(TokenTree)
        _set(tree, "tokens", tokens)
        _set(tree, "parents", parents)
        return tree

    @staticmethod
    def made_chain(tokens: list[int]) -> TokenTree:
        """A chain built by our own code, unchecked: a chain of integers is always valid."""
        tree = _new(TokenTree)
        _set(tree, "tokens", np.array(tokens, np.int32))
        _set(tree, "parents", _chain_parents(len(tokens)))
        return tree

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether no node has two children and node order is path order."""
        chain = _chain_parents(len(self.tokens))
        return self.parents is chain or bool(np.array_equal(self.parents, chain))

    def depths(self) -> Tokens:
        """`[N]` distance from node 0."""
        if self.is_chain:
            return np.arange(len(self), dtype=np.int32)
        depths = np.zeros(len(self), np.int32)
        for node in range(1, len(self)):
            depths[node] = depths[self.parents[node]] + 1
        return depths

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that carries `token`, or None."""
        found = np.flatnonzero((self.parents == node) & (self.tokens == token))
        return int(found[0]) if len(found) else None

    def path(self, node: int) -> list[int]:
        """Node ids from node 0 to `node`, both included."""
        nodes = [node]
        while nodes[-1] > 0:
            nodes.append(int(self.parents[nodes[-1]]))
        return nodes[::-1]
