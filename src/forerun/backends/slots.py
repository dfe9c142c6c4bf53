"""Who owns which K/V block of one backend.

Knows block numbers only; the memory behind them is the backend's.

    positions  0 … 31 | 32 … 63 | 64 …      of a sequence
    table        7    |    2    |  5        physical blocks, in that order

A full block may be in several tables, and may be kept without being in any; what is neither in a
table nor kept is free. Kept blocks count as free, for their keeper lets go of them when asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from forerun.errors import CapacityError
from forerun.protocols import BLOCK_LEN


def blocks_for(num_positions: int) -> int:
    """Blocks that hold so many positions."""
    return -(-num_positions // BLOCK_LEN)


class Slots:
    """Block tables of the sequences of one backend.

    `let_go`, set by who keeps blocks, is asked to `drop` at least so many of those that are in no
    table. It must be able to: it keeps no block in a way that others depend on.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.let_go: Callable[[int], None] | None = None
        self._free = list(range(num_blocks - 1, -1, -1))
        self._tables: dict[int, list[int]] = {}
        self._arrays: dict[int, NDArray[np.int32]] = {}
        self._num_users = [0] * num_blocks  # tables that a block is in
        self._is_kept = [False] * num_blocks
        self._num_only_kept = 0

    @property
    def num_free(self) -> int:
        """Blocks that are in no table."""
        return len(self._free) + self._num_only_kept

    def reserve(self, sequence_id: int, num_positions: int) -> None:
        """Own blocks for at least so many positions.

        Raises:
            CapacityError: fewer blocks are free than are missing; nothing was taken.
        """
        table = self._tables.get(sequence_id, [])
        missing = blocks_for(num_positions) - len(table)
        if missing <= 0:
            return
        if missing > self.num_free:
            raise CapacityError(
                f"{missing * BLOCK_LEN} more positions of K/V are needed,"
                f" {self.num_free * BLOCK_LEN} of {self.num_blocks * BLOCK_LEN} are free: lower"
                " max_tokens, run fewer requests at once, or give the engine more K/V memory"
            )
        if missing > len(self._free) and self.let_go is not None:
            self.let_go(missing - len(self._free))
        fresh = [self._free.pop() for _ in range(missing)]
        self._use(fresh)
        self._set(sequence_id, table + fresh)

    def release(self, sequence_id: int) -> None:
        """Give back all blocks of a sequence; unknown sequences own none."""
        self._unuse(reversed(self._tables.pop(sequence_id, [])))
        self._arrays.pop(sequence_id, None)

    def share(self, sequence_id: int, blocks: Sequence[int], first: int = 0) -> None:
        """Have a sequence's table hold these kept blocks from its place `first` on, instead of what
        is there; one that owns nothing begins with them."""
        table = self._tables.get(sequence_id, [])
        self._use(blocks)
        end = first + len(blocks)
        replaced = table[first:end]
        self._set(sequence_id, [*table[:first], *blocks, *table[end:]])
        self._unuse(replaced)

    def keep(self, block: int) -> None:
        """Keep a block that is in a table, when it is in none any more."""
        self._is_kept[block] = True

    def drop(self, block: int) -> None:
        """Keep a block no longer."""
        self._is_kept[block] = False
        if not self._num_users[block]:
            self._num_only_kept -= 1
            self._free.append(block)

    def is_used(self, block: int) -> bool:
        """Whether a block is in a table."""
        return self._num_users[block] > 0

    def blocks(self, sequence_id: int) -> tuple[int, ...]:
        """The blocks of a sequence, in order."""
        return tuple(self._tables.get(sequence_id, ()))

    def table(self, sequence_ids: Sequence[int]) -> NDArray[np.int32]:
        """`[B S]` block table of these sequences, short rows padded with 0; not to be written."""
        if len(sequence_ids) == 1:
            return self._arrays[sequence_ids[0]]
        tables = [self._tables[sequence_id] for sequence_id in sequence_ids]
        array = np.zeros((len(tables), max(map(len, tables))), np.int32)
        for row, table in zip(array, tables, strict=True):
            row[: len(table)] = table
        return array

    def _set(self, sequence_id: int, table: list[int]) -> None:
        self._tables[sequence_id] = table
        self._arrays[sequence_id] = np.array([table], np.int32)

    def _use(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if self._is_kept[block] and not self._num_users[block]:
                self._num_only_kept -= 1
            self._num_users[block] += 1

    def _unuse(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._num_users[block] -= 1
            if self._num_users[block]:
                continue
            if self._is_kept[block]:
                self._num_only_kept += 1
            else:
                self._free.append(block)
