"""A raced way as the simulator takes a measured run (`lanes_simulator.py validate`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from forerun.engine.results import Completion
from forerun.stats import LaneStats, RoundStats


@dataclass(frozen=True, slots=True)
class Steady:
    """A round behind a request's first, and how many tokens it could draft at most."""

    stats: RoundStats
    room: int

    @property
    def lane(self) -> LaneStats:
        """What working ahead brought to it."""
        return self.stats.lane or LaneStats()


@dataclass(frozen=True, slots=True)
class Raced:
    """A way that was raced: its name, its schedule as `ahead:8`, and how long its drafts are;
    a tree's are so many nodes, and how deep they are is not known."""

    name: str
    schedule: str
    length: int
    is_chain: bool


def steady_rounds(completions: Sequence[Completion]) -> list[Steady]:
    """All rounds but each request's first: that one read the prompt."""
    found = []
    for done in completions:
        left = len(done.token_ids)
        for number, one in enumerate(done.stats.rounds):
            if number:
                found.append(Steady(one, left - 1))
            left -= one.num_accepted + 1
    return found


def measured_run(raced: Raced, completions: Sequence[Completion]) -> dict[str, Any]:
    """Seconds, acceptance and hits of one way's steady rounds: means, for they add up to a rate."""
    kind, _, branches = raced.schedule.partition(":")
    rounds = steady_rounds(completions)
    seconds = sum(one.stats.round_s for one in rounds)
    num_tokens = sum(one.stats.num_accepted + 1 for one in rounds)
    run: dict[str, Any] = {
        "name": raced.name,
        "schedule": kind,
        "num_levels": raced.length,
        "requests": [
            sum(one.num_accepted + 1 for one in done.stats.rounds[1:]) for done in completions
        ],
        "verify_s": [one.stats.verify_s for one in rounds],
        "tokens_per_s": num_tokens / seconds,
        "rounds_per_s": len(rounds) / seconds,
        "tokens_per_round": num_tokens / len(rounds),
    }
    if kind == "sequential":
        return run | _in_turn(raced, rounds)
    return run | {"num_branches": int(branches or 2)} | _ahead(raced, rounds)


def _in_turn(raced: Raced, rounds: Sequence[Steady]) -> dict[str, Any]:
    stats = [one.stats for one in rounds]
    num_levels = sum(min(raced.length, one.room) for one in rounds)
    return {
        "step_s": sum(one.draft_s for one in stats) / max(1, num_levels),
        "accepted": accepted(rounds, raced.length),
        "engine_s": fmean(one.round_s - one.verify_s - one.draft_s for one in stats),
    }


def _ahead(raced: Raced, rounds: Sequence[Steady]) -> dict[str, Any]:
    """What forecasts took, what was there for each outcome, and what was done about misses."""
    hits = [one for one in rounds if one.lane.num_hits]
    missed = [one for one in rounds if one.room > 0 and not one.lane.num_hits]
    anew = [one for one in missed if one.lane.num_redrafted]
    spare = [one for one in missed if not one.lane.num_redrafted]
    jobs = [one for one in rounds if one.lane.num_passes]
    met = [one.lane for one in rounds if one.room > 0 and not one.lane.num_cold]
    # A chain may be cut short, so a pass is what it took; a tree is full after any number of them.
    passes = [one.lane.num_passes if raced.is_chain else 1 + raced.length for one in jobs]
    redraft_s = [one.lane.redraft_s for one in anew]
    others = [
        one.stats.round_s - one.stats.verify_s - one.lane.wait_s - one.lane.redraft_s
        for one in rounds
    ]
    return {
        "step_s": sum(one.lane.busy_s for one in jobs) / max(1, sum(passes)),
        "pass_s": [one.lane.busy_s / num for one, num in zip(jobs, passes, strict=True)],
        "accepted": accepted(hits, raced.length, _has_drafted if raced.is_chain else _has_room),
        "redrafted": accepted(anew, raced.length),
        "nearest": accepted(spare, raced.length),
        "hit_rate": sum(one.num_hits + one.num_short for one in met) / max(1, len(met)),
        "redraft_rate": len(anew) / len(missed) if missed else 0.0,
        "redraft_s": fmean(redraft_s) if redraft_s else 0.0,
        "handover_s": fmean(others),
    }


def _has_room(one: Steady, depth: int) -> bool:
    return one.room >= depth


def _has_drafted(one: Steady, depth: int) -> bool:
    return one.stats.num_drafted >= depth


def accepted(
    rounds: Sequence[Steady], length: int, is_tried: Callable[[Steady, int], bool] = _has_room
) -> list[float]:
    """Chance that the 1st, 2nd, … token was kept, all before it being so; of rounds that tried one,
    which is by default those that had room: a draft that was shorter kept none there."""
    chances = []
    for depth in range(1, length + 1):
        tried = [
            one for one in rounds if is_tried(one, depth) and one.stats.num_accepted >= depth - 1
        ]
        kept = sum(one.stats.num_accepted >= depth for one in tried)
        chances.append(kept / len(tried) if tried else 0.0)
    return chances
