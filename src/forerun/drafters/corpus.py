"""A corpus as sorted suffixes: where a run of tokens stands in it, and what follows there.

Read-only, shared by all sequences, and may be mapped from files (`corpus_files.py`).

    tokens      file 1 …, -1, file 2 …, -1        no run crosses an end of file
    suffixes    every place that holds a token, in the order of the `SORTED_LEN` tokens from it on

The places of a run are neighbours in that order, so a run is a range, and one token more narrows it
by bisection. What a sequence needs of it is the range of each run at its end: a `Reading`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun.drafters.suffixes import MAX_DEPTH, MIN_PROBABILITY

SORTED_LEN = 32  # a match of 16 tokens may propose 16; beyond, the order tells nothing
END_OF_FILE = -1
_NUM_PROBES = 256  # of a range: read at once, in the time of a few single ones

Ids: TypeAlias = NDArray[np.int32]
Run: TypeAlias = tuple[int, int, int]  # the range of its places in `suffixes`, and its length
Reading: TypeAlias = tuple[Run, ...]  # the runs of 0, 1, 2, … tokens at the end of a text


class Corpus:
    """`tokens [N]` int32 with `END_OF_FILE` behind each file, and `suffixes` int32 as sorted by
    `sorted_suffixes`."""

    def __init__(self, tokens: Ids, suffixes: Ids) -> None:
        # Single items of a plain view are read several times faster than those of a mapped array.
        self._tokens, self._suffixes = np.asarray(tokens), np.asarray(suffixes)
        self._start: Reading = ((0, len(self._suffixes), 0),)

    def __len__(self) -> int:
        return len(self._suffixes)

    def read(self, tokens: Sequence[int], reading: Reading | None = None) -> Reading:
        """The reading of a text that goes on with `tokens`; without a reading it begins there."""
        if reading is None or len(tokens) >= MAX_DEPTH:
            reading, tokens = self._start, tokens[-MAX_DEPTH:]
        for token in tokens:
            runs = list(self._start)
            for run in reading[:MAX_DEPTH]:
                longer = self._narrowed(run, token)
                if longer[0] == longer[1]:
                    break  # nor does any longer run occur
                runs.append(longer)
            reading = tuple(runs)
        return reading

    def matches(self, reading: Reading) -> list[tuple[int, Run]]:
        """`(length, run)` of the runs that occur, longest first, but for those that occur only
        where a longer one does."""
        longest_first = list(enumerate(reading))[:0:-1]
        sizes = [0, *(end - first for _, (first, end, _) in longest_first)]
        return [
            one
            for one, (longer, own) in zip(longest_first, pairwise(sizes), strict=True)
            if own > longer
        ]

    def children(self, run: Run) -> Iterator[tuple[int, float, Run]]:
        """`(token, probability, longer run)` of what follows a run, likeliest first, but for what
        is too unlikely to be drafted."""
        first, end, length = run
        if end - first == 1:
            token = self._token(first, length)
            if token != END_OF_FILE:
                yield token, 1.0, (first, end, length + 1)
            return
        if length < SORTED_LEN:
            likely = [one for one in self._likely(run) if one[1] - one[0] >= self._least(run)]
            likely.sort(key=lambda one: one[0] - one[1])
            for one in likely:
                yield self._token(one[0], length), (one[1] - one[0]) / (end - first), one

    def _least(self, run: Run) -> float:
        """Places that a longer run must have to be worth drafting."""
        return MIN_PROBABILITY * (run[1] - run[0])

    def _likely(self, run: Run) -> Iterator[Run]:
        """The longer runs that may have a tenth of a run's places, in order of their tokens.

        Neighbours in that order: what has a tenth of the places meets a tenth of the probes.
        """
        first, end, length = run
        stride = -(-(end - first) // _NUM_PROBES)
        probes = self._following(first, end, length, stride)
        starts = [0, *((probes[1:] != probes[:-1]).nonzero()[0] + 1).tolist(), len(probes)]
        least = self._least(run) / stride - 1
        for start, stop in pairwise(starts):
            token = int(probes[start])
            if stop - start < least or token == END_OF_FILE:
                continue
            if stride == 1:
                yield first + start, first + stop, length + 1
                continue
            begin = max(first, first + (start - 1) * stride)
            yield self._narrowed((begin, min(end, first + stop * stride), length), token)

    def _token(self, place: int, offset: int) -> int:
        """The token so far behind the beginning of a suffix; every file's end is a token here."""
        return int(self._tokens.item(self._suffixes.item(place) + offset))

    def _following(self, first: int, end: int, offset: int, stride: int = 1) -> Ids:
        """The tokens so far behind the beginnings of a range of suffixes."""
        following: Ids = self._tokens[self._suffixes[first:end:stride] + offset]
        return following

    def _narrowed(self, run: Run, token: int) -> Run:
        """The places of a run that have this token next."""
        first, end, length = run
        if end - first <= _NUM_PROBES:
            low, high = self._following(first, end, length).searchsorted((token, token + 1))
            return first + int(low), first + int(high), length + 1
        tokens, suffixes = self._tokens.item, self._suffixes.item

        def following(place: int) -> int:
            return int(tokens(suffixes(place) + length))

        places = range(first, end)
        low = bisect_left(places, token, key=following)
        high = bisect_right(places, token, lo=low, key=following)
        return first + low, first + high, length + 1


def sorted_suffixes(tokens: Ids) -> Ids:
    """Places of `tokens` but for ends of files, ordered by the `SORTED_LEN` tokens from each on.

    By doubling (Manber and Myers 1990): the order by 2n tokens is that of pairs of ranks by n. The
    last of `tokens` must be `END_OF_FILE`; equal ones keep the order of the text.
    """
    ranks = tokens.astype(np.int64) + 1
    order = np.zeros(0, np.int64)
    length = 1
    while length < SORTED_LEN:
        pairs = ranks * (int(ranks.max()) + 1)
        pairs[:-length] += ranks[length:]
        order = np.argsort(pairs, kind="stable")
        in_order = pairs[order]
        ranks[order[0]] = 0
        ranks[order[1:]] = np.cumsum(in_order[1:] != in_order[:-1])
        length *= 2
    suffixes: Ids = order[tokens[order] != END_OF_FILE].astype(np.int32)
    return suffixes
