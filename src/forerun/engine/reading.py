"""Reading prompts, a chunk at a time, until what is left fits beside a round's drafts.

What is kept of earlier texts is not read again, and what was read is kept for later ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import CHUNK, prefill
from forerun.backends.slots import blocks_for
from forerun.draft import Commit
from forerun.engine.parts import Parts
from forerun.engine.prefixes import Prefix, Prefixes
from forerun.engine.scoring import CHUNK as SCORED
from forerun.engine.scoring import has_scores, read_and_score
from forerun.engine.sequence import Sequence
from forerun.protocols import Reads
from forerun.stats import Span


class Reader:
    """Gives rows their K/V blocks and reads their prompts, for target and drafter."""

    def __init__(self, parts: Parts, prefixes: Prefixes | None = None) -> None:
        self._parts = parts
        self._prefixes = prefixes
        # Of rows with a drafter that reads features: those of their first tokens, for the prefixes.
        self._tapped: dict[int, list[NDArray[np.float32]]] = {}
        self._longest: dict[int, int] = {}  # of rows under sampled rules: most tokens they may have

    def begin(self, row: Sequence) -> bool:
        """Give a row blocks for its longest outcome and let the drafter know of it; False, and
        nothing done, where there are too few."""
        prefix, slots = self._prefix(row), self._parts.slots
        if not self._has_room(row, prefix):
            return False
        if self._of(row).rule.reads is Reads.LAWS:
            self._longest[row.id] = row.limit
        span = Span()
        with span:
            if prefix.blocks:
                slots.share(row.id, prefix.blocks)
            slots.reserve(row.id, row.limit - 1)
            if row.speculates:
                self._of(row).drafter.admit(row.id, row.tokens)
            if self._prefixes is not None and self._keeps_features(row):
                self._tapped[row.id] = []
            self._skip(row, prefix)
        row.num_cached = row.committed_len
        row.tally.prefill_s += span.seconds
        return True

    def read(self, row: Sequence, most: int) -> int:
        """Read at most so many of a row's next tokens, the pending one never: how many it were."""
        self._find_more(row)
        parts, start = self._parts, row.committed_len
        end = min(start + min(most, CHUNK), len(row.tokens) - 1)
        if end <= start:
            return 0
        span = Span()
        with span:
            table, tokens = parts.slots.table([row.id]), row.tokens[start:end]
            taps = self._of(row).drafter.tap_layers
            if not has_scores(row):
                end = min(end, start + SCORED)
                features = read_and_score(row, end, parts.target, table, taps)
            else:
                features = prefill(parts.target, table, tokens, start, taps)
            self._take(row, features)
        row.committed_len = end
        row.tally.prefill_s += span.seconds
        self._keep(row)
        return end - start

    def num_unread(self, row: Sequence) -> int | None:
        """Tokens that a round would have to read of a row; None where it must not, for they are to
        be scored."""
        return len(row.tokens) - row.committed_len if has_scores(row) else None

    def note(self, row: Sequence, commit: Commit) -> None:
        """Note the features of what a round kept."""
        tapped = self._tapped.get(row.id)
        if tapped is not None and commit.features is not None:
            tapped.append(commit.features)

    def end(self, row: Sequence) -> None:
        """Keep what a row leaves behind, and give back its blocks."""
        if row.error is None:
            self._keep(row)
        self._tapped.pop(row.id, None)
        self._longest.pop(row.id, None)
        self._of(row).drafter.release(row.id)
        self._parts.slots.release(row.id)

    def _of(self, row: Sequence) -> Parts:
        return row.parts or self._parts

    def _has_room(self, row: Sequence, prefix: Prefix) -> bool:
        slots = self._parts.slots
        # The last token of a request is never read, so it needs no place.
        missing = blocks_for(row.limit - 1) - len(prefix.blocks)
        if missing > slots.num_free - sum(not slots.is_used(block) for block in prefix.blocks):
            return False
        if self._of(row).rule.reads is Reads.CHOICES or not self._longest:
            return True
        # What a sampled rule draws depends on drafts, so no drafter may run out of memory because
        # of company; drafters share no blocks, and have drafts beyond the text.
        limits = [*self._longest.values(), row.limit]
        return sum(blocks_for(limit) + 1 for limit in limits) <= slots.num_blocks

    def _reads_features(self, row: Sequence) -> bool:
        return row.speculates and bool(self._of(row).drafter.tap_layers)

    def _keeps_features(self, row: Sequence) -> bool:
        """Whether its drafter reads what lies beside kept blocks: features of the engine's own."""
        own = self._parts.drafter.tap_layers
        return self._reads_features(row) and self._of(row).drafter.tap_layers == own

    def _prefix(self, row: Sequence) -> Prefix:
        is_other = self._reads_features(row) and not self._keeps_features(row)
        if self._prefixes is None or is_other or not has_scores(row):
            return Prefix()
        return self._prefixes.find(
            row.partition, row.tokens, with_features=self._reads_features(row)
        )

    def _find_more(self, row: Sequence) -> None:
        """Take over what others have read of the same text meanwhile."""
        prefix = self._prefix(row)
        if prefix.num_tokens > row.committed_len:
            self._parts.slots.share(row.id, prefix.blocks)
            self._skip(row, prefix)

    def _skip(self, row: Sequence, prefix: Prefix) -> None:
        """Go on behind a prefix, whose features the drafter is handed as if they were new."""
        if prefix.features:
            self._take(row, np.concatenate(prefix.features)[row.committed_len :])
        row.committed_len = prefix.num_tokens

    def _take(self, row: Sequence, features: NDArray[np.float32] | None) -> None:
        if features is None:
            return
        self._of(row).drafter.absorb(row.id, features)
        if row.id in self._tapped:
            self._tapped[row.id].append(features)

    def _keep(self, row: Sequence) -> None:
        """Keep the full blocks of what is read; a cut text has less of it than was computed."""
        if self._prefixes is None or not self._parts.slots.blocks(row.id):
            return
        tapped = self._tapped.get(row.id)
        features = np.concatenate(tapped) if tapped else None
        known = row.tokens[: row.committed_len]
        self._prefixes.keep(row.partition, known, row.id, features)
