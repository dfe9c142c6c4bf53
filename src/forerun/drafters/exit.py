"""Self-speculation: the target's own lower layers draft, its upper ones verify.

Knows the target's backend and K/V blocks. Nothing is read twice and no K/V is its own: the lower
layers' keys and values of the known text are those the target keeps, and what they compute of the
pending token has the same bits as in the verification that follows. Pays where the lower layers
were trained to foretell (LayerSkip, Elhoushi et al. 2024, arXiv:2404.16710).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forerun.backends.slots import Slots
from forerun.draft import Commit, Draft
from forerun.drafters.margins import Margins
from forerun.drafters.plain import plain_draft
from forerun.protocols import Backend, DraftRow, Growth, GrowthPlan
from forerun.stats import Span


class Exit:
    """Drafts `growth` with the lowest `num_layers` of the target, whose rows own blocks of `slots`;
    `span` sums the seconds of its backend calls."""

    def __init__(
        self, target: Backend, slots: Slots, num_layers: int, growth: Growth, span: Span
    ) -> None:
        self._target = target
        self._slots = slots
        self._num_layers = num_layers
        self._growth = growth
        self._span = span
        self._margins = Margins()
        self._last: dict[int, tuple[Draft, bool]] = {}

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Nothing to read: the target does."""

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One chain or tree a row, in one backend call."""
        drafting = [row for row in rows if row.max_drafted > 0]
        if not drafting:
            return [plain_draft(row.tokens[-1]) for row in rows]
        with self._span:
            drafts = self._target.grow(self._plan(drafting), self._num_layers)
        for row, draft in zip(drafting, drafts, strict=True):
            self._last[row.sequence_id] = draft, row.sampler.params.temperature == 0
        made = dict(zip((row.sequence_id for row in drafting), drafts, strict=True))
        return [made.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Learn how far margins could be trusted."""
        last = self._last.pop(sequence_id, None)
        if last is not None:
            self._margins.learn(last[0], commit, is_greedy=last[1])

    def release(self, sequence_id: int) -> None:
        """Forget the sequence; its blocks are the target's."""
        self._last.pop(sequence_id, None)

    def close(self) -> None:
        """The target is closed by who opened it."""

    def _plan(self, rows: Sequence[DraftRow]) -> GrowthPlan:
        unread = [row.tokens[row.committed_len :] for row in rows]
        starts = np.cumsum([0, *map(len, unread)])
        return GrowthPlan(
            catch_up=np.array([token for tokens in unread for token in tokens], np.int32),
            catch_up_starts=starts.astype(np.int32),
            committed=np.array([row.committed_len for row in rows], np.int32),
            block_table=self._slots.table([row.sequence_id for row in rows]),
            samplers=[row.sampler for row in rows],
            budgets=np.array([row.max_drafted for row in rows], np.int32),
            depths=np.array([min(row.max_drafted, row.max_depth) for row in rows], np.int32),
            growth=self._growth,
            acceptance=self._margins.of(rows),
            is_told=any(row.is_watched for row in rows),
        )
