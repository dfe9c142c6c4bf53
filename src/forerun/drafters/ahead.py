"""Asking a drafter beyond the verdict: what a decoder that runs ahead may assume of it.

A proposal may be asked for more tokens than were observed. What goes beyond may be taken back, and
was then never there. A drafter that learns from `observe` alone has nothing to undo; one that keeps
what it read, as a model keeps K/V, is told how much of it is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from forerun.protocols import Drafter


@runtime_checkable
class Rewinds(Protocol):
    """A drafter that can go back."""

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Forget what was read of a sequence beyond `tokens`."""


def rewind(drafter: Drafter, sequence_id: int, tokens: Sequence[int]) -> None:
    """Let a drafter forget what it read beyond `tokens`; one that cannot reads them again."""
    if isinstance(drafter, Rewinds):
        drafter.rewind(sequence_id, tokens)
        return
    drafter.release(sequence_id)
    drafter.admit(sequence_id, tokens)
