"""A witness that counts what working ahead brings while a text streams; and several as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forerun.draft import Draft, Verdict
    from forerun.engine.sequence import Sequence as Row
    from forerun.engine.witness import Witness
    from forerun.stats import RoundStats


class LaneWatch:
    """Counts the rows that began a round with a prepared draft, of those that could draft."""

    def __init__(self) -> None:
        self.num_hits = self.num_asked = 0

    def saw(
        self,
        rows: Sequence[Row],
        drafts: Sequence[Draft],
        said: Any,
        starts: Sequence[int],
        verdicts: Sequence[Verdict],
    ) -> None:
        """Nothing of a round is looked at before it has ended."""

    def settled(self, stats: RoundStats) -> None:
        """Count a round."""
        lane = stats.lane
        if lane is not None:
            self.num_hits += lane.num_hits
            self.num_asked += (
                lane.num_hits + lane.num_wrong + lane.num_short + lane.num_late + lane.num_cold
            )

    def line(self) -> str:
        """For the end of a closing line; empty where nothing worked ahead."""
        share = self.num_hits / max(1, self.num_asked)
        return f" · hit rate {share:.0%}" if self.num_asked else ""


class _Together:
    """Shows a round to several witnesses in turn."""

    def __init__(self, witnesses: Sequence[Witness]) -> None:
        self._witnesses = tuple(witnesses)

    def saw(
        self,
        rows: Sequence[Row],
        drafts: Sequence[Draft],
        said: Any,
        starts: Sequence[int],
        verdicts: Sequence[Verdict],
    ) -> None:
        """As each of them."""
        for one in self._witnesses:
            one.saw(rows, drafts, said, starts, verdicts)

    def settled(self, stats: RoundStats) -> None:
        """As each of them."""
        for one in self._witnesses:
            one.settled(stats)


def together(witnesses: Sequence[Witness]) -> Witness | None:
    """One witness that stands for all; None where there are none."""
    if len(witnesses) < 2:
        return witnesses[0] if witnesses else None
    return _Together(witnesses)
