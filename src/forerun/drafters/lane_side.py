"""A drafter as its lane's thread sees it: its own copy of every text, and the jobs done to them.

Nothing here is touched by another thread while a job runs, but for `refused`, which only grows and
shrinks by whole entries.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft
from forerun.drafters.asking import foreseen
from forerun.drafters.plain import plain_draft
from forerun.errors import CapacityError, DrafterError
from forerun.forecast import Forecast, cut
from forerun.protocols import Drafter, DraftRow, Outlook, ReadsFeatures
from forerun.tree import TokenTree

_log = logging.getLogger(__name__)

Commits = Mapping[int, Sequence[Commit]]
Text = tuple[list[int], Sequence[NDArray[np.float32]]]  # its tokens, and what was tapped of them


class LaneSide:
    """The jobs of a lane. `refused`: sequences that the drafter has no room for. What it proposes
    is checked here, where nobody waits: tokens are below `vocab`, trees are trees."""

    def __init__(self, drafter: Drafter, vocab: int) -> None:
        self._drafter = drafter
        self._vocab = vocab
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
        grown = foreseen(self._drafter, seen, drafts, outlook)
        forecasts = {}
        for row, draft, one in zip(seen, drafts, grown, strict=True):
            self._check(one, draft.tree)
            forecasts[row.sequence_id] = Forecast(len(row.tokens), len(draft.tree), one)
        return forecasts

    def propose(self, rows: Sequence[DraftRow], commits: Commits) -> list[Draft]:
        """The drafter's ordinary proposals."""
        seen = self._seen(rows, commits)
        asked = [row for row in seen if row.sequence_id not in self.refused]
        made = self._drafter.propose(asked) if asked else []
        drafts = {}
        for row, draft in zip(asked, made, strict=True):
            self._check(draft, plain_draft(row.tokens[-1]).tree)
            drafts[row.sequence_id] = _fitting(draft, row)
        return [drafts.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def release(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self.refused.discard(sequence_id)
        if self._texts.pop(sequence_id, None) is not None:
            self._drafter.release(sequence_id)

    def restart(self, texts: Mapping[int, Text], alive: Collection[int]) -> None:
        """Read these sequences anew, whatever was known of them; of all others only those `alive`
        are kept."""
        for sequence_id in list(self._texts):
            if sequence_id in texts or sequence_id not in alive:
                self.release(sequence_id)
        for sequence_id, (text, told) in texts.items():
            self.admit(sequence_id, text)
            for features in told:
                self.absorb(sequence_id, features)

    def _check(self, draft: Draft, begins: TokenTree) -> None:
        """Refuse a draft that is no tree of the target's tokens, or not one that begins so."""
        tokens, parents = draft.tree.tokens, draft.tree.parents
        if tokens.dtype.kind not in "iu" or parents.dtype.kind not in "iu":
            raise DrafterError(f"token ids must be integers, found {tokens.dtype}")
        TokenTree(tokens, parents)
        if int(tokens.min()) < 0 or int(tokens.max()) >= self._vocab:
            raise DrafterError(
                f"token ids must be in [0, {self._vocab}), found {tokens.min()} to {tokens.max()}"
            )
        num = len(begins)
        is_same = np.array_equal(tokens[:num], begins.tokens)
        if not is_same or not np.array_equal(parents[:num], begins.parents):
            raise DrafterError("a draft must begin with the tree that it was asked to continue")

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


def _fitting(draft: Draft, row: DraftRow) -> Draft:
    """As much of a draft as a row has room for."""
    if draft.law is None:
        return cut(draft, row.max_drafted, row.max_depth)
    if len(draft.tree) > 1 + row.max_drafted:
        raise DrafterError(
            f"{len(draft.tree) - 1} tokens were proposed where {row.max_drafted} fit"
        )
    return draft
