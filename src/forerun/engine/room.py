"""How much K/V memory a request is given: what it may ever need, or what it needs now.

By default the longest outcome of every request is owned from its beginning on, so that nothing that
runs ever has to wait. A service may promise more than there is:

    promised     ≤ overcommit × memory      the longest outcomes of all that run
    owned        what is known of them, and the next round
    too little   the youngest gives its blocks back and reads its text again later

Requests under sampled rules own their longest outcome in any case: what is drawn for them depends
on their drafts, and those on when they were interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence as Blocks

from forerun.backends.slots import Slots, blocks_for
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence
from forerun.errors import CapacityError
from forerun.protocols import BLOCK_LEN, Reads


class Room:
    """Gives rows blocks of `slots`; `overcommit` times as many as there are may be promised."""

    def __init__(self, slots: Slots, overcommit: float = 1.0) -> None:
        self._slots = slots
        self._overcommit = overcommit
        self._promised: dict[int, int] = {}  # blocks of rows' longest outcomes
        self._longest: dict[int, int] = {}  # of rows under sampled rules: most tokens they may have

    @property
    def is_overcommitted(self) -> bool:
        """Whether a row that runs may find no memory for its next round."""
        return self._overcommit > 1.0

    def has(self, row: Sequence, parts: Parts, shared: Blocks[int]) -> bool:
        """Whether a row may begin, some of whose blocks are there to be shared."""
        slots = self._slots
        missing = blocks_for(self._wanted(row, parts)) - len(shared)
        # Those that run soon need more: who begins must not drive another out at once.
        spare = len(self._promised) if self.is_overcommitted else 0
        if missing + spare > slots.num_free - sum(not slots.is_used(block) for block in shared):
            return False
        if self.is_overcommitted and self._promised:
            promised = sum(self._promised.values()) + _longest_of(row)
            if promised > self._overcommit * slots.num_blocks:
                return False
        return parts.rule.reads is Reads.CHOICES or self._suffices_drafters(row)

    def begin(self, row: Sequence, parts: Parts) -> None:
        """Own what a row needs now."""
        self._slots.reserve(row.id, self._wanted(row, parts))
        self._promised[row.id] = _longest_of(row)
        if parts.rule.reads is Reads.LAWS:
            self._longest[row.id] = row.limit

    def extend(self, row: Sequence, parts: Parts) -> bool:
        """Own what the next round of a row may need; False where there is too little."""
        try:
            self._slots.reserve(row.id, _soon(row, parts))
        except CapacityError:
            return False
        return True

    def may_leave(self, parts: Parts) -> bool:
        """Whether rows of such parts may be interrupted."""
        return self.is_overcommitted and parts.rule.reads is Reads.CHOICES

    def end(self, row: Sequence) -> None:
        """Give back all blocks of a row."""
        self._promised.pop(row.id, None)
        self._longest.pop(row.id, None)
        self._slots.release(row.id)

    def _wanted(self, row: Sequence, parts: Parts) -> int:
        """Positions to begin with."""
        # The last token of a request is never read, so it needs no place.
        return _soon(row, parts) if self.may_leave(parts) else row.limit - 1

    def _suffices_drafters(self, row: Sequence) -> bool:
        """What a sampled rule draws depends on drafts, so no drafter may run out of memory because
        of company; drafters share no blocks, and have drafts beyond the text."""
        limits = [*self._longest.values(), row.limit]
        enough = sum(blocks_for(limit) + 1 for limit in limits) <= self._slots.num_blocks
        return enough or not self._longest


def _longest_of(row: Sequence) -> int:
    return blocks_for(row.limit - 1)


def _soon(row: Sequence, parts: Parts) -> int:
    """Positions of a row's text and of the widest draft below it, whoever drafts."""
    widest = max(parts.shape.max_drafted, BLOCK_LEN)
    return min(row.limit - 1, len(row.tokens) + widest)
