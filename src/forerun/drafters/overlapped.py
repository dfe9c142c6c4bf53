"""Drafting while the target verifies: a drafter on a lane of its own, one round ahead.

Knows a drafter, the thread that alone touches it, and a schedule. A round of it, beside the target:

    propose      take what was prepared for the outcome that came (a hit); else make do (a miss)
    anticipate   the lane begins to grow these very drafts further, and the target verifies them
    observe      what was kept waits for the lane's next job

What the lane does is never waited for beyond `Waits.wait_for`, and what it brings is compared with
the text, so that late, stale or broken work costs speed, never a token.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.lane import DraftLane, Ticket
from forerun.drafters.lane_side import LaneSide
from forerun.drafters.plain import plain_draft
from forerun.drafters.told import Told
from forerun.drafters.waits import Spares, Waits
from forerun.errors import DrafterError
from forerun.forecast import Forecast, cut, subtree
from forerun.protocols import Drafter, DraftRow, Outlook, ReadsFeatures, Schedule
from forerun.stats import LaneMeter, Span

_FIRST_REST, _LAST_REST = 8, 512  # rounds without the drafter after it broke
_FRUITLESS = 32  # outcomes in a row of which nothing was prepared: no forecast is so unlucky
_PATIENT_S = 2.0  # how long rules that must draw the same tokens wait for a drafter
_SILENT_S = 1.0  # without a word, after which somebody is told
_CLOSING_S = 5.0

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class _Row:
    """What was kept since the lane last heard of a sequence, and where its draft came from."""

    commits: list[Commit] = field(default_factory=list)
    source: str = "none"
    is_read: bool = True  # False: the lane must read the whole text anew


@dataclass(slots=True, eq=False)
class _Job:
    """A forecast that is being made, of these sequences and at most so deep; waited for once."""

    ticket: Ticket[dict[int, Forecast]]
    sequence_ids: frozenset[int]
    num_levels: int
    deepest: NDArray[np.int32]
    was_late: bool = False


class Overlapped:
    """`drafter` on a thread of its own, preparing what `schedule` says while drafts are verified.

    `span` sums the seconds that a verifier waits here; `meter` counts hits and misses. `vocab`
    bounds token ids. Closing it closes the drafter, unless its thread hangs.
    """

    def __init__(  # noqa: PLR0913  parts, each by name
        self,
        drafter: Drafter,
        schedule: Schedule,
        *,
        waits: Waits,
        spares: Spares,
        meter: LaneMeter,
        span: Span,
        vocab: int,
    ) -> None:
        self._drafter = drafter
        self._schedule = schedule
        self._waits = waits
        self._spares = spares
        self._meter = meter
        self._span = span
        self._lane = DraftLane("forerun-draft")
        self._side = LaneSide(drafter, vocab)
        self._told = Told()
        self._watched: deque[Ticket[Any]] = deque()
        self._rows: dict[int, _Row] = {}
        self._job: _Job | None = None
        self._forecasts: dict[int, Forecast] = {}
        self._last: Ticket[Any] | None = None
        self._rest, self._next_rest = 0, _FIRST_REST
        self._num_fruitless = 0  # outcomes since the last that was prepared
        self._has_lost = False  # what the lane should have read or forgotten
        self._is_silent = False

    @property
    def is_resting(self) -> bool:
        """Whether it failed and is left alone for a while."""
        return self._rest > 0

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Target layers that the drafter reads."""
        return self._drafter.tap_layers if isinstance(self._drafter, ReadsFeatures) else ()

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Have the lane read the prompt; nobody waits for it."""
        self._rows[sequence_id] = _Row()
        self._told.begin(sequence_id)
        if self._spares.drafter is not None:
            self._spares.drafter.admit(sequence_id, prompt)
        self._watch(partial(self._side.admit, sequence_id, list(prompt)))

    def absorb(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """Hand the lane what was tapped of a prompt."""
        own = features.copy()
        self._told.add(sequence_id, own)
        self._watch(partial(self._side.absorb, sequence_id, own))

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """What was prepared for each row, or the best that can be had soon."""
        forecasts = self._collected(rows)
        drafts: dict[int, Draft] = {}
        missed = []
        for row in rows:
            draft = self._prepared(row, forecasts.get(row.sequence_id))
            if draft is None:
                missed.append(row)
            else:
                drafts[row.sequence_id] = draft
        if missed:
            drafts |= self._made_good(missed, forecasts, delays_hits=bool(drafts))
        return [drafts[row.sequence_id] for row in rows]

    def anticipate(self, rows: Sequence[DraftRow], drafts: Sequence[Draft]) -> None:
        """Let the lane grow these drafts further, if it is free."""
        if self._rest:
            self._rest -= 1
            return
        if not self._is_idle:
            return
        self._read_anew(rows)
        pairs = [
            (row, draft)
            for row, draft in zip(rows, drafts, strict=True)
            if row.max_drafted > 0 and row.sequence_id not in self._side.refused
        ]
        if not pairs:
            return
        asked = [row for row, _ in pairs]
        outlook = Outlook(
            exits=[np.array(self._schedule.exits(draft), np.int32) for _, draft in pairs],
            num_branches=self._schedule.num_branches,
            most=np.array([row.max_drafted for row in asked], np.int32),
            depths=np.array([min(row.max_drafted, row.max_depth) for row in asked], np.int32),
            deepest=np.zeros(1, np.int32),
            reach=self._waits.reach(),
            per_exit=self._schedule.per_exit,
        )
        drafted = [draft for _, draft in pairs]
        under_way = partial(self._side.foresee, asked, drafted, outlook, self._take_commits())
        sequence_ids = frozenset(row.sequence_id for row in asked)
        num_levels = int(outlook.depths.max())
        self._job = _Job(self._post(under_way), sequence_ids, num_levels, outlook.deepest)

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Note what was kept for the lane's next job."""
        row = self._rows[sequence_id]
        if commit.features is not None:
            own = commit.features.copy()
            commit = replace(commit, features=own)
            self._told.add(sequence_id, own)
        if row.is_read:
            row.commits.append(commit)
        self._waits.learn_yield(row.source, len(commit.tokens) - 1)
        if self._spares.drafter is not None:
            self._spares.drafter.observe(sequence_id, commit)

    def release(self, sequence_id: int) -> None:
        """Forget a sequence, and have the lane forget it."""
        self._forecasts.pop(sequence_id, None)
        self._told.forget(sequence_id)
        if self._rows.pop(sequence_id, None) is not None:
            self._watch(partial(self._side.release, sequence_id))
        if self._spares.drafter is not None:
            self._spares.drafter.release(sequence_id)

    def close(self) -> None:
        """End the lane's thread, then close the drafter; one that hangs is left as it is."""
        if not self._lane.close(_CLOSING_S):
            _log.warning("the drafter's lane does not end: its memory stays taken")
            return
        self._drafter.close()
        if self._spares.drafter is not None:
            self._spares.drafter.close()

    @property
    def _is_idle(self) -> bool:
        return self._last is None or self._last.is_done

    def _post(self, job: Callable[[], Any]) -> Ticket[Any]:
        self._last = self._lane.post(job)
        return self._last

    def _watch(self, job: Callable[[], Any]) -> None:
        """Have a job done whose result nobody waits for, but whose failure somebody must see."""
        self._watched.append(self._post(job))

    def _look(self) -> None:
        """See what became of watched jobs; say once of a lane that does not come back that nobody
        waits for it."""
        while self._watched and self._watched[0].is_done:
            self._result_of(self._watched.popleft())
        if self._last is None or self._last.is_done:
            self._is_silent = False
        elif not self._is_silent and self._last.elapsed_s() > _SILENT_S:
            self._is_silent = True
            _log.warning("no word of the drafter for %g s: going on without it", _SILENT_S)

    def _result_of(self, ticket: Ticket[_Result]) -> _Result | None:
        """A job's result; None if it failed, for which the drafter rests."""
        try:
            return ticket.result()
        except BaseException as error:  # noqa: BLE001  a drafter may raise anything
            self._fail(error)
            return None

    def _take_commits(self) -> dict[int, list[Commit]]:
        """What was kept since the last job, of every sequence."""
        commits = {at: row.commits for at, row in self._rows.items() if row.commits}
        for at in commits:
            self._rows[at].commits = []
        return commits

    def _collected(self, rows: Sequence[DraftRow]) -> dict[int, Forecast]:
        """What the lane has prepared for rows, once it is worth no more waiting."""
        self._look()
        job = self._job
        if job is not None and not job.ticket.is_done:
            self._await(job, rows)
        if job is not None and job.ticket.is_done:
            self._job = None
            made = self._result_of(job.ticket)
            if made is not None:
                self._note(job, made)
                self._forecasts |= {at: one for at, one in made.items() if at in self._rows}
        found = ((row.sequence_id, self._forecasts.pop(row.sequence_id, None)) for row in rows)
        return {at: forecast for at, forecast in found if forecast is not None}

    def _await(self, job: _Job, rows: Sequence[DraftRow]) -> None:
        """Wait for a forecast of some of these rows, once and as long as that may pay."""
        if job.was_late or job.sequence_ids.isdisjoint(row.sequence_id for row in rows):
            return
        longest_s, job.deepest[0] = _PATIENT_S, 1  # outcomes asked for one by one end with this one
        if not self._spares.is_exacting:
            wait = self._waits.wait_for(job.num_levels, job.ticket.elapsed_s(), len(rows))
            longest_s, job.deepest[0] = wait.longest_s, wait.num_levels
        with self._span, self._meter.waiting:
            job.was_late = not job.ticket.wait(longest_s)
        if job.was_late:
            self._give_up()

    def _note(self, job: _Job, forecasts: dict[int, Forecast]) -> None:
        num_passes = max((one.grown.num_passes for one in forecasts.values()), default=0)
        busy_s = job.ticket.ended_s - job.ticket.began_s
        self._waits.learn_forecast(num_passes, busy_s)
        self._meter.add_job(job.ticket.began_s, job.ticket.ended_s, num_passes)
        for one in forecasts.values():
            self._meter.num_prepared += len(one.grown.tree) - one.num_verified
            parents = one.grown.tree.parents[one.num_verified :]
            self._meter.num_branches += int(np.count_nonzero(parents < one.num_verified))

    def _prepared(self, row: DraftRow, forecast: Forecast | None) -> Draft | None:
        """The draft below the outcome that came, None where there is none."""
        own = self._rows[row.sequence_id]
        if row.max_drafted < 1:
            own.source = "none"
            return plain_draft(row.tokens[-1])
        if forecast is None:
            is_late = self._job is not None  # it is still being made
            self._meter.num_late += is_late
            self._meter.num_cold += not is_late
            return None
        kept = row.tokens[forecast.version :]
        node = forecast.reached(kept) if kept else None
        if node is None:
            self._meter.num_wrong += 1
            self._learn_outcome(is_hit=False)
            return None
        self._learn_outcome(is_hit=True)
        draft = cut(subtree(forecast.grown, node, row.tokens[-1]), row.max_drafted, row.max_depth)
        # What has no law was found, not drawn: the drafter may find something else a round later.
        is_other = self._spares.is_exacting and draft.law is None
        if len(draft.tree) < 2 or is_other:
            self._meter.num_short += 1
            return None
        self._next_rest = _FIRST_REST
        self._meter.num_hits += 1
        self._meter.num_taken += len(draft.tree)
        own.source = "hit"
        return draft

    def _learn_outcome(self, *, is_hit: bool) -> None:
        """Rest a drafter whose forecasts come to nothing; not where its draws are needed, for what
        a text comes to must not hang on outcomes of others."""
        self._waits.learn_outcome(is_hit=is_hit)
        self._num_fruitless = 0 if is_hit else self._num_fruitless + 1
        if self._num_fruitless >= _FRUITLESS and not self._spares.is_exacting:
            self._num_fruitless = 0
            self._fail(DrafterError(f"none of the last {_FRUITLESS} outcomes was in its forecasts"))

    def _made_good(
        self, missed: list[DraftRow], forecasts: dict[int, Forecast], *, delays_hits: bool
    ) -> dict[int, Draft]:
        """Drafts for rows that nothing fitting was prepared for. Rows that hit wait for nobody's
        new draft, but where it must be drawn."""
        spare = {row.sequence_id: self._spare(row, forecasts) for row in missed}
        sources = [source for source, _ in spare.values()]
        best = min(sources, key=("near", "lookup", "none").index)
        is_exacting = self._spares.is_exacting  # its draws are needed, whatever the lane does now
        can_ask = not self._rest and (is_exacting or (self._is_idle and not delays_hits))
        if can_ask and (is_exacting or self._waits.prefers_redraft(best, len(missed))):
            drafts = self._redrafted(missed)
            if drafts is not None:
                return drafts
        for row in missed:
            self._rows[row.sequence_id].source = spare[row.sequence_id][0]
        return {at: draft for at, (_, draft) in spare.items()}

    def _spare(self, row: DraftRow, forecasts: dict[int, Forecast]) -> tuple[str, Draft]:
        """Without the lane: the nearest branch, then what the text itself suggests, then none."""
        plain = plain_draft(row.tokens[-1])
        if self._spares.drafter is None:
            return "none", plain
        forecast = forecasts.get(row.sequence_id)
        if forecast is not None and (kept := row.tokens[forecast.version :]):
            node = forecast.nearest(kept)
            if node is not None:
                near = subtree(forecast.grown, node, row.tokens[-1])
                near = cut(near, row.max_drafted, row.max_depth)
                return "near", Draft(near.tree, Draw.POINT)
        draft = self._spares.drafter.propose([row])[0]
        return ("lookup", draft) if len(draft.tree) > 1 else ("none", plain)

    def _redrafted(self, missed: list[DraftRow]) -> dict[int, Draft] | None:
        """Have the lane draft while nothing is verified; None if that fails or takes too long."""
        longest_s = _PATIENT_S if self._spares.is_exacting else self._waits.longest_redraft_s()
        self._read_anew(missed)
        ticket = self._post(partial(self._side.propose, missed, self._take_commits()))
        with self._span, self._meter.redrafting:
            is_done = ticket.wait(longest_s)
        if not is_done:
            self._give_up()
            return None
        self._waits.learn_redraft(ticket.ended_s - ticket.posted_s)
        drafts = self._result_of(ticket)
        if drafts is None:
            return None
        for row in missed:
            self._rows[row.sequence_id].source = "redraft"
        self._meter.num_redrafted += len(missed)
        return {row.sequence_id: draft for row, draft in zip(missed, drafts, strict=True)}

    def _fail(self, error: BaseException) -> None:
        """Go on without the drafter for a while; after that it reads everything anew."""
        for row in self._rows.values():
            row.commits, row.is_read = [], False
        self._job, self._forecasts, self._has_lost = None, {}, True
        if self._rest:
            return
        self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, _LAST_REST)
        _log.warning(
            "the drafter failed and rests for %d rounds (%s: %s)",
            self._rest, type(error).__name__, error,
        )  # fmt: skip

    def _give_up(self) -> None:
        """Nobody waits again where waiting is long."""
        if self._spares.is_exacting:
            self._fail(DrafterError(f"it took longer than {_PATIENT_S} s"))

    def _read_anew(self, rows: Sequence[DraftRow]) -> None:
        """Have the lane read texts that it has lost, and forget what it should have forgotten."""
        texts = {}
        for row in rows:
            own = self._rows[row.sequence_id]
            if not own.is_read:
                own.commits, own.is_read = [], True
                texts[row.sequence_id] = (list(row.tokens), self._told.of(row.sequence_id))
        if texts or self._has_lost:
            self._has_lost = False
            self._watch(partial(self._side.restart, texts, frozenset(self._rows)))
