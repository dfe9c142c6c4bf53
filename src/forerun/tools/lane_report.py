"""What working ahead brought, and what it cost: the rounds of requests as one value.

Pure arithmetic on what rounds counted; must not time or run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import dropwhile
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.control.overlap import PublishedAhead
from forerun.stats import LaneStats, RoundStats

CAUSES = ("hit", "wrong", "short", "late", "cold")

Seconds = tuple[float, float]  # from, to
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LaneRun:
    """One request: its rounds as measured, and how many tokens each of them emitted."""

    rounds: tuple[RoundStats, ...]
    num_tokens: tuple[int, ...]

    def steady(self) -> LaneRun:
        """From the first round on that the lane had prepared anything for."""
        pairs = list(zip(self.rounds, self.num_tokens, strict=True))
        kept = list(dropwhile(lambda pair: not _was_served(pair[0]), pairs))
        return LaneRun(tuple(one for one, _ in kept), tuple(num for _, num in kept))


@dataclass(frozen=True, slots=True)
class Causes:
    """How rows that could draft began their rounds.

    `num_hit` with a draft that was prepared for the outcome that came. Of the others `num_wrong`
    met an outcome that was not prepared, `num_short` one with nothing below it yet; for `num_late`
    the lane was still at work, for `num_cold` there was nothing at all (a first round, a drafter
    that rests).
    """

    num_hit: int = 0
    num_wrong: int = 0
    num_short: int = 0
    num_late: int = 0
    num_cold: int = 0

    @property
    def num_asked(self) -> int:
        """All of them."""
        return sum(getattr(self, f"num_{cause}") for cause in CAUSES)

    @property
    def hit_rate(self) -> float:
        """Share of hits; 0 where no row could draft."""
        return self.num_hit / max(1, self.num_asked)

    def shares(self) -> dict[str, float]:
        """Each cause as a share of all, by name."""
        num = max(1, self.num_asked)
        return {cause: getattr(self, f"num_{cause}") / num for cause in CAUSES}


@dataclass(frozen=True, slots=True)
class LaneReport:
    """What working ahead brought some requests.

    `steady`: the causes without each request's first rounds, before anything could be prepared.
    Seconds: `busy_s` of forecasts on the lane, of which `hidden_s` passed while the target
    verified; `redraft_s` of drafting while it did not, `wait_s` of waiting for forecasts;
    `verify_s` and `round_s` are the rounds' own. A forecast counts where it is collected: the one
    beside a request's last round belongs to nobody.
    """

    num_rounds: int
    causes: Causes
    steady: Causes
    num_redrafted: int
    num_branches: int
    num_prepared: int
    num_taken: int
    num_passes: int
    busy_s: float
    hidden_s: float
    redraft_s: float
    wait_s: float
    verify_s: float
    round_s: float

    @property
    def hidden_share(self) -> float:
        """Share of all drafting that passed while the target verified."""
        return _share(self.hidden_s, self.busy_s + self.redraft_s)

    @property
    def branches_wasted(self) -> float:
        """Share of prepared outcomes that did not come."""
        return _share(self.num_branches - self.causes.num_hit, self.num_branches)

    @property
    def nodes_wasted(self) -> float:
        """Share of prepared nodes that never were part of a draft."""
        return _share(self.num_prepared - self.num_taken, self.num_prepared)

    def as_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        figures = asdict(self)
        figures["causes"], figures["steady"] = self.causes.shares(), self.steady.shares()
        counts = asdict(self.causes)
        return {
            "hit_rate": self.causes.hit_rate,
            "steady_hit_rate": self.steady.hit_rate,
            "hidden_share": self.hidden_share,
            "branches_wasted": self.branches_wasted,
            "nodes_wasted": self.nodes_wasted,
            **counts,
            **figures,
        }


def lane_report(requests: Sequence[LaneRun]) -> LaneReport | None:
    """The figures of requests that one engine answered, in their order; None if nothing of them
    worked ahead."""
    rounds = [one for request in requests for one in request.rounds]
    lanes = [one.lane for one in rounds if one.lane is not None]
    if not lanes:
        return None
    steady = [one for request in requests for one in request.steady().rounds]
    sums = {item.name: sum(getattr(one, item.name) for one in lanes) for item in fields(LaneStats)}
    return LaneReport(
        num_rounds=len(rounds),
        causes=causes_of(lanes),
        steady=causes_of(one.lane for one in steady if one.lane is not None),
        hidden_s=hidden_s(rounds),
        verify_s=sum(one.verify_s for one in rounds),
        round_s=sum(one.round_s for one in rounds),
        **{name: sums[name] for name in _SUMMED},
    )


_SUMMED = (
    "num_redrafted", "num_branches", "num_prepared", "num_taken", "num_passes", "busy_s",
    "redraft_s", "wait_s",
)  # fmt: skip


def causes_of(lanes: Iterable[LaneStats]) -> Causes:
    """How the rows of these rounds began them."""
    sums = dict.fromkeys(CAUSES, 0)
    for one in lanes:
        sums["hit"] += one.num_hits
        sums["wrong"] += one.num_wrong
        sums["short"] += one.num_short
        sums["late"] += one.num_late
        sums["cold"] += one.num_cold
    return Causes(**{f"num_{cause}": num for cause, num in sums.items()})


def cause_of(lane: LaneStats) -> str:
    """How a round of one row began; `none` where it could not draft."""
    causes = causes_of([lane]).shares()
    return next((cause for cause in CAUSES if causes[cause] > 0), "none")


def verifying(one: RoundStats) -> Seconds:
    """When a round's drafts were verified: what lies between drafting and it is left out."""
    began_s = one.began_s + one.draft_s
    return began_s, began_s + one.verify_s


