"""What drafters that read features are given of a row, and where they keep what they made of it.

Knows positions, physical slots and tensors. Must not know drafters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forerun.backends.torch.block import KeysValues
from forerun.models.spec import ModelSpec
from forerun.protocols import BLOCK_LEN


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """One row from position `first` on: tokens `[n+1]`, the pending one last, features `[n F]`;
    `slots [first+n]` of every position before the pending one, `room` for so many from it on."""

    first: int
    tokens: Tensor
    features: Tensor
    slots: Tensor
    room: int

    @property
    def pending(self) -> int:
        """Position of the pending token."""
        return len(self.slots)

    @property
    def fresh(self) -> Tensor:
        """`[n]` positions that have features now."""
        return torch.arange(self.first, self.pending, device=self.slots.device)


class Paged:
    """Keys and values of one layer, by physical slot."""

    def __init__(self, body: ModelSpec, num_blocks: int, like: Tensor) -> None:
        shape = (num_blocks * BLOCK_LEN, body.num_kv_heads, body.head_dim)
        self._keys, self._values = like.new_zeros(shape), like.new_zeros(shape)

    def write(self, slots: Tensor, fresh: KeysValues) -> None:
        """Keep keys and values `[1 G n D]` at `slots [n]`."""
        self._keys[slots], self._values[slots] = (one[0].transpose(0, 1) for one in fresh)

    def read(self, slots: Tensor) -> KeysValues:
        """Keys and values `[1 G S D]` of `slots [S]`."""
        keys, values = self._keys[slots], self._values[slots]
        return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
