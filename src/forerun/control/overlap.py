"""What drafting while verifying yields, in formulas: which schedule, how deep, how many branches.

Knows seconds and probabilities; nothing of lanes, models or drafts. All figures are expected ones,
in the long run. docs/ahead.md derives them and says where published ones differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forerun.control.outcomes import (
    Ints,
    PowerLaw,
    exits_of,
    hit_rate,
    nearest_rate,
    spread,
    stationary,
    tokens_of,
)
from forerun.errors import OptionError
from forerun.schedules.parallel import Parallel

_GAIN = 1.03  # overlapping must win by so much: a tie is decided for the simpler schedule
_HOPEFUL = 0.97  # of drafted tokens that a text keeps which repeats itself
SEQUENTIAL, PARALLEL, AHEAD = "sequential", "parallel", "ahead"


@dataclass(frozen=True, slots=True)
class PublishedSequential:
    """Plain speculation: expected tokens a round, and drafting in units of a verification."""

    tokens: float
    draft: float

    @property
    def speed_up(self) -> float:
        """Over plain decoding, if a verification costs what one plain step does."""
        return self.tokens / (1.0 + self.draft)


@dataclass(frozen=True, slots=True)
class PublishedAhead:
    """Theorem 7 of Kumar, Dao, May 2026 (SSD, arXiv:2603.03251), for a batch as in its Cor. 16.

    `hit`: share of rounds that begin with a prepared draft. `on_hit`, `on_miss`: expected tokens of
    such rounds. `draft`, `backup`: seconds to draft ahead and after a miss, in units of a
    verification. `num_rows` wait for one another: a miss of any delays all.
    """

    hit: float
    on_hit: float
    on_miss: float
    draft: float
    backup: float
    num_rows: int = 1

    @property
    def speed_up(self) -> float:
        """Over plain decoding of the same batch, if a verification costs what a plain step does."""
        tokens = self.hit * self.on_hit + (1.0 - self.hit) * self.on_miss
        whole = self.hit**self.num_rows
        return tokens / (whole * max(1.0, self.draft) + (1.0 - whole) * (1.0 + self.backup))


def published_gain(ahead: PublishedAhead, sequential: PublishedSequential) -> float:
    """The speed-up of one over that of the other."""
    return ahead.speed_up / sequential.speed_up


@dataclass(frozen=True, slots=True)
class OneMemory:
    """Two models that are both bound by the one memory they share, every outcome prepared.

    `draft`: seconds of drafting on one core, in units of a one-core verification (s). `scaling`:
    how much faster all cores read than one (1 to their number); `draft_scaling`: likewise of the
    drafter, whose weights may rest in a cache; None is the same. `busy`: how much slower a core
    reads while the other does; None is what fair sharing between two cores gives.
    """

    draft: float
    scaling: float
    busy: float | None = None
    draft_scaling: float | None = None

    @property
    def sequential(self) -> float:
        """A round on all cores, one model after the other."""
        if self.draft_scaling is None:
            return (1.0 + self.draft) / self.scaling
        return 1.0 / self.scaling + self.draft / self.draft_scaling

    @property
    def ahead(self) -> float:
        """A round with each model on a core of its own: side by side, then the longer one alone."""
        busy = max(1.0, 2.0 / self.scaling) if self.busy is None else self.busy
        short, long = sorted((1.0, self.draft))
        return long + short * (busy - 1.0)


@dataclass(frozen=True, slots=True)
class LaneCosts:
    """Measured seconds of two lanes, and of all cores together.

    `verify`: `(num_nodes, seconds)` ascending, of a verification on its lane, the other at rest.
    `busy`: how many times longer it takes while the other lane drafts. `step_s`: one pass of the
    drafter on its lane with one branch, the target at work; `branch_s`: each further branch in that
    pass. `num_reads`: passes before the first level below a guess. `handover_s`: what a round of
    two lanes costs more than one without; `engine_s`: what any round costs beside the models.
    `wide_verify`, `wide_step_s`: the same two on all cores; empty and None are as on the lanes.
    """

    verify: tuple[tuple[int, float], ...]
    step_s: float
    busy: float = 1.0
    branch_s: float = 0.0
    num_reads: int = 1
    handover_s: float = 0.0
    engine_s: float = 0.0
    wide_verify: tuple[tuple[int, float], ...] = ()
    wide_step_s: float | None = None

    def __post_init__(self) -> None:
        if not self.verify:
            raise OptionError("verify is empty: give at least one (num_nodes, seconds)")
        if self.busy < 1.0:
            raise OptionError(f"busy is {self.busy}, at least 1: divide by the seconds alone")

    def verify_s(self, num_nodes: float) -> float:
        """A verification of so many nodes, on its lane, undisturbed."""
        return _along(self.verify, num_nodes)

    def levels_s(self, num_levels: int, num_branches: int) -> float:
        """Drafting ahead so many levels below so many guesses."""
        return self.num_reads * self.step_s + num_levels * (
            self.step_s + max(0, num_branches - 1) * self.branch_s
        )

    def overlapped_s(self, num_nodes: float, draft_s: float) -> float:
        """Until both a verification and the drafting beside it are done."""
        verify_s = self.verify_s(num_nodes)
        if draft_s >= verify_s * self.busy:
            return draft_s
        return draft_s + verify_s - draft_s / self.busy

    def sequential_s(self, num_levels: int, num_nodes: int, num_rows: int = 1) -> float:
        """A sequential round on all cores; further rows are further branches of each pass."""
        step_s = self.step_s if self.wide_step_s is None else self.wide_step_s
        verify_s = _along(self.wide_verify or self.verify, num_nodes)
        return self.engine_s + num_levels * (step_s + (num_rows - 1) * self.branch_s) + verify_s


@dataclass(frozen=True, slots=True)
class Yields:
    """What drafts yield.

    `accepted`: chance that the 1st, 2nd, … drafted token is kept, all before it being so; as many
    as may be drafted. `bonus`: how often F guesses at an exit have its bonus. `nearest`: as
    `accepted`, of the nearest branch after a miss at an exit that has one; empty is none.
    """

    accepted: tuple[float, ...]
    bonus: PowerLaw
    nearest: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """A schedule, how deep it drafts, how many branches a row has, how many rows there are, and
    whether a miss is drafted anew while the target waits."""

    schedule: str
    num_levels: int
    num_branches: int = 0
    num_rows: int = 1
    redrafts: bool = False


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a way is expected to give. `tokens_per_round` is of one row."""

    way: Way
    hit: float
    round_s: float
    tokens_per_round: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all rows a second."""
        return self.way.num_rows * self.tokens_per_round / self.round_s


@dataclass(frozen=True, slots=True)
class Comparison:
    """Which schedule is expected to be fastest, what each would give, and why in a line."""

    best: Expectation
    each: tuple[Expectation, ...]
    reason: str


def compared(
    costs: LaneCosts,
    yields: Yields,
    most_branches: int = 24,
    num_rows: int = 1,
    num_levels: int | None = None,
) -> Comparison:
    """The schedules at their best; overlapping is chosen if it wins by a margin.

    At most `most_branches` guesses of a row are considered, and at most `len(yields.accepted)`
    levels, or the one depth `num_levels` where that is not ours to choose.
    """
    alone = best_sequential(costs, yields, num_rows, num_levels)
    parallel = best_overlapped(costs, yields, PARALLEL, most_branches, num_rows, num_levels)
    ahead = best_overlapped(costs, yields, AHEAD, most_branches, num_rows, num_levels)
    beside = max((parallel, ahead), key=_rate)
    best = beside if beside.tokens_per_s > _GAIN * alone.tokens_per_s else alone
    return Comparison(best, (alone, parallel, ahead), _reason(costs, best, alone, beside))


def best_sequential(
    costs: LaneCosts, yields: Yields, num_rows: int = 1, num_levels: int | None = None
) -> Expectation:
    """The best length of a sequential draft, 0 being plain decoding; or the one that is given."""
    lengths = range(len(yields.accepted) + 1) if num_levels is None else (num_levels,)
    ways = (Way(SEQUENTIAL, levels, num_rows=num_rows) for levels in lengths)
    return max((sequential(costs, yields, way) for way in ways), key=_rate)


def best_overlapped(
    costs: LaneCosts,
    yields: Yields,
    schedule: str,
    most_branches: int,
    num_rows: int = 1,
    num_levels: int | None = None,
) -> Expectation:
    """The best depth, or the one that is given, the best number of branches for it, or the one that
    `parallel` has, and whether a miss is worth drafting anew for."""
    numbers = range(1, most_branches + 1)
    if schedule == PARALLEL:
        numbers = range(Parallel.num_branches, Parallel.num_branches + 1)
    depths = range(1, len(yields.accepted) + 1) if num_levels is None else (num_levels,)
    ways = (
        Way(schedule, levels, branches, num_rows, redrafts)
        for levels in depths
        for branches in numbers
        for redrafts in (False, True)
    )
    return max((overlapped(costs, yields, way) for way in ways), key=_rate)


def deepest_worth(costs: LaneCosts, yields: Yields, way: Way) -> int:
    """How deep that way, with its branches, pays on a text that keeps nearly all that is drafted:
    no text makes it worth while to go deeper. At most `len(yields.accepted)` levels."""
    hopeful = replace(yields, accepted=(_HOPEFUL,) * len(yields.accepted))
    depths = range(way.num_levels, len(yields.accepted) + 1)
    ways = (replace(way, num_levels=levels) for levels in depths)
    return max((overlapped(costs, hopeful, one) for one in ways), key=_rate).way.num_levels


def sequential(costs: LaneCosts, yields: Yields, way: Way) -> Expectation:
    """What drafts of that length give, one model after the other."""
    levels, rows = way.num_levels, way.num_rows
    round_s = costs.sequential_s(levels, rows * (levels + 1), rows)
    return Expectation(way, 0.0, round_s, tokens_of(yields.accepted[:levels]))


def overlapped(costs: LaneCosts, yields: Yields, way: Way) -> Expectation:
    """What that depth, those branches and that answer to a miss give.

    A hit waits for the drafting if that is longer than the verification. With `redrafts` all rows
    wait for one another, without it none does.
    """
    levels, rows = way.num_levels, way.num_rows
    drafts = (yields.accepted[:levels], yields.nearest[:levels], ())
    follow = np.array([_followed(yields, drafted, way) for drafted in drafts])
    shares = np.array([1.0, 0.0, 0.0]) if way.redrafts else stationary(follow)
    hit = float(shares @ follow[:, 0])
    num_nodes = rows * (1.0 + float(shares @ [len(drafted) for drafted in drafts]))
    draft_s = costs.levels_s(levels, rows * way.num_branches)
    round_s = costs.overlapped_s(num_nodes, draft_s) + costs.engine_s + costs.handover_s
    if way.redrafts:
        any_miss = 1.0 - hit**rows
        further = rows * (1.0 - hit) - any_miss  # expected missing rows beyond the first
        round_s += levels * (any_miss * costs.step_s + further * costs.branch_s)
    tokens = float(shares @ [tokens_of(drafted) for drafted in drafts])
    return Expectation(way, hit, round_s, tokens)


def levels_worth_waiting(
    reach: Sequence[float], level_s: float, rate: float, first_s: float = 0.0
) -> int:
    """How many more levels to wait for once the verification is done.

    `reach`: chance that the 1st, 2nd, … further level is kept (summed over the rows that wait).
    `level_s`: seconds until the next level, what a longer verification costs included; `first_s`:
    once, before the first. `rate`: tokens a second, of all rows, that this time gives otherwise.
    A level pays if its chance exceeds the tokens that its seconds would have given.
    """
    if not len(reach):
        return 0
    gains = np.cumsum(np.asarray(reach, np.float64) - rate * level_s) - rate * first_s
    best = int(np.argmax(gains))
    return best + 1 if gains[best] > 0 else 0


def _rate(expectation: Expectation) -> float:
    return expectation.tokens_per_s


def _followed(yields: Yields, drafted: Sequence[float], way: Way) -> tuple[float, float, float]:
    """Chances that such a draft is followed by a prepared one, a nearest branch, and nothing."""
    exits = exits_of(drafted)
    branches = spread(exits, way.num_branches, yields.bonus.exponent)
    if way.schedule == PARALLEL:
        branches = _at_two_exits(drafted)
    hit = hit_rate(exits, branches, yields.bonus)
    nearest = nearest_rate(exits, branches, yields.bonus) if yields.nearest else 0.0
    return hit, nearest, 1.0 - hit - nearest


def _at_two_exits(drafted: Sequence[float]) -> Ints:
    """A guess `[K+1]` after all that was drafted, and one where its weakest token is refused."""
    branches = np.zeros(len(drafted) + 1, np.int64)
    branches[-1] = Parallel.per_exit
    if len(drafted):
        branches[int(np.argmin(drafted))] = Parallel.per_exit
    return branches


def reason_of(costs: LaneCosts, best: Expectation) -> str:
    """What an overlapped way is expected to give, and the seconds that say so, in a line."""
    way, levels = best.way, best.way.num_levels
    verify_s = costs.verify_s(way.num_rows * (levels + 1))
    draft_s = costs.levels_s(levels, way.num_rows * way.num_branches)
    size = f":{way.num_branches}" if way.schedule == AHEAD else ""
    return (
        f"{way.schedule}{size}, {levels} deep: {best.tokens_per_s:.4g} tokens/s expected,"
        f" {best.hit:.0%} of outcomes prepared, a round {_ms(best.round_s)}: verification"
        f" {_ms(verify_s)} (beside drafting {costs.busy:.2f} times that), drafting"
        f" {_ms(draft_s)} ({_ms(costs.step_s)} a level, {_ms(costs.branch_s)} more a branch)"
    )


def _reason(costs: LaneCosts, best: Expectation, alone: Expectation, beside: Expectation) -> str:
    if best is alone:
        way = alone.way
        verify_s = costs.verify_s(way.num_rows * (way.num_levels + 1))
        return (
            f"sequential, {way.num_levels} deep: {alone.tokens_per_s:.4g} tokens/s expected,"
            f" a round {_ms(alone.round_s)}, of which verification {_ms(verify_s)};"
            f" {reason_of(costs, beside)}"
        )
    return (
        f"{reason_of(costs, best)}; sequential, {alone.way.num_levels} deep:"
        f" {alone.tokens_per_s:.4g} tokens/s, a round {_ms(alone.round_s)}"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _along(curve: Sequence[tuple[int, float]], at: float) -> float:
    """Between measured points a line, beyond the last the line through the last two."""
    places, values = zip(*curve, strict=True)
    if at <= places[-1] or len(curve) == 1:
        return float(np.interp(at, places, values))
    slope = (values[-1] - values[-2]) / (places[-1] - places[-2])
    return float(values[-1] + max(0.0, slope) * (at - places[-1]))
