"""From turns of engines on lanes to figures: who is how fast, per core and per operation, and does
working ahead pay?

Pure arithmetic on what was timed and counted; must not run anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from forerun.control.overlap import PublishedSequential, published_gain
from forerun.models.spec import ModelSpec
from forerun.options import Speculation
from forerun.tools.costs import Costs, RoundCount
from forerun.tools.feature_costs import AnySpec, costs_of
from forerun.tools.lane_costs import LaneCount, ahead_costs
from forerun.tools.lane_report import LaneReport, LaneRun, lane_report, published
from forerun.tools.pairs import Pair, Run, ratio_without_loops, speedup, tokens_per_s

PLAIN, SEQUENTIAL, SEQUENTIAL_AUTO, SEQUENTIAL_LANES, AHEAD = (
    "plain", "sequential", "sequential, auto", "sequential, lanes", "ahead",
)  # fmt: skip

Lanes = Mapping[str, tuple[int, ...]]  # core numbers by lane


@dataclass(frozen=True, slots=True)
class Entrant:
    """A way to decode, and the cores of its two models."""

    name: str
    speculation: Speculation
    lanes: Lanes

    @property
    def num_cores(self) -> int:
        """Cores that are taken while it decodes, whether each is always busy or not."""
        is_plain = self.speculation.drafter == "none"
        draft = () if is_plain else self.lanes["draft"]
        return len({*self.lanes["target"], *draft})


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion: as pairs compare it, every round as measured, and what rounds counted."""

    run: Run
    lanes: LaneRun
    counts: tuple[RoundCount, ...]


@dataclass(frozen=True, slots=True)
class Models:
    """What a pass reads. `is_known`: whether the drafter is told by its name, so that its passes
    can be counted; a drafter that is None reads no weights."""

    target: ModelSpec
    drafter: AnySpec | None
    is_known: bool = True


Turns = Sequence[Sequence[Turn]]  # by prompt, then by repetition


def entrants_of(asked: Speculation, lanes: Lanes) -> list[Entrant]:
    """Who is compared with `asked`, itself last: plain and sequential on all the cores of both
    lanes, the latter also at the length it would choose itself, and sequential on these lanes."""
    cores = tuple(sorted({core for one in lanes.values() for core in one}))
    everywhere = {"target": cores, "draft": cores}
    one_by_one = Speculation(asked.drafter, asked.shape, asked.rule, "sequential")
    entrants = [
        Entrant(PLAIN, Speculation(drafter="none"), everywhere),
        Entrant(SEQUENTIAL, one_by_one, everywhere),
    ]
    composition = asked.composition()
    if composition.shape.kind != "auto" and composition.rule == "match":
        free = Speculation(asked.drafter, "auto", asked.rule, "sequential")
        entrants.append(Entrant(SEQUENTIAL_AUTO, free, everywhere))
    entrants.append(Entrant(SEQUENTIAL_LANES, one_by_one, lanes))
    return [*entrants, Entrant(AHEAD, asked, lanes)]


def pairs_of(base: Turns, other: Turns) -> list[list[Pair]]:
    """Turns of two entrants, side by side."""
    return [
        [Pair(one.run, two.run) for one, two in zip(ones, twos, strict=True)]
        for ones, twos in zip(base, other, strict=True)
    ]


def row_of(entrant: Entrant, turns: Mapping[str, Turns], models: Models) -> dict[str, Any]:
    """One entrant: its speed, also over plain and under `ahead`, and what a token costs."""
    own = turns[entrant.name]
    flat = [turn for group in own for turn in group]
    rounds = [one for turn in flat for one in turn.run.rounds]
    measured = [one for turn in flat for one in turn.lanes.rounds[1:]]
    speed = tokens_per_s([[turn.run for turn in group] for group in own])
    return {
        "name": entrant.name,
        "shape": entrant.speculation.shape,
        "schedule": entrant.speculation.schedule,
        "lanes": {lane: list(cores) for lane, cores in entrant.lanes.items()},
        "num_cores": entrant.num_cores,
        "tokens_per_s": speed,
        "tokens_per_s_per_core": speed / entrant.num_cores,
        "tokens_per_round": _mean([one.num_tokens for one in rounds]),
        "round_s": _mean([one.round_s for one in measured]),
        "draft_s": _mean([one.draft_s for one in measured]),
        "verify_s": _mean([one.verify_s for one in measured]),
        **_cost(entrant, flat, models),
        **ratio_of(pairs_of(turns[PLAIN], own), ""),
        **ratio_of(pairs_of(own, turns[AHEAD]), "ahead_"),
    }


def ratio_of(pairs: Sequence[Sequence[Pair]], prefix: str) -> dict[str, Any]:
    """How much faster the second of each pair is, with its interval, under keys of that prefix."""
    speed = speedup(pairs)
    return {
        f"{prefix}ratio": speed.ratio,
        f"{prefix}ratio_ci95": [speed.low, speed.high],
        f"{prefix}ratio_without_loops": ratio_without_loops(pairs),
    }


