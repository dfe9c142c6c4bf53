"""Prediction: text the caller expects, followed from place to place.

Knows tokens only. While the output agrees with the prediction, what comes next in it is proposed.
Where they part, the place to go on from is looked for:

    prediction   a b c d e f g h        one token was replaced: go on behind it
    output       a b X                  propose d e f …
    output       a b X Y e f            `e f` stands there again: propose g h

A run of n tokens may meet its like by chance, the sooner the further one looks. So it is looked for
from the last sure place on, within `REACH ** n` tokens; the longest run is believed anywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.plain import plain_draft
from forerun.errors import OptionError
from forerun.protocols import DraftRow
from forerun.tree import TokenTree

_POINT = Draw.POINT  # looked up once: an enum's member is found by a slow call

LONGEST_RUN = 8  # tokens by which a lost place is found again
REACH = 4  # a run of n tokens is believed within so many tokens to the power of n
SURE = 4  # tokens in agreement that make a place certain
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class RunIndex:
    """Where each run of 1 to `LONGEST_RUN` tokens stands in one text; never changes."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self._hashes: list[NDArray[np.uint64]] = []  # sorted, for each length of run
        self._places: list[NDArray[np.int64]] = []  # of the runs in that order, then ascending
        ids = np.array(self.tokens, np.uint64)
        hashes = np.zeros(len(ids), np.uint64)
        for length in range(1, min(LONGEST_RUN, len(ids)) + 1):
            hashes = (
                hashes[: len(ids) - length + 1] * _MULTIPLIER + ids[length - 1 :] + np.uint64(1)
            )
            places = np.argsort(hashes, kind="stable")
            self._hashes.append(hashes[places])
            self._places.append(places)

    def __len__(self) -> int:
        return len(self.tokens)

    def find(self, run: Sequence[int], start: int) -> int | None:
        """Where `run` begins first at or after `start`, else last before it; None if nowhere."""
        if not 0 < len(run) <= len(self._hashes):
            return None
        value = 0
        for token in run:
            value = (value * int(_MULTIPLIER) + token + 1) & 0xFFFFFFFFFFFFFFFF
        hashes, places = self._hashes[len(run) - 1], self._places[len(run) - 1]
        first = int(np.searchsorted(hashes, np.uint64(value), "left"))
        end = int(np.searchsorted(hashes, np.uint64(value), "right"))
        if first == end:
            return None
        at = bisect_left(places, start, first, end)
        place = int(places[at if at < end else end - 1])
        # Another run may have the same hash; then this one is taken for absent.
        return place if self.tokens[place : place + len(run)] == list(run) else None


@dataclass(frozen=True, slots=True)
class Place:
    """How far one output has come in the prediction.

    `next`: the token expected now, the text's length when there is none. `sure`: behind the last
    token that certainly was the prediction's. `num_agreed`: tokens in agreement up to here.
    `tail`: the last tokens of the output.
    """

    next: int = 0
    sure: int = 0
    num_agreed: int = 0
    tail: tuple[int, ...] = ()

    def after(self, token: int, index: RunIndex) -> Place:
        """The place once the output has one token more."""
        tail = (*self.tail, token)[-LONGEST_RUN:]
        if self.next < len(index) and index.tokens[self.next] == token:
            return _agreed(self, self.next + 1, self.num_agreed + 1, tail)
        for length in range(len(tail), 0, -1):
            begin = index.find(tail[-length:], self.sure)
            if begin is None:
                continue
            is_near = self.sure <= begin <= self.sure + REACH**length
            if is_near or length == LONGEST_RUN:
                return _agreed(self, begin + length, length, tail)
        # After a sure place one strange token was most likely put where another was expected.
        is_replaced = self.num_agreed >= SURE and self.next < len(index)
        return Place(self.next + 1 if is_replaced else len(index), self.sure, 0, tail)


def _agreed(before: Place, place: int, num_agreed: int, tail: tuple[int, ...]) -> Place:
    return Place(place, place if num_agreed >= SURE else before.sure, num_agreed, tail)


class Follower:
    """One output's place in an expected text."""

    def __init__(self, index: RunIndex, prompt: Sequence[int]) -> None:
        """Begin where the prompt's end stands in the text, else at its beginning."""
        tail = tuple(prompt[-LONGEST_RUN:])
        begin = index.find(tail, 0) if len(tail) == LONGEST_RUN else None
        start = 0 if begin is None else begin + LONGEST_RUN
        self._index = index
        self._place = Place(start, start)

    @property
    def num_agreed(self) -> int:
        """Tokens in agreement up to here."""
        return self._place.num_agreed

    def follow(self, tokens: Sequence[int]) -> None:
        """The output has these tokens more."""
        for token in tokens:
            self._place = self._place.after(token, self._index)

    def propose(self, pending: int, most: int, ahead: Sequence[int] = ()) -> Draft | None:
        """The chain of what comes next, at most so long, once `ahead` has come too; None where
        nothing does."""
        place = self._place
        for token in ahead:
            place = place.after(token, self._index)
        drafted = self._index.tokens[place.next : place.next + most]
        return Draft(TokenTree.made_chain([pending, *drafted]), _POINT) if drafted else None


class Prediction:
    """Drafts point chains out of one expected text; its index is shared by all sequences.

    Raises:
        OptionError: a text without tokens.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        if len(tokens) == 0:
            raise OptionError("the prediction is empty: give a text of at least one token")
        self._index = RunIndex(tokens)
        self._followers: dict[int, Follower] = {}
        self._num_seen: dict[int, int] = {}

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Begin where the prompt's end stands in the prediction, else at its beginning."""
        self._followers[sequence_id] = Follower(self._index, prompt)
        self._num_seen[sequence_id] = len(prompt)

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One chain a row."""
        return [self._propose(row) for row in rows]

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Follow what was kept."""
        self._followers[sequence_id].follow(commit.tokens)
        self._num_seen[sequence_id] += len(commit.tokens)

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """Nothing to learn before it is observed."""

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Nothing to undo: only what was observed is remembered."""

    def release(self, sequence_id: int) -> None:
        """Forget the place."""
        self._followers.pop(sequence_id, None)
        self._num_seen.pop(sequence_id, None)

    def close(self) -> None:
        """Forget every place."""
        self._followers.clear()
        self._num_seen.clear()

    def _propose(self, row: DraftRow) -> Draft:
        num, pending = min(row.max_drafted, row.max_depth), row.tokens[-1]
        if num < 1:
            return plain_draft(pending)
        # Who decodes ahead of the verdict asks beyond what was observed.
        unseen = row.tokens[self._num_seen[row.sequence_id] :]
        follower = self._followers[row.sequence_id]
        return follower.propose(pending, num, unseen) or plain_draft(pending)
