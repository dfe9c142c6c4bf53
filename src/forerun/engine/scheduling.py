"""From a schedule's name to a live one, with a line of why where the choice is ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from forerun.composition import DrafterName, ScheduleName
from forerun.control.lane_trial import measured_lanes, yields_of
from forerun.control.memory import Reader, Streams, measured_bandwidths
from forerun.control.overlap import (
    AHEAD,
    SEQUENTIAL,
    LaneCosts,
    Way,
    Yields,
    best_overlapped,
    compared,
    deepest_worth,
    reason_of,
)
from forerun.drafters.lane import DraftLane
from forerun.drafters.lm import LM
from forerun.engine.discovery import record_of
from forerun.engine.drafting import Surroundings, drafter_directory
from forerun.engine.shaping import usual_depth
from forerun.protocols import Backend, Drafter, Schedule, Shape
from forerun.schedules.ahead import Ahead
from forerun.schedules.parallel import Parallel
from forerun.schedules.sequential import Sequential

_BRANCHES = 8  # rows that a pass computes in little more than the time of one
_MOST_BRANCHES = 24
_USUAL_LENGTH = 4  # of a draft whose length is ours to choose
_SOON_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Depths:
    """How deep drafts of a chosen schedule go where that is ours to choose, in levels: `usual`, as
    recorded chances of acceptance want it, and `most`, more than which pays on no text."""

    usual: int
    most: int


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A live schedule, and why it is this one; `figures` measures for a moment, for people.
    `depths` are those it was chosen for; None where they are not ours, or nothing overlaps."""

    schedule: Schedule
    reason: str
    figures: Callable[[], str] = str  # none
    depths: Depths | None = None


def scheduled(
    name: ScheduleName,
    drafter: Drafter,
    around: Surroundings,
    drafter_name: DrafterName,
    held: Shape | None,
) -> Scheduled:
    """The schedule that was asked for; of `auto`, and of `ahead` without a number, the one that is
    expected to be fastest by both models' measured seconds on their lanes, for drafts of the shape
    `held`, or of any depth where that is None.

    Lanes that share a core compute one after the other, so nothing is measured there and nothing
    overlaps by default.
    """
    if drafter_name.name == "none":
        return Scheduled(Sequential(), "sequential: nothing is drafted")
    found = _asked(name) or _chosen(name, drafter, around, drafter_name, held)
    if isinstance(drafter, LM) and around.opens.has_lane:
        return replace(found, figures=partial(_inequality, drafter, around))
    return found


def _asked(name: ScheduleName) -> Scheduled | None:
    """What nothing is left to choose of."""
    if name.kind == "parallel":
        return Scheduled(Parallel(), "parallel was asked for")
    if name.num_branches:
        return Scheduled(Ahead(name.num_branches), "a number of branches was asked for")
    if name.kind == "sequential":
        return Scheduled(Sequential(), "sequential was asked for")
    return None


def _chosen(
    name: ScheduleName,
    drafter: Drafter,
    around: Surroundings,
    drafter_name: DrafterName,
    held: Shape | None,
) -> Scheduled:
    """Of `auto`, or of `ahead` without a number."""
    chosen = None
    if around.opens.has_lane and isinstance(drafter, LM):
        record = record_of(drafter_directory(drafter_name, around.directory))
        yields = yields_of(record) if held is None else yields_of(record, usual_depth(held))
        depth = None if held is None else usual_depth(held, yields.accepted)
        chosen = chosen_by(name, _measured(drafter, around.target), yields, depth)
    chosen = chosen or _unmeasured(name, drafter, around)
    _log.info("schedule: %s", chosen.reason)
    return chosen


def chosen_by(
    name: ScheduleName, costs: LaneCosts, yields: Yields, num_levels: int | None
) -> Scheduled:
    """The fastest schedule by these figures, or of `ahead` the fastest number of branches, for
    drafts of `num_levels`, or of any depth where that is None."""
    if name.kind == AHEAD:
        best = best_overlapped(costs, yields, AHEAD, _MOST_BRANCHES, num_levels=num_levels)
        chosen = Scheduled(_live(best.way), reason_of(costs, best))
    else:
        found = compared(costs, yields, _MOST_BRANCHES, num_levels=num_levels)
        best, chosen = found.best, Scheduled(_live(found.best.way), found.reason)
    # A sequential round shows all of its drafting to whoever learns lengths from rounds, and no
    # branches hang on the depth: what is measured there beats what is expected here.
    if num_levels is not None or best.way.schedule == SEQUENTIAL:
        return chosen
    depths = Depths(best.way.num_levels, deepest_worth(costs, yields, best.way))
    told = f"{chosen.reason}; by what a text keeps, 0 to {depths.most} deep"
    return replace(chosen, reason=told, depths=depths)


def _live(way: Way) -> Schedule:
    if way.schedule == AHEAD:
        return Ahead(way.num_branches)
    return Sequential() if way.schedule == SEQUENTIAL else Parallel()


def _measured(drafter: LM, target: Backend) -> LaneCosts:
    """By timing a drafter that is a model on a lane of its own."""
    lane = DraftLane("forerun-trial")
    try:
        return measured_lanes(target, drafter.backend, partial(_handed_over, lane))
    finally:
        lane.close(_SOON_S)


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


@dataclass(frozen=True, slots=True)
class _OnCores:
    """A model read with other cores than it computes on: who has a lane of its own may be asked
    what all cores would do."""

    model: Streams
    cores: tuple[int, ...]

    @property
    def weight_bytes(self) -> int:
        return self.model.weight_bytes

    def reader(self, cores: Sequence[int]) -> Reader:
        return self.model.reader(cores)


def _inequality(drafter: LM, around: Surroundings) -> str:
    """What one memory says of both schedules here; nothing where it cannot be measured."""
    target, small = around.target, drafter.backend
    if not (isinstance(target, Streams) and isinstance(small, Streams)):
        return ""
    length = min(around.shape.max_drafted, _USUAL_LENGTH)
    cores = tuple(sorted({*target.cores, *small.cores}))
    found = measured_bandwidths(_OnCores(target, cores), _OnCores(small, cores))
    return "" if found is None else found.line(length)
