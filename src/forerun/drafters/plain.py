"""Plain decoding, said as a drafter: a tree of one node."""

from __future__ import annotations

from collections.abc import Sequence

from forerun.draft import Commit, Draft, Draw
from forerun.protocols import DraftRow
from forerun.tree import TokenTree

_POINT = Draw.POINT  # looked up once: an enum's member is found by a slow call


def plain_draft(pending: int) -> Draft:
    """The pending token alone."""
    return Draft(TokenTree.made_chain([pending]), _POINT)


class Plain:
    """Never proposes."""

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Nothing to prepare."""

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One node a row."""
        return [plain_draft(row.tokens[-1]) for row in rows]

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Nothing to learn."""

    def release(self, sequence_id: int) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to give back."""
