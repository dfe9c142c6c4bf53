"""Reading prompts, a chunk at a time, until what is left fits beside a round's drafts.

What is kept of earlier texts is not read again, and what was read is kept for later ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import CHUNK, prefill
from forerun.backends.prefixes import Prefix, Prefixes
from forerun.draft import Commit
from forerun.engine.parts import Parts
from forerun.engine.room import Room
from forerun.engine.scoring import CHUNK as SCORED
from forerun.engine.scoring import has_scores, read_and_score
from forerun.engine.sequence import Sequence
from forerun.stats import Span


class Reader:
    """Gives rows their K/V blocks and reads their prompts, for target and drafter."""

    def __init__(
        self, parts: Parts, prefixes: Prefixes | None = None, overcommit: float = 1.0
    ) -> None:
        self._parts = parts
        self._prefixes = prefixes
        # Where a text that is read again may give other tokens, nobody is interrupted.
        is_exact = parts.target.exactness != "law"
        self._room = Room(parts.slots, overcommit if is_exact else 1.0)
        # Of rows with a drafter that reads features: those of their first tokens, for the prefixes.
        self._tapped: dict[int, list[NDArray[np.float32]]] = {}

    def begin(self, row: Sequence) -> bool:
        """Give a row blocks and let the drafter know of it; False, and nothing done, where there
        are too few."""
        prefix, slots, parts = self._prefix(row), self._parts.slots, self._of(row)
        if not self._room.has(row, parts, prefix.blocks):
            return False
        span = Span()
        with span:
            if prefix.blocks:
                slots.share(row.id, prefix.blocks)
            self._room.begin(row, parts)
            if row.speculates:
                partition = None if self._prefixes is None else row.partition
                parts.drafter.admit(row.id, row.tokens, partition)
            if self._prefixes is not None and self._keeps_features(row):
                self._tapped[row.id] = []
            self._skip(row, prefix)
        if not row.num_preempted:
            row.num_cached = row.committed_len
        row.tally.prefill_s += span.seconds
        return True

    def num_unread(self, row: Sequence) -> int | None:
        """Tokens that a round would have to read of a row, the pending one included, or as many as
        its drafter has to; None where it must not, for they are to be scored."""
        if not has_scores(row):
            return None
        unread = len(row.tokens) - row.committed_len
        if not self._is_drafted_for(row):
            return unread
        return max(unread, 1 + self._of(row).drafter.num_unread(row.id, len(row.tokens)))

    def join(self, row: Sequence) -> None:
        """Let a row's first round find its drafter ready; what is left to the target, that round
        reads itself."""
        if self._is_drafted_for(row):
            self._draft_reads(row, len(row.tokens))

    def read(self, row: Sequence, most: int) -> int:
        """Read at most so many of a row's next tokens, the pending one never: how many it were."""
        self._find_more(row)
        num_drafter = self._draft_reads(row, min(most, CHUNK)) if self._is_drafted_for(row) else 0
        parts, start = self._parts, row.committed_len
        end = min(start + min(most, CHUNK), len(row.tokens) - 1)
        if end <= start:
            return num_drafter
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

    def note(self, row: Sequence, commit: Commit) -> None:
        """Note the features of what a round kept. Those of the first are a prompt's, and read at
        once, as what a small model has to read of it was."""
        tapped = self._tapped.get(row.id)
        if tapped is not None and commit.features is not None:
            tapped.append(commit.features)
        is_first = len(row.tokens) - len(commit.tokens) == row.prompt_len
        if is_first and row.finish_reason is None and self._reads_features(row):
            self.join(row)

    def end(self, row: Sequence) -> None:
        """Keep what a row leaves behind, and give back its blocks."""
        parts = self._of(row)
        if parts.pace is not None:
            parts.pace.forget(row.id)
        self.leave(row)

    def leave(self, row: Sequence) -> None:
        """Give back a row's blocks: it may begin again, and reads its text once more then, but for
        what is kept until then."""
        if row.error is None:
            self._keep(row)
        self._tapped.pop(row.id, None)
        self._of(row).drafter.release(row.id)
        self._room.end(row)

    @property
    def is_overcommitted(self) -> bool:
        """Whether a row that runs may find no memory for its next round."""
        return self._room.is_overcommitted

    def may_leave(self, row: Sequence) -> bool:
        """Whether a row may be interrupted without another token."""
        return self._room.may_leave(self._of(row))

    def extend(self, row: Sequence) -> bool:
        """Own what a row's next round may need; False where others own too much."""
        return self._room.extend(row, self._of(row))

    def _of(self, row: Sequence) -> Parts:
        return row.parts or self._parts

    def _is_drafted_for(self, row: Sequence) -> bool:
        pace = self._of(row).pace
        return row.speculates and (pace is None or pace.is_drafting)

    def _draft_reads(self, row: Sequence, most: int) -> int:
        span = Span()
        with span:
            num_read = self._of(row).drafter.read(row.id, row.tokens, most)
        row.tally.prefill_s += span.seconds
        return num_read

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
