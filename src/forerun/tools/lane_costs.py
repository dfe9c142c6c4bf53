"""What working ahead costs, counted and not timed: what a lane read, used or not.

Knows counts of rounds. Must not know clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forerun.models.spec import ModelSpec
from forerun.stats import LaneStats
from forerun.tools.costs import Costs, RoundCount
from forerun.tools.feature_costs import AnySpec, costs_of, drafting_bytes, node_flops


@dataclass(frozen=True, slots=True)
class LaneCount:
    """One round of one row: its own counts, what its lane had done by its beginning, and the size
    of the draft that was verified meanwhile."""

    round: RoundCount
    lane: LaneStats
    num_verified: int


def ahead_costs(counts: Sequence[LaneCount], target: ModelSpec, drafter: AnySpec | None) -> Costs:
    """What these rounds of one request cost; `drafter` is None where drafting reads no weights.

    A forecast reads the pending token, the draft that was verified meanwhile, and every prepared
    node, used or not: an upper bound, as the last ones are not read and kept ones need not be read
    again. A draft made while nothing was verified counts as one of the sequential schedule.
    """
    costs = costs_of([one.round for one in counts], target, None)
    if drafter is None:
        return costs
    flops = num_bytes = 0.0
    for one in counts:
        context, lane = one.round.context, one.lane
        num_passes = lane.num_passes
        num_read = 1 + one.num_verified + lane.num_prepared if num_passes else 0
        if lane.num_redrafted:
            num_read += 1 + one.round.num_drafted
            num_passes += one.round.num_passes
        flops += num_read * node_flops(drafter, context)
        num_bytes += num_passes * drafting_bytes(drafter, context)
    return replace(costs, draft_flops=flops, draft_bytes=num_bytes)
