"""Who may watch rounds: shown what was proposed and judged, told later what it cost.

Nothing depends on a witness; without one a round pays for a comparison with None.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draft, Verdict
from forerun.engine.sequence import Sequence
from forerun.stats import RoundStats

if TYPE_CHECKING:
    from forerun.engine.parts import Parts


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


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """How one row's round came about.

    `known` tokens as it began; `drafter` is who drafted, "" if nobody did; `kept` of the path and
    the bonus were emitted. `p`, `q` `[N]` float32: the chance of each node below its parent by the
    target's law and by the drafter's, NaN where it is not known; None where the rule reads
    choices, or the drafter has no laws. `draft` is without its laws, which are large. `stats` are
    those of the whole pass.
    """

    known: int
    draft: Draft
    drafter: str
    verdict: Verdict
    kept: int
    p: NDArray[np.float32] | None
    q: NDArray[np.float32] | None
    stats: RoundStats


@dataclass(frozen=True, slots=True, eq=False)
class _Glimpse:
    known: int
    draft: Draft
    drafter: str
    verdict: Verdict
    said: Any


class Watch:
    """One round, watched for those of its rows that asked for it, and for the engine's witness."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._witness = parts.witness
        self._glimpses: dict[int, _Glimpse] = {}

    def saw(
        self,
        rows: Rows[Sequence],
        drafts: Rows[Draft],
        said: Any,
        starts: Rows[int],
        verdicts: Rows[Verdict],
    ) -> None:
        """Keep references of watched rows."""
        if self._witness is not None:
            self._witness.saw(rows, drafts, said, starts, verdicts)
        for at, (row, draft, verdict) in enumerate(zip(rows, drafts, verdicts, strict=True)):
            if row.is_watched:
                own = said[starts[at] : starts[at + 1]]
                name = (draft.source or self._source(row)) if draft.num_drafted else ""
                self._glimpses[row.id] = _Glimpse(len(row.tokens), draft, name, verdict, own)

    def settled(self, stats: RoundStats) -> None:
        """Tell the engine's witness."""
        if self._witness is not None:
            self._witness.settled(stats)

    def seen(self, row: Sequence, kept: int, stats: RoundStats) -> Seen | None:
        """What a row asked to see, of which nothing refers to what the next pass overwrites; None
        if it did not ask, or its round failed before its verdict."""
        one = self._glimpses.get(row.id)
        if one is None:
            return None
        p, q = _chances(one.draft, one.said), _drafted_chances(one.draft)
        draft = replace(one.draft, law=None, expanded=None, draws=None, damping=None)
        return Seen(one.known, draft, one.drafter, one.verdict, kept, p, q, stats)

    def _source(self, row: Sequence) -> str:
        parts = row.parts or self._parts
        return parts.drafter.chosen(row.id) or parts.drafter_name


def _chances(draft: Draft, said: Any) -> NDArray[np.float32] | None:
    """The target's probability of each node below its parent."""
    laws = np.asarray(said)
    if laws.ndim != 2:
        return None
    chances = np.full(len(draft.tree), np.nan, np.float32)
    chances[1:] = laws[draft.tree.parents[1:], draft.tree.tokens[1:]]
    return chances


def _drafted_chances(draft: Draft) -> NDArray[np.float32] | None:
    """The drafter's probability of each node below its parent."""
    if draft.chances is not None:
        return draft.chances
    if draft.law is None or draft.expanded is None:
        return None
    chances = np.full(len(draft.tree), np.nan, np.float32)
    for place, node in enumerate(draft.expanded.tolist()):
        children = np.flatnonzero(draft.tree.parents == node)
        chances[children] = draft.law[place][draft.tree.tokens[children]]
    return chances
