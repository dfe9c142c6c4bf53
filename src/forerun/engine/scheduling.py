"""From a schedule's name to a live one, with a line of why where the choice is ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forerun.composition import DrafterName, ScheduleName
from forerun.control.lane_trial import measured_lanes, yields_of
from forerun.control.overlap import AHEAD, PARALLEL, best_overlapped, compared
from forerun.drafters.lm import LM
from forerun.engine.discovery import record_of
from forerun.engine.drafting import Surroundings
from forerun.protocols import Backend, Drafter, Schedule
from forerun.schedules.ahead import Ahead
from forerun.schedules.parallel import Parallel
from forerun.schedules.sequential import Sequential

_BRANCHES = 8  # rows that a pass computes in little more than the time of one
_MOST_BRANCHES = 24

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A live schedule, and why it is this one."""

    schedule: Schedule
    reason: str


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
    chosen = chosen or _unmeasured(name, has_lane=around.opens.has_lane)
    _log.info("schedule: %s", chosen.reason)
    return chosen


def _measured(
    name: ScheduleName, drafter: LM, target: Backend, record: Mapping[int, float]
) -> Scheduled:
    """By timing a drafter that is a model on a lane of its own."""
    costs, yields = measured_lanes(target, drafter.backend), yields_of(record)
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


def _unmeasured(name: ScheduleName, *, has_lane: bool) -> Scheduled:
    if name.kind == "ahead":
        return Scheduled(Ahead(_BRANCHES), f"ahead:{_BRANCHES}: what little more than one costs")
    if has_lane:
        return Scheduled(Sequential(), "sequential: only an lm drafter's lane is weighed")
    return Scheduled(
        Sequential(),
        "sequential: both models may use all cores; give lanes (--lanes target=0,draft=1) to have"
        " drafting ahead weighed",
    )
