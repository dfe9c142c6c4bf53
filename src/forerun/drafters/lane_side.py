"""A drafter as its lane's thread sees it: its own copy of every text, and the jobs done to them.

Nothing here is touched by another thread while a job runs, but for `refused`, which only grows and
shrinks by whole entries.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft
from forerun.drafters.asking import foresee_by_asking
from forerun.drafters.plain import plain_draft
from forerun.errors import CapacityError
from forerun.forecast import Forecast
from forerun.protocols import Drafter, DraftRow, Foresees, Outlook, ReadsFeatures

_log = logging.getLogger(__name__)

Commits = Mapping[int, Sequence[Commit]]


class LaneSide:
    """The jobs of a lane. `refused`: sequences that the drafter has no room for."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._texts: dict[int, list[int]] = {}
        self.refused: set[int] = set()

    def admit(self, sequence_id: int, text: list[int]) -> None:
        """Have the drafter read a sequence, or leave it alone."""
        self._texts[sequence_id] = text
        try:
            self._drafter.admit(sequence_id, text)
            self.refused.discard(sequence_id)
        except CapacityError as error:
            _log.info("sequence %d is decoded plainly: %s", sequence_id, error)
            self.refused.add(sequence_id)
            self._drafter.release(sequence_id)

    def absorb(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """Hand over what was tapped of a prompt."""
        if isinstance(self._drafter, ReadsFeatures) and sequence_id not in self.refused:
            self._drafter.absorb(sequence_id, features)

    def foresee(
        self,
        rows: Sequence[DraftRow],
        drafts: Sequence[Draft],
        outlook: Outlook,
        commits: Commits,
    ) -> dict[int, Forecast]:
        """What may follow the drafts of rows, once it is known what was kept before."""
        seen = self._seen(rows, commits)
        if isinstance(self._drafter, Foresees):
            grown = self._drafter.foresee(seen, drafts, outlook)
        else:
            grown = foresee_by_asking(self._drafter, seen, drafts, outlook)
        return {
            row.sequence_id: Forecast(len(row.tokens), len(draft.tree), one)
            for row, draft, one in zip(seen, drafts, grown, strict=True)
        }

    def propose(self, rows: Sequence[DraftRow], commits: Commits) -> list[Draft]:
        """The drafter's ordinary proposals."""
        seen = self._seen(rows, commits)
        asked = [row for row in seen if row.sequence_id not in self.refused]
        made = self._drafter.propose(asked) if asked else []
        drafts = {row.sequence_id: draft for row, draft in zip(asked, made, strict=True)}
        return [drafts.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def release(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self.refused.discard(sequence_id)
        if self._texts.pop(sequence_id, None) is not None:
            self._drafter.release(sequence_id)

    def restart(self, texts: Mapping[int, list[int]]) -> None:
        """Read every running sequence anew, whatever was known of it."""
        for sequence_id, text in texts.items():
            if sequence_id in self._texts:
                self._drafter.release(sequence_id)
                self.admit(sequence_id, text)

    def _seen(self, rows: Sequence[DraftRow], commits: Commits) -> list[DraftRow]:
        """Rows with the lane's own texts: those of the engine grow while the lane works."""
        for sequence_id, some in commits.items():
            text = self._texts.get(sequence_id)
            for commit in some if text is not None else ():
                assert text is not None
                text.extend(commit.tokens)
                if sequence_id not in self.refused:
                    self._drafter.observe(sequence_id, commit)
        return [replace(row, tokens=self._texts[row.sequence_id]) for row in rows]
