"""From a schedule's name to a live one, with a line of why where the choice is ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forerun.composition import DrafterName, ScheduleName
from forerun.control.lane_trial import measured_lanes, yields_of
from forerun.control.memory import Streams, measured_bandwidths
from forerun.control.overlap import AHEAD, PARALLEL, best_overlapped, compared
from forerun.drafters.lane import DraftLane
from forerun.drafters.lm import LM
from forerun.engine.discovery import record_of
from forerun.engine.drafting import Surroundings
from forerun.protocols import Backend, Drafter, Schedule
from forerun.schedules.ahead import Ahead
from forerun.schedules.parallel import Parallel
from forerun.schedules.sequential import Sequential

_BRANCHES = 8  # rows that a pass computes in little more than the time of one
_MOST_BRANCHES = 24
_USUAL_LENGTH = 4  # of a draft whose length is ours to choose
_SOON_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A live schedule, and why it is this one; `figures` measures for a moment, for people."""

    schedule: Schedule
    reason: str
    figures: Callable[[], str] = str  # none


def scheduled(
    name: ScheduleName, drafter: Drafter, around: Surroundings, drafter_name: DrafterName
) -> Scheduled:
    """The schedule that was asked for; of `auto`, and of `ahead` without a number, the one that is
    expected to be fastest by both models' measured seconds on their lanes.

    Lanes that share a core compute one after the other, so nothing is measured there and nothing
    overlaps by default.
    """
    if drafter_name.name == "none":
        return Scheduled(Sequential(), "sequential: nothing is drafted")
    if name.kind == "parallel":
        return Scheduled(Parallel(), "parallel was asked for")
    if name.num_branches:
        return Scheduled(Ahead(name.num_branches), "a number of branches was asked for")
    if name.kind == "sequential":
        return Scheduled(Sequential(), "sequential was asked for")
    chosen = None
    if around.opens.has_lane and isinstance(drafter, LM):
        own = around.directory / "drafters" / drafter_name.name
        record = record_of(Path(drafter_name.argument or own))
        chosen = _measured(name, drafter, around.target, record)
    chosen = chosen or _unmeasured(name, drafter, around)
    _log.info("schedule: %s", chosen.reason)
    return chosen


def _measured(
    name: ScheduleName, drafter: LM, target: Backend, record: Mapping[int, float]
) -> Scheduled:
    """By timing a drafter that is a model on a lane of its own."""
    lane = DraftLane("forerun-trial")
    try:
        hand_over = partial(_handed_over, lane)
        costs, yields = measured_lanes(target, drafter.backend, hand_over), yields_of(record)
    finally:
        lane.close(_SOON_S)
    if name.kind == "ahead":
        best = best_overlapped(costs, yields, AHEAD, _MOST_BRANCHES)
        why = f"ahead:{best.way.num_branches}, {best.tokens_per_s:.4g} tokens/s expected"
        return Scheduled(Ahead(best.way.num_branches), why)
    found = compared(costs, yields, _MOST_BRANCHES)
    way = found.best.way
    if way.schedule == AHEAD:
        return Scheduled(Ahead(way.num_branches), found.reason)
    simpler: Schedule = Parallel() if way.schedule == PARALLEL else Sequential()
    return Scheduled(simpler, found.reason)


def _handed_over(lane: DraftLane) -> None:
    lane.post(lambda: None).wait(_SOON_S)


def _unmeasured(name: ScheduleName, drafter: Drafter, around: Surroundings) -> Scheduled:
    if name.kind == "ahead":
        return Scheduled(Ahead(_BRANCHES), f"ahead:{_BRANCHES}: what little more than one costs")
    if around.opens.has_lane:
        return Scheduled(Sequential(), "sequential: only an lm drafter's lane is weighed")
    figures = partial(_inequality, drafter, around) if isinstance(drafter, LM) else str
    return Scheduled(
        Sequential(),
        "sequential: both models may use all cores; give lanes (--lanes target=0,draft=1) to have"
        " drafting ahead weighed",
        figures,
    )


def _inequality(drafter: LM, around: Surroundings) -> str:
    """What one memory says of both schedules here; nothing where it cannot be measured."""
    target, small = around.target, drafter.backend
    if not (isinstance(target, Streams) and isinstance(small, Streams)):
        return ""
    length = min(around.shape.max_drafted, _USUAL_LENGTH)
    found = measured_bandwidths(target, small)
    return "" if found is None else found.line(length)
