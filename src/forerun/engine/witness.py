"""Who may watch rounds: shown what was proposed and judged, told later what it cost.

Nothing depends on a witness; without one a round pays for a comparison with None.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any, Protocol

from forerun.draft import Draft, Verdict
from forerun.engine.sequence import Sequence
from forerun.stats import RoundStats


class Witness(Protocol):
    """Sees every round of every row; must not change what it is shown."""

    def saw(
        self,
        rows: Rows[Sequence],
        drafts: Rows[Draft],
        said: Any,
        starts: Rows[int],
        verdicts: Rows[Verdict],
    ) -> None:
        """A round was judged and nothing is kept yet: `rows` hold the tokens known as it began.

        `said` is what the rule read (choices `[R]` or laws `[R V]`), `starts[b]:starts[b + 1]` of
        it row b's. Inside the measured round: keep references, work in `settled`.
        """

    def settled(self, stats: RoundStats) -> None:
        """That round has ended: its rows hold what was kept, `stats` what it cost. `said` is still
        valid."""
