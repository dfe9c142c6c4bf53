"""What a node must yield where rows of several ways share passes: nothing is timed, all is learned.

A way that some requests asked for is built while others are served, so no pass can be timed for it
alone. What its nodes cost is told from rounds of everybody: how long passes of so many nodes took,
and how many tokens a second all rows got, for a longer pass delays them all.
"""

from __future__ import annotations

import numpy as np

from forerun.control.curve import Curve
from forerun.control.prices import PASS_YIELD
from forerun.stats import RoundStats

_MEMORY = 0.95  # of past rounds that a round keeps: about the last twenty
_LEAST_RUN, _RUN = 4, 0.25  # nodes, or a part of them, over which the slope of costs is taken


class SharedPrices:
    """Prices of the nodes of one way, beside what other rows of the pass have drafted.

    Nothing costs anything before passes of two sizes were seen.
    """

    is_paused = False  # what does not pay is not drafted: its price is too high

    def __init__(self) -> None:
        self._verify = Curve()
        self._pass_s = 0.0
        self._is_stepwise = False  # whether a level takes a pass; of a block drafter none does
        self._tokens = self._seconds = 0.0
        self._num_others = 0  # nodes of other rows
        self._fewest = np.inf  # nodes of a pass: what a smaller one takes is not known

    def of_nodes(self, num_rows: int, most: int) -> tuple[float, ...]:
        """Price of the first, second, … node of each of so many rows."""
        if not (self._verify.has_slope and self._seconds):
            return (0.0,) * max(1, most)
        nodes = self._num_others + num_rows * np.arange(1.0, 1.0 + max(1, most))
        nodes = np.maximum(nodes, self._fewest)
        runs = np.maximum(_LEAST_RUN, _RUN * nodes)
        slopes = (self._verify.at_all(nodes + runs) - self._verify.at_all(nodes)) / runs
        prices: list[float] = (self._tokens / self._seconds * slopes).tolist()
        return tuple(prices)

    def of_pass(self, num_rows: int) -> float:
        """What the scores of the nodes that a pass of its drafter expands must sum to."""
        del num_rows  # the seconds are those of its rows together
        if not (self._is_stepwise and self._seconds):
            return 0.0
        return self._tokens / self._seconds * self._pass_s / PASS_YIELD

    def learn(self, stats: RoundStats, num_rows: int, num_drafted: int) -> None:
        """Take in a round of everybody, whose drafting seconds and passes are those of the
        `num_rows` of this way, which drafted so many tokens."""
        num_nodes = stats.num_rows + stats.num_drafted
        self._num_others = num_nodes - num_rows - num_drafted
        self._fewest = min(self._fewest, num_nodes)
        self._verify.take(num_nodes, stats.verify_s)
        self._tokens = _MEMORY * self._tokens + stats.num_rows + stats.num_accepted
        self._seconds = _MEMORY * self._seconds + stats.round_s
        self._is_stepwise = self._is_stepwise or stats.num_draft_passes > 1
        if stats.num_draft_passes:
            seconds = stats.draft_s / stats.num_draft_passes
            known = self._pass_s or seconds
            self._pass_s = _MEMORY * known + (1 - _MEMORY) * seconds
