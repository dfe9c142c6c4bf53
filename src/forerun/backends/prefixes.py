"""Texts whose K/V is still there: full blocks, found again by the tokens before and in them.

    root of a partition → block of tokens 0 … 31 → block of tokens 32 … 63 → …

A row that uses a block uses all above it. The least recently used leaf goes first, and only when
its memory is needed. Features that a drafter reads of the target lie beside the blocks, where they
were tapped; without them a block is of no use to a row whose drafter reads them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.backends.slots import Slots
from forerun.errors import OptionError
from forerun.protocols import BLOCK_LEN

MOST_FEATURE_BYTES = 256 << 20  # of features kept beside blocks


@dataclass(slots=True, eq=False)
class _Node:
    """One kept block below its parent's; `features` `[BLOCK_LEN F]` or None."""

    number: int
    key: tuple[int, bytes]
    block: int
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Full blocks that begin a text, and their tokens' features where those were asked for."""

    blocks: tuple[int, ...] = ()
    features: tuple[NDArray[np.float32], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that need not be read."""
        return len(self.blocks) * BLOCK_LEN


class Prefixes:
    """Keeps blocks of one `Slots`, of which it is the only keeper. Nothing of one partition is ever
    found from another.

    Raises:
        OptionError: somebody keeps blocks of these already.
    """

    def __init__(self, slots: Slots, most_feature_bytes: int = MOST_FEATURE_BYTES) -> None:
        self._slots = slots
        self._roots: dict[str, int] = {}
        self._nodes: OrderedDict[tuple[int, bytes], _Node] = OrderedDict()  # oldest first
        self._num_made = 0
        self._room_bytes = most_feature_bytes
        if slots.let_go is not None:
            raise OptionError("an engine has one service at a time: close the first one")
        slots.let_go = self._let_go

    @property
    def num_blocks(self) -> int:
        """Blocks that are kept."""
        return len(self._nodes)

    def find(self, partition: str, tokens: Sequence[int], *, with_features: bool) -> Prefix:
        """The longest kept beginning of a text that leaves at least its last token to be read."""
        path = self._path(partition, tokens[: len(tokens) - 1])
        if with_features:
            path = _with_features(path)
        self._touch(path)
        features = tuple(node.features for node in path if node.features is not None)
        return Prefix(tuple(node.block for node in path), features if with_features else ())

    def begin(self, partition: str, tokens: Sequence[int], sequence_id: int) -> int:
        """Let a sequence that owns nothing begin with what is kept of its text, features apart: how
        many tokens that is."""
        prefix = self.find(partition, tokens, with_features=False)
        if prefix.blocks:
            self._slots.share(sequence_id, prefix.blocks)
        return prefix.num_tokens

    def keep(
        self,
        partition: str,
        tokens: Sequence[int],
        sequence_id: int,
        features: NDArray[np.float32] | None = None,
    ) -> None:
        """Keep the full blocks of a sequence whose K/V of all of `tokens` is computed; `features`
        are those of its first tokens. Of a block that is kept already the sequence takes that one,
        and gives back its own."""
        path = self._path(partition, tokens)
        known = tuple(node.block for node in path)
        blocks = self._slots.blocks(sequence_id)
        if known != blocks[: len(known)]:
            self._slots.share(sequence_id, known)
        parent = path[-1].number if path else self._root(partition)
        for place in range(len(path), len(tokens) // BLOCK_LEN):
            node = self._add(parent, _key(tokens, place), blocks[place])
            path.append(node)
            parent = node.number
        if features is not None:
            self._note_features(path, features)
        self._touch(path)

    def close(self) -> None:
        """Keep nothing any more, and let another be the keeper."""
        self._slots.let_go = None
        for node in self._nodes.values():
            self._slots.drop(node.block)
        self._nodes.clear()
        self._roots.clear()

    def _root(self, partition: str) -> int:
        if partition not in self._roots:
            self._num_made += 1
            self._roots[partition] = self._num_made
        return self._roots[partition]

    def _add(self, parent: int, tokens: bytes, block: int) -> _Node:
        self._num_made += 1
        node = _Node(self._num_made, (parent, tokens), block)
        self._nodes[node.key] = node
        self._slots.keep(block)
        return node

    def _path(self, partition: str, tokens: Sequence[int]) -> list[_Node]:
        """The kept blocks that a text begins with."""
        path: list[_Node] = []
        parent = self._roots.get(partition)
        if parent is None:
            return path
        for place in range(len(tokens) // BLOCK_LEN):
            node = self._nodes.get((parent, _key(tokens, place)))
            if node is None:
                break
            path.append(node)
            parent = node.number
        return path

    def _touch(self, path: list[_Node]) -> None:
        """Make blocks the newest, each newer than those below it."""
        for node in reversed(path):
            self._nodes.move_to_end(node.key)

    def _note_features(self, path: list[_Node], features: NDArray[np.float32]) -> None:
        for place, node in enumerate(path[: len(features) // BLOCK_LEN]):
            own = features[place * BLOCK_LEN : (place + 1) * BLOCK_LEN]
            if node.features is None and own.nbytes <= self._room_bytes:
                node.features = own.copy()
                self._room_bytes -= own.nbytes

    def _let_go(self, num: int) -> None:
        """Drop at least so many blocks that are in no table, the oldest first.

        Everything below a block is older and, where the block is in no table, in none either: so
        no block outlives the one above it.
        """
        victims: list[_Node] = []
        for node in self._nodes.values():
            if len(victims) == num:
                break
            if not self._slots.is_used(node.block):
                victims.append(node)
        for node in victims:
            del self._nodes[node.key]
            self._slots.drop(node.block)
            if node.features is not None:
                self._room_bytes += node.features.nbytes


def _key(tokens: Sequence[int], place: int) -> bytes:
    start = place * BLOCK_LEN
    return np.array(tokens[start : start + BLOCK_LEN], np.int32).tobytes()


def _with_features(path: list[_Node]) -> list[_Node]:
    """The part of a path that has features from its beginning on."""
    for place, node in enumerate(path):
        if node.features is None:
            return path[:place]
    return path
