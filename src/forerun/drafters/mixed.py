"""The drafters of rows that share a pass and not a drafter, as one.

Hands each row to its own guard, within the row's own shape, unless a text that is expected of the
row has something to say. Lives for one round; its rows were admitted elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft
from forerun.drafters.expected import LONGEST, Expected
from forerun.drafters.guard import Guard
from forerun.protocols import DraftRow, Shape
from forerun.stats import Span
from forerun.tree import TokenTree


@dataclass(frozen=True, slots=True, eq=False)
class Seat:
    """How one row is drafted for: by whom, in which shape, at most so many nodes; and the text that
    is expected of it, if somebody said."""

    guard: Guard
    shape: Shape
    most: int
    expected: Expected | None = None

    @property
    def widest(self) -> int:
        """Most nodes that anything proposes for it."""
        return self.most if self.expected is None else max(self.most, LONGEST)

    def own(self, row: DraftRow) -> DraftRow:
        """The row within its own shape."""
        most = min(self.most, self.shape.fits(row.max_depth))
        return row if most == row.max_drafted else replace(row, max_drafted=most)


@dataclass(frozen=True, slots=True)
class Widest:
    """Takes every draft: shapes of single rows are kept to before."""

    max_drafted: int

    def fits(self, depth: int) -> int:
        """All of it, wherever there is room for a token."""
        return self.max_drafted if depth > 0 else 0

    def limit(self, tree: TokenTree) -> TokenTree:
        """The whole tree."""
        return tree


@dataclass(slots=True, eq=False)
class Share:
    """What one guard took of a round: the seconds of its calls, and its small model's passes."""

    span: Span = field(default_factory=Span)
    num_passes: int = 0


class Mixed:
    """Drafts for rows of several ways, each by its seat; `tap_layers` are read by some of them.

    `shares` are told what each guard took.
    """

    def __init__(
        self,
        seats: Mapping[int, Seat],
        tap_layers: tuple[int, ...],
        shares: MutableMapping[Guard, Share],
    ) -> None:
        self._seats = seats
        self._tap_layers = tap_layers
        self._shares = shares
        for seat in seats.values():
            shares.setdefault(seat.guard, Share())

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Layers that those drafters read which read any."""
        return self._tap_layers

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Nothing: its guard has."""

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One draft a row: of what is expected of it, else of its own guard, each asked once."""
        drafts: dict[int, Draft] = {}
        asked: dict[Guard, list[DraftRow]] = {seat.guard: [] for seat in self._seats.values()}
        for row in rows:
            seat = self._seats[row.sequence_id]
            draft = None if seat.expected is None else seat.expected.propose(row)
            if draft is None:
                asked[seat.guard].append(seat.own(row))
            else:
                drafts[row.sequence_id] = draft
        for guard, own in asked.items():
            share = self._shares[guard]
            with share.span:
                made = guard.propose(own)
            share.num_passes = max([share.num_passes, *[draft.num_passes for draft in made]])
            drafts |= {row.sequence_id: draft for row, draft in zip(own, made, strict=True)}
        return [drafts[row.sequence_id] for row in rows]

    def anticipate(self, rows: Sequence[DraftRow], drafts: Sequence[Draft]) -> None:
        """Tell each guard of its rows' drafts."""
        told: dict[Guard, tuple[list[DraftRow], list[Draft]]] = {}
        for row, draft in zip(rows, drafts, strict=True):
            seat = self._seats[row.sequence_id]
            own_rows, own_drafts = told.setdefault(seat.guard, ([], []))
            own_rows.append(seat.own(row))
            own_drafts.append(draft)
        for guard, (own_rows, own_drafts) in told.items():
            guard.anticipate(own_rows, own_drafts)

    def absorb(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """Hand a row's features to its guard."""
        self._seats[sequence_id].guard.absorb(sequence_id, features)

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Tell the row's guard, and follow what is expected; features only where they are read."""
        seat = self._seats[sequence_id]
        if seat.expected is not None:
            seat.expected.observe(commit.tokens)
        if commit.features is not None and not seat.guard.tap_layers:
            commit = Commit(commit.tokens)
        with self._shares[seat.guard].span:
            seat.guard.observe(sequence_id, commit)

    def release(self, sequence_id: int) -> None:
        """Nothing: its guard is told by others."""

    def close(self) -> None:
        """Nothing: guards outlive a round."""