def forecasting(lane: LaneStats) -> Seconds:
    """When the lane made the forecast that this round collected."""
    return lane.began_s, lane.began_s + lane.busy_s


def hidden_s(rounds: Sequence[RoundStats]) -> float:
    """Seconds of forecasts that passed while one of these rounds, in their order, was verified."""
    jobs = [one.lane for one in rounds if one.lane is not None and one.lane.busy_s > 0]
    if not jobs:
        return 0.0
    spans = np.array([verifying(one) for one in rounds])
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    verified = np.stack([np.concatenate(([0.0], ends[:-1])), ends], axis=1)
    begins, closes = np.array([forecasting(job) for job in jobs]).T
    inside: Floats = np.interp(closes, spans.ravel(), verified.ravel())
    inside = inside - np.interp(begins, spans.ravel(), verified.ravel())
    return float(inside.sum())


def published(requests: Sequence[LaneRun]) -> PublishedAhead | None:
    """What the published formula needs, as measured in steady rounds of one row; None without any.

    Drafting is in units of the verification beside it. Rounds without a hit drafted in no time
    where a spare was at hand.
    """
    steady = [one.steady() for one in requests]
    pairs = [
        (one, one.lane, num)
        for run in steady
        for one, num in zip(run.rounds, run.num_tokens, strict=True)
        if one.lane is not None
    ]
    if not pairs:
        return None
    hits = [num for _, lane, num in pairs if lane.num_hits]
    misses = [num for _, lane, num in pairs if not lane.num_hits]
    verify_s = fmean(one.verify_s for one, _, _ in pairs) or 1.0
    busy = [lane.busy_s for _, lane, _ in pairs if lane.busy_s > 0]
    redraft = [lane.redraft_s for _, lane, _ in pairs if not lane.num_hits]
    return PublishedAhead(
        hit=len(hits) / len(pairs),
        on_hit=fmean(hits) if hits else 1.0,
        on_miss=fmean(misses) if misses else 1.0,
        draft=(fmean(busy) if busy else 0.0) / verify_s,
        backup=(fmean(redraft) if redraft else 0.0) / verify_s,
    )


def _was_served(one: RoundStats) -> bool:
    lane = one.lane
    return lane is not None and lane.num_hits + lane.num_wrong + lane.num_short > 0


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
