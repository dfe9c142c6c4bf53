"""Training windows cut from one long stream of token ids.

Knows only an array and a step number: the windows of a step are a pure function of (seed, step), so
a resumed run continues exactly where it stopped. Must not know models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batches:
    """`rows` windows of `row_len` predicted tokens a step; now and then fewer, longer ones.

    Short windows come from a permutation of the stream that changes every epoch. Every
    `long_every`-th step has a quarter of the rows, four times as long, from random places; every
    third of those has one row eight times as long. They teach positions past `row_len`.
    """

    stream: NDArray[np.uint16]
    rows: int
    row_len: int
    seed: int
    long_every: int = 8

    def at(self, step: int) -> NDArray[np.int64]:
        """Windows [rows, row_len + 1] of `step`; inputs are [:, :-1], labels [:, 1:]."""
        if self.long_every and step % self.long_every == self.long_every - 1:
            return self._long(step)
        short_index = step - (step // self.long_every if self.long_every else 0)
        num_blocks = (len(self.stream) - 1) // self.row_len
        flat = np.arange(short_index * self.rows, (short_index + 1) * self.rows)
        starts = [self._block(int(at) // num_blocks, num_blocks)[at % num_blocks] for at in flat]
        return self._cut(np.asarray(starts) * self.row_len, self.row_len)

    def _block(self, epoch: int, num_blocks: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(num_blocks)

    def _long(self, step: int) -> NDArray[np.int64]:
        longest = step // self.long_every % 3 == 2
        row_len = self.row_len * (8 if longest else 4)
        rows = 1 if longest else max(1, self.rows // 4)
        limit = len(self.stream) - row_len
        starts = np.random.default_rng((self.seed, 1 << 32, step)).integers(0, limit, rows)
        return self._cut(starts, row_len)

    def _cut(self, starts: NDArray[np.int64], row_len: int) -> NDArray[np.int64]:
        windows: NDArray[np.int64] = self.stream[starts[:, None] + np.arange(row_len + 1)].astype(
            np.int64
        )
        return windows
