"""Reading prompts, a chunk at a time, until what is left fits beside a round's drafts."""

from __future__ import annotations

from forerun.backends.prefill import CHUNK, prefill
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence
from forerun.stats import Span


class Reader:
    """Reads prompts of rows that own their K/V blocks, for target and drafter."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def begin(self, row: Sequence) -> None:
        """Let the drafter know of a row, unless that is decoded plainly."""
        if not row.speculates:
            return
        span = Span()
        with span:
            self._parts.drafter.admit(row.id, row.tokens)
        row.tally.prefill_s += span.seconds

    def read(self, row: Sequence, most: int) -> int:
        """Read at most so many of a row's next tokens, the pending one never: how many it were."""
        parts, start = self._parts, row.committed_len
        end = min(start + min(most, CHUNK), len(row.tokens) - 1)
        if end <= start:
            return 0
        span = Span()
        with span:
            table, tokens = parts.slots.table([row.id]), row.tokens[start:end]
            features = prefill(parts.target, table, tokens, start, parts.drafter.tap_layers)
            if features is not None:
                parts.drafter.absorb(row.id, features)
        row.committed_len = end
        row.tally.prefill_s += span.seconds
        return end - start
