"""Who owns which K/V block of one backend.

Knows block numbers only; the memory behind them is the backend's.

    positions  0 … 31 | 32 … 63 | 64 …      of a sequence
    table        7    |    2    |  5        physical blocks, in that order
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forerun.errors import CapacityError
from forerun.protocols import BLOCK_LEN


def blocks_for(num_positions: int) -> int:
    """Blocks that hold so many positions."""
    return -(-num_positions // BLOCK_LEN)


class Slots:
    """Block tables of the sequences of one backend; what is not in a table is free."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._tables: dict[int, list[int]] = {}
        self._arrays: dict[int, NDArray[np.int32]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def reserve(self, sequence_id: int, num_positions: int) -> None:
        """Own blocks for at least so many positions.

        Raises:
            CapacityError: fewer blocks are free than are missing; nothing was taken.
        """
        table = self._tables.get(sequence_id, [])
        missing = blocks_for(num_positions) - len(table)
        if missing <= 0:
            return
        if missing > len(self._free):
            raise CapacityError(
                f"{missing * BLOCK_LEN} more positions of K/V are needed,"
                f" {self.num_free * BLOCK_LEN} of {self.num_blocks * BLOCK_LEN} are free: lower"
                " max_tokens, run fewer requests at once, or give the engine more K/V memory"
            )
        table = table + [self._free.pop() for _ in range(missing)]
        self._tables[sequence_id] = table
        self._arrays[sequence_id] = np.array([table], np.int32)

    def release(self, sequence_id: int) -> None:
        """Give back all blocks of a sequence; unknown sequences own none."""
        self._free.extend(reversed(self._tables.pop(sequence_id, [])))
        self._arrays.pop(sequence_id, None)

    def table(self, sequence_ids: Sequence[int]) -> NDArray[np.int32]:
        """`[B S]` block table of these sequences, short rows padded with 0; not to be written."""
        if len(sequence_ids) == 1:
            return self._arrays[sequence_ids[0]]
        tables = [self._tables[sequence_id] for sequence_id in sequence_ids]
        array = np.zeros((len(tables), max(map(len, tables))), np.int32)
        for row, table in zip(array, tables, strict=True):
            row[: len(table)] = table
        return array
