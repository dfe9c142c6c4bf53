"""A raced way as the simulator takes a measured run (`lanes_simulator.py validate`)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from forerun.engine.results import Completion
from forerun.stats import RoundStats


def measured_run(
    name: str, schedule: str, length: int, completions: Sequence[Completion], tokens_per_s: float
) -> dict[str, Any]:
    """Seconds, acceptance and hits of one way's steady rounds; `schedule` as `ahead:8`."""
    kind, _, branches = schedule.partition(":")
    rounds = [one for done in completions for one in done.stats.rounds[1:]]
    run: dict[str, Any] = {
        "name": name,
        "schedule": kind,
        "num_levels": length,
        "verify_s": [one.verify_s for one in rounds],
        "tokens_per_s": tokens_per_s,
        "rounds_per_s": len(rounds) / sum(one.round_s for one in rounds),
        "tokens_per_round": mean(one.num_accepted + 1 for one in rounds),
    }
    if kind == "sequential":
        return run | {
            "step_s": median(one.draft_s for one in rounds) / length,
            "accepted": _accepted(rounds, length),
            "engine_s": median(one.round_s - one.verify_s - one.draft_s for one in rounds),
        }
    lanes = [one.lane for one in rounds if one.lane is not None]
    made = [one for one in rounds if one.lane is not None and one.lane.num_hits]
    missed = [
        one
        for one in rounds
        if one.lane is not None and not one.lane.num_hits and not one.lane.num_redrafted
    ]
    num_redrafted = sum(one.num_redrafted for one in lanes)
    met = sum(one.num_hits + one.num_wrong + one.num_short + one.num_late for one in lanes)
    found = sum(one.num_hits + one.num_short for one in lanes)
    waits = [one.lane.wait_s + one.lane.redraft_s for one in rounds if one.lane is not None]
    others = [one.round_s - one.verify_s - wait for one, wait in zip(rounds, waits, strict=True)]
    return run | {
        "num_branches": int(branches or 2),
        "step_s": median(one.busy_s / one.num_passes for one in lanes if one.num_passes),
        "accepted": _accepted(made, length),
        "nearest": _accepted(missed, length) if missed else [],
        "hit_rate": found / met if met else 0.0,
        "redrafts": num_redrafted > (met - found) / 2,
        "handover_s": median(others),
    }


def _accepted(rounds: Sequence[RoundStats], length: int) -> list[float]:
    """Chance that the 1st, 2nd, … token was kept, all before it being so."""
    chances = []
    for depth in range(1, length + 1):
        tried = [
            one for one in rounds if one.num_drafted >= depth and one.num_accepted >= depth - 1
        ]
        kept = sum(one.num_accepted >= depth for one in tried)
        chances.append(kept / len(tried) if tried else 0.0)
    return chances
