"""Drafters that need not read a text before they are asked: it is read when drafting pays.

A small model reads every text that it drafts for, and where it drafts for none, that is time lost.
So who runs requests may let it own room first, and have it read a little at a time, or never:

    begin → read, as much as fits beside a round → … → propose, which reads what is left

No token depends on when a text was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class ReadsLate(Protocol):
    """A drafter whose `admit` is `begin` and a `read` of everything."""

    def begin(self, sequence_id: int, prompt: Sequence[int], partition: str | None = None) -> None:
        """Own room for a sequence, and read nothing; what was read of texts of the same partition
        may be used again, if it has one. Raises CapacityError."""

    def num_unread(self, sequence_id: int, num_tokens: int) -> int:
        """How many of its first `num_tokens` tokens, the pending one apart, are not read."""

    def read(self, sequence_id: int, tokens: Sequence[int], most: int) -> int:
        """Read at most so many of the next tokens, the last of all never: how many it were."""
