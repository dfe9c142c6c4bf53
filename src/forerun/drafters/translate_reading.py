"""How far a drafter with a vocabulary of its own has come with each sequence.

Knows its backend, its K/V blocks and the texts told in its tokens. Nothing is undone:

    ids          0 ………………… same | told anew …, pending         the text as of now
    with K/V     0 ………………… same | removed …, drafted …        the text as it was, then a draft

What both lines have in common from the left is `num_kept`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import prefill
from forerun.backends.slots import Slots, blocks_for
from forerun.drafters.translate_text import Retold, Spelling, num_equal
from forerun.errors import CapacityError
from forerun.models.tokenizer import Tokenizer
from forerun.protocols import BLOCK_LEN, Backend
from forerun.stats import Span

LONGEST_CATCH_UP = 32  # unseen tokens a proposal reads itself; more are read in chunks before it


@dataclass(slots=True, eq=False)
class Reading:
    """One sequence: `num_told` tokens of the target are in `text`; the first `num_kept` of
    `text.ids` have K/V, and behind the last of them lies that of the tokens `drafted`.

    `half`: tokens of single bytes for the first bytes of a character that is not finished, read
    behind `text.ids` as if they were drafted; empty where there are none.
    """

    text: Retold
    half: list[int] = field(default_factory=list)
    num_reserved: int = 0
    num_told: int = 0
    num_kept: int = 0
    drafted: list[int] = field(default_factory=list)
    base: tuple[int, Retold] | None = None

    def go_back(self, tokens: Sequence[int]) -> None:
        """Tell `tokens`, however much more was told; `base` is what was gone back to last, for who
        goes back often goes back there again, and finds it told as it was."""
        if self.num_told > len(tokens):
            with_kv = self.text.ids[: self.num_kept] + self.drafted
            if self.base is not None and self.base[0] == len(tokens):
                self.text = self.base[1].copy()
            else:
                self.text = self.text.blank()
                self.text.extend(tokens)
            self.num_told, self.half, self.drafted = len(tokens), self.text.half(), []
            same = num_equal(with_kv, self.text.ids)
            self.num_kept = max(0, min(same, len(self.text.ids) - 1))
        elif self.num_told < len(tokens):
            self.tell(tokens)
        if self.base is None or self.base[0] != self.num_told:
            self.base = self.num_told, self.text.copy()

    def tell(self, tokens: Sequence[int]) -> None:
        """Read what the target's text has become; at least its last token has no K/V then."""
        num_same, removed = self.text.extend(tokens[self.num_told :])
        self.num_told = len(tokens)
        with_kv = self.num_kept + len(self.drafted)
        line = removed + self.drafted
        for had, has in zip(line, self.text.ids[num_same:], strict=False):
            if had != has:
                break
            num_same += 1
        self.num_kept = max(0, min(with_kv, num_same, len(self.text.ids) - 1))
        self.drafted = []
        self.half = self.text.half()

    @property
    def catch_up(self) -> list[int]:
        """What is to be read before a draft."""
        return self.text.ids[self.num_kept :] + self.half

    def keep(self, num_read: int) -> None:
        """So many tokens of `catch_up` have K/V now."""
        num_text = min(num_read, len(self.text.ids) - self.num_kept)
        self.num_kept += num_text
        self.drafted = self.half[: num_read - num_text]


class Readings:
    """The sequences of one drafter's `backend`, whose tokenizer is `own`; `span` sums the seconds
    of the backend's calls."""

    def __init__(self, backend: Backend, own: Tokenizer, target: Tokenizer, span: Span) -> None:
        self.backend = backend
        self.own = Spelling(own)
        self.target = Spelling(target)
        self.span = span
        self._slots = Slots(backend.num_blocks)
        self._readings: dict[int, Reading] = {}

    def admit(self, sequence_id: int, prompt: Sequence[int], num_more: int) -> None:
        """Tell and read a prompt, with room for `num_more` tokens behind it.

        Raises:
            CapacityError: it does not fit the drafter's context or K/V memory.
        """
        reading = Reading(Retold(self.target, self.own))
        reading.tell(prompt)
        num_ids, limit = len(reading.text.ids), self.backend.spec.max_position
        if num_ids >= limit:
            raise CapacityError(
                f"the prompt has {num_ids} tokens in the drafter's vocabulary, its limit is {limit}"
            )
        reading.num_reserved = self._reserve(sequence_id, num_ids + num_more)
        self._readings[sequence_id] = reading
        self._read(sequence_id, reading)

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Take a sequence back to `tokens`, those known or more than were known last time."""
        reading = self._readings.get(sequence_id)
        if reading is not None:
            reading.go_back(tokens)

    def ready(self, sequence_id: int, tokens: Sequence[int], num_more: int) -> Reading | None:
        """The sequence told to its end, with room behind it and few tokens unread; else None."""
        reading = self._readings.get(sequence_id)
        if reading is None:
            return None
        reading.tell(tokens)
        needed = len(reading.text.ids) + len(reading.half) + num_more
        if needed > reading.num_reserved:
            if needed > self.backend.spec.max_position:
                return None
            try:
                reading.num_reserved = self._reserve(sequence_id, needed)
            except CapacityError:
                return None
        if not reading.catch_up:
            return None
        if len(reading.catch_up) > LONGEST_CATCH_UP:
            self._read(sequence_id, reading)
        return reading

    def table(self, sequence_ids: Sequence[int]) -> NDArray[np.int32]:
        """`[B S]` their K/V blocks."""
        return self._slots.table(sequence_ids)

    def release(self, sequence_id: int) -> None:
        """Give back a sequence's blocks."""
        self._slots.release(sequence_id)
        self._readings.pop(sequence_id, None)

    def close(self) -> None:
        """Close the backend."""
        self.backend.close()

    def _reserve(self, sequence_id: int, num_positions: int) -> int:
        self._slots.reserve(sequence_id, num_positions)
        return min(blocks_for(num_positions) * BLOCK_LEN, self.backend.spec.max_position)

    def _read(self, sequence_id: int, reading: Reading) -> None:
        """All but the last token."""
        unread = reading.text.ids[reading.num_kept : -1]
        with self.span:
            prefill(self.backend, self.table([sequence_id]), unread, reading.num_kept)
        reading.num_kept += len(unread)
