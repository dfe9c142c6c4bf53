"""A module whose weights were loaded once, for any number of backends.

Knows how many bytes they take. Must not know what the module computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module, covariant=True)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Loaded(Generic[ModuleT]):
    """A module that nobody changes any more: whoever holds it may compute with it."""

    module: ModuleT

    @property
    def num_bytes(self) -> int:
        """Bytes of its parameters; one that serves twice counts once."""
        return sum(one.numel() * one.element_size() for one in self.module.parameters())
