"""How likely drafted tokens are to be kept, of all rows and of each.

Knows what rows drafted and kept; not what it costs. A row of which little is known is like those
that came before it when little was known of them: rows that draft much are the lucky ones, and say
nothing of a newcomer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Kept: TypeAlias = tuple[int, int, int]  # a row's id, how many tokens it drafted, how many it kept

_MEMORY = 0.97  # of past acceptance a round keeps: about the last thirty
_NEW_MEMORY = 0.98  # the same of what newcomers keep, by round in which one drafts
_NEW = 8.0  # drafted tokens of a row up to which it is a newcomer
_OTHERS = 3.0  # of tokens at one depth: so many count as much as those of all depths
_LEAST = 1e-4  # no chance is taken to be smaller
_OWN = 6.0  # drafted tokens of a row that count as much as what newcomers keep
_SURE = 0.97  # no chain is taken to be likelier than this a token


@dataclass(slots=True)
class _Tally:
    """How often a drafted token was kept, given that all before it were; fading sums."""

    hits: float = 0.0
    trials: float = 0.0

    def add(self, hits: float, trials: float, memory: float = _MEMORY) -> None:
        self.hits = memory * self.hits + hits
        self.trials = memory * self.trials + trials


@dataclass(slots=True)
class _Depth:
    """What was kept at one depth, and what the chances of the rows that came so far would give."""

    kept: _Tally = field(default_factory=_Tally)
    expected: _Tally = field(default_factory=_Tally)


class Chances:
    """Learns what is kept: each token of a row's chain by the row's own chance, to the power by
    which tokens so deep were kept otherwise than those rows' chances say."""

    def __init__(self, longest: int) -> None:
        self._all = _Tally(1.2, 2.0)
        self._new = _Tally(1.2, 2.0)
        self._depths = [_Depth() for _ in range(longest)]
        self._rows: dict[int, _Tally] = {}

    @property
    def mean(self) -> float:
        """Probability that the next drafted token is kept, given that all before it were."""
        return self._all.hits / self._all.trials

    @property
    def num_rows(self) -> int:
        """Rows of which something is known."""
        return len(self._rows)

    def learn(self, kept: Sequence[Kept]) -> None:
        """Take in what rows kept of what they drafted in one round."""
        self._learn_depths(kept)
        hits = trials = new_hits = new_trials = 0
        for row, num_drafted, num_kept in kept:
            # A row's chain ends in one rejection, or in none when all of it was kept.
            num_tried = min(num_kept + 1, num_drafted)
            own = self._rows.setdefault(row, _Tally())
            if own.trials < _NEW:
                new_hits, new_trials = new_hits + num_kept, new_trials + num_tried
            own.add(num_kept, num_tried)
            hits, trials = hits + num_kept, trials + num_tried
        self._all.add(hits / len(kept), trials / len(kept))
        if new_trials:
            self._new.add(new_hits, new_trials, _NEW_MEMORY)

    def _learn_depths(self, kept: Sequence[Kept]) -> None:
        own = [self._own(row) for row, _, _ in kept]
        for depth, known in enumerate(self._depths, start=1):
            tried = [at for at, one in enumerate(kept) if one[1] >= depth and one[2] >= depth - 1]
            if not tried:
                return
            share = len(tried) / len(kept)
            known.kept.add(sum(kept[at][2] >= depth for at in tried) / len(kept), share)
            known.expected.add(sum(own[at] for at in tried) / len(kept), share)

    def forget(self, row_id: int) -> None:
        """A row has ended."""
        self._rows.pop(row_id, None)

    def of(self, row_ids: Sequence[int]) -> NDArray[np.float64]:
        """How likely a chain of 1, 2, … tokens is kept whole, a line for each row."""
        powers = np.cumsum([self._power(one) for one in self._depths])
        own = np.array([[self._own(row)] for row in row_ids])
        chances: NDArray[np.float64] = np.maximum(own**powers, _LEAST)
        return chances

    def _power(self, depth: _Depth) -> float:
        few = _OTHERS * min(max(self.mean, _LEAST), _SURE)
        kept = (depth.kept.hits + few) / (depth.kept.trials + _OTHERS)
        expected = (depth.expected.hits + few) / (depth.expected.trials + _OTHERS)
        return math.log(_bounded(kept)) / math.log(_bounded(expected))

    def _own(self, row: int) -> float:
        own, like_others = self._rows.get(row), self._new.hits / self._new.trials
        if own is None:
            return _bounded(like_others)
        return _bounded((own.hits + _OWN * like_others) / (own.trials + _OWN))


def _bounded(chance: float) -> float:
    return min(max(chance, _LEAST), _SURE)