def best_sequential(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fastest sequential row on all cores."""
    ways = [row for row in rows if row["name"] in (SEQUENTIAL, SEQUENTIAL_AUTO)]
    return max(ways, key=lambda row: float(row["tokens_per_s"]))


def overlap_of(
    rows: Mapping[str, Mapping[str, Any]], ahead: Turns, alone: Turns
) -> dict[str, Any] | None:
    """What working ahead brought, beside the published formula; None if nothing did.

    `alone` are the turns of the sequential schedule on the same lanes.
    """
    requests = [turn.lanes for group in ahead for turn in group]
    report = lane_report(requests)
    if report is None:
        return None
    return {
        **report.as_dict(),
        "published": _published(requests, alone, rows[SEQUENTIAL_LANES]),
        **verdict(rows[AHEAD], best_sequential(list(rows.values())), report),
    }


def verdict(
    ahead: Mapping[str, Any], best: Mapping[str, Any], report: LaneReport
) -> dict[str, Any]:
    """Whether working ahead pays against the best sequential row: `pays` is None where the interval
    holds 1; `verdict` says it and why in a line."""
    ratio, (low, high) = best["ahead_ratio"], best["ahead_ratio_ci95"]
    pays = True if low > 1.0 else False if high < 1.0 else None
    said = {True: "pays", False: "does not pay", None: "makes no sure difference"}[pays]
    return {
        "pays": pays,
        "verdict": (
            f"{ahead['schedule']} {said} on this machine: {ratio:.2f} × the best sequential"
            f" configuration on the same cores (95 % {low:.2f} to {high:.2f}), because"
            f" {_reason(ahead, best, report, ratio)}"
        ),
    }


def _reason(
    ahead: Mapping[str, Any], best: Mapping[str, Any], report: LaneReport, ratio: float
) -> str:
    hits = f"{report.steady.hit_rate:.0%} of outcomes were prepared"
    tokens = f"{ahead['tokens_per_round']:.2f} tokens a round instead of"
    tokens = f"{tokens} {best['tokens_per_round']:.2f}"
    if ratio >= 1.0:
        return (
            f"{hits} and {report.hidden_share:.0%} of drafting passed beside verification:"
            f" {_ms(ahead['round_s'])} a round instead of {_ms(best['round_s'])}, {tokens}"
        )
    longer = ahead["verify_s"] - best["verify_s"]
    saved = best["draft_s"] - ahead["draft_s"]
    if longer > saved:
        return (
            f"a verification takes {_ms(ahead['verify_s'])} without the drafter's cores and"
            f" {_ms(best['verify_s'])} with them, {_ms(longer)} more, and a round saves only"
            f" {_ms(saved)} of drafting; {hits}, {tokens}"
        )
    return f"{hits}: {tokens}, {_ms(ahead['round_s'])} a round instead of {_ms(best['round_s'])}"


def _published(
    requests: Sequence[LaneRun], alone: Turns, lanes: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The formula of SSD with what was measured in it, beside the gain that was measured."""
    ahead = published(requests)
    if ahead is None:
        return None
    rounds = [one for group in alone for turn in group for one in turn.lanes.rounds[1:]]
    verify_s = _mean([one.verify_s for one in rounds])
    draft = _mean([one.draft_s for one in rounds]) / verify_s if verify_s else 0.0
    sequential = PublishedSequential(lanes["tokens_per_round"] or 1.0, draft)
    return {
        **asdict(ahead),
        "speed_up": ahead.speed_up,
        "sequential_speed_up": sequential.speed_up,
        "gain": published_gain(ahead, sequential),
        "measured_gain": lanes["ahead_ratio"],
    }


def _cost(entrant: Entrant, turns: Sequence[Turn], models: Models) -> dict[str, float | None]:
    """Operations and bytes a token; None of a drafter whose passes cannot be counted."""
    all_costs = [_costs(entrant, turn, models) for turn in turns]
    num = max(1, sum(one.num_emitted for one in all_costs))
    target = sum(one.target_flops for one in all_costs)
    draft = sum(one.draft_flops for one in all_costs)
    num_bytes = sum(one.target_bytes + one.draft_bytes for one in all_costs)
    is_known = models.is_known or entrant.name == PLAIN
    return {
        "target_flops_per_token": target / num,
        "draft_flops_per_token": draft / num if is_known else None,
        "bytes_per_token": num_bytes / num if is_known else None,
        "tokens_per_gflop": num / ((target + draft) * 1e-9) if is_known and target else None,
    }


def _costs(entrant: Entrant, turn: Turn, models: Models) -> Costs:
    if entrant.name == PLAIN or not models.is_known:
        return costs_of(turn.counts, models.target, None)
    if entrant.name != AHEAD:
        return costs_of(turn.counts, models.target, models.drafter)
    rounds = turn.lanes.rounds
    counts = [
        LaneCount(count, one.lane, before.num_drafted)
        for count, one, before in zip(turn.counts, rounds[1:], rounds, strict=False)
        if one.lane is not None
    ]
    return ahead_costs(counts, models.target, models.drafter)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
