"""Text that one request is expected to come to: proposed while it agrees, else another is asked.

Knows tokens only; where the text stands in the expected one is found as `prediction.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forerun.draft import Draft
from forerun.drafters.prediction import Follower, RunIndex
from forerun.protocols import DraftRow

LONGEST = 16  # a pass of more nodes is bound by arithmetic on processors without a matrix unit
NAME = "prediction"  # who drafted what is proposed
_FIRST = 4  # tokens proposed before any agreed; each that agrees lets two more be proposed


class Expected:
    """One request's prediction: how far its text has come in it, and what it brought.

    `prompt` is where the text begins.
    """

    def __init__(self, index: RunIndex, prompt: Sequence[int]) -> None:
        self._follower = Follower(index, prompt)
        self._num_drafted = self._num_accepted = 0
        self._num_seen = 0
        self._pending: list[int] = []  # the last proposal; empty where others drafted

    @property
    def is_pending(self) -> bool:
        """Whether the last proposal for the request was this text's."""
        return bool(self._pending)

    def propose(self, row: DraftRow) -> Draft | None:
        """What comes next in the expected text, no more than agreement so far is worth; None where
        it has nothing to say."""
        most = min(LONGEST, _FIRST + 2 * self._follower.num_agreed, row.max_drafted, row.max_depth)
        draft = self._follower.propose(row.tokens[-1], most) if most > 0 else None
        self._pending = [] if draft is None else draft.tree.tokens[1:].tolist()
        return None if draft is None else replace(draft, source=NAME)

    def observe(self, tokens: Sequence[int]) -> None:
        """Follow what a round kept: accepted tokens, then the target's own."""
        self._follower.follow(tokens)
        self._num_seen += len(tokens)
        kept = tokens[:-1]  # of somebody else's draft where a grammar had its own
        self._num_drafted += len(self._pending)
        for ours, token in zip(self._pending, kept, strict=False):
            if ours != token:
                break
            self._num_accepted += 1

    def brought(self, num_generated: int) -> tuple[int, int]:
        """Of an answer of so many tokens: how many proposed ones are part of it, and how many are
        not. Where its last round was cut, the target's own token went first."""
        cut = max(0, self._num_seen - num_generated - 1) if self._pending else 0
        num_accepted = max(0, self._num_accepted - cut)
        return num_accepted, self._num_drafted - num_accepted
