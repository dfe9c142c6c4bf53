"""Ways to use the same two cores, raced on the same prompts: each with its fastest settings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from lane_limits import SizedDrafter, replace_backend
from lane_runs import Raced, measured_run

from forerun import Engine, SamplingParams, Speculation
from forerun.engine.results import Completion
from forerun.stats import LaneStats
from forerun.tools.bench_decode import run_of
from forerun.tools.loops import looping
from forerun.tools.pairs import Pair, Run, ratio_without_loops, speedup, tokens_per_s
from forerun.tools.prompt_files import Prompt, spread

_TRIAL_PROMPTS, _TRIAL_TOKENS = 3, 32
CHAIN = "ahead chain"
_MET = ("hits", "wrong", "short", "late")  # what a forecast may come to


@dataclass(frozen=True, slots=True)
class Race:
    """What is raced: a target, a drafter, how tokens are chosen, and settings to choose from."""

    model: Path
    sized: SizedDrafter
    temperature: float
    max_tokens: int
    repeat: int
    lengths: Sequence[int]
    branches: Sequence[int]
    shape: str
    chain_lengths: Sequence[int] = ()  # of chains that trees are raced against


@dataclass(frozen=True, slots=True)
class Way:
    """A schedule, a shape and a draft length; each model on its own core unless the name says
    both."""

    name: str
    schedule: str
    shape: str
    length: int

    @property
    def is_apart(self) -> bool:
        return self.name not in ("both", "plain")

    def open(self, race: Race) -> Engine:
        """An engine that goes this way."""
        drafter = f"lm:{race.sized.directory}" if self.length else "none"
        shape = f"{self.shape}:{self.length}" if self.length else "auto"
        speculation = Speculation(drafter, shape, "match", self.schedule)
        lanes = {"target_cores": (0,), "draft_cores": (1,)} if self.is_apart else {}
        engine = Engine(race.model, speculate=speculation, **lanes)
        if self.length:
            replace_backend(engine, race.sized.num_times)
        return engine


def raced(race: Race, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Every way with its fastest settings against plain decoding on all cores, in turns."""
    trials = spread([one for one in prompts if one.context != "4k"], _TRIAL_PROMPTS)
    ways = {
        "sequential": _fastest(race, trials, _ways(race, "sequential", ["sequential"])),
        "both": _fastest(race, trials, _ways(race, "both", ["sequential"])),
        "ahead": _fastest_ahead(race, trials, "ahead"),
        "plain": Way("plain", "sequential", "auto", 0),
        "plain on one core": Way("plain on one core", "sequential", "auto", 0),
    }
    if race.shape == "tree":
        chains = replace(race, shape="chain", lengths=race.chain_lengths)
        ways[CHAIN] = _fastest_ahead(chains, trials, CHAIN)
    runs = _turns(race, prompts, ways)
    return {"temperature": race.temperature, **_figures(ways, runs, race.temperature)}


def _ways(race: Race, name: str, schedules: Sequence[str]) -> list[Way]:
    return [Way(name, one, race.shape, length) for one in schedules for length in race.lengths]


def _fastest_ahead(race: Race, prompts: Sequence[Prompt], name: str) -> Way:
    """The fastest length with a middle number of branches, then the fastest number with that, then
    once more the length: a slow drafter that has few branches goes deeper."""
    lengths, schedules = race.lengths, [f"ahead:{branches}" for branches in race.branches]
    best = Way(name, schedules[len(schedules) // 2], race.shape, lengths[0])
    for _ in range(2):
        best = _fastest(race, prompts, _ways(race, name, [best.schedule]))
        alone = replace(race, lengths=[best.length])
        best = _fastest(race, prompts, _ways(alone, name, schedules))
    return best


def _fastest(race: Race, prompts: Sequence[Prompt], ways: Sequence[Way]) -> Way:
    rates = {}
    for way in ways if len(ways) > 1 else ():
        with way.open(race) as engine:
            done = [_done(engine, race, prompt, 0, _TRIAL_TOKENS) for prompt in prompts]
        rates[way] = tokens_per_s([[run_of(one)] for one in done])
    return max(ways, key=lambda way: rates.get(way, 0.0))


def _done(engine: Engine, race: Race, prompt: Prompt, number: int, most: int) -> Completion:
    params = SamplingParams(
        temperature=race.temperature, seed=0, choice=number, max_tokens=most, ignore_eos=True
    )
    return engine.generate(prompt.text, params)[0]


def _turns(
    race: Race, prompts: Sequence[Prompt], ways: dict[str, Way]
) -> dict[str, list[list[Completion]]]:
    runs: dict[str, list[list[Completion]]] = {name: [] for name in ways}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(way.open(race)) for name, way in ways.items()}
        for number, prompt in enumerate(prompts):
            for own in runs.values():
                own.append([])
            for again in range(race.repeat):
                order = list(engines)
                first = (number + again) % len(order)
                for name in order[first:] + order[:first]:
                    done = _done(engines[name], race, prompt, number, race.max_tokens)
                    runs[name][-1].append(done)
    return runs


def _figures(
    ways: dict[str, Way], runs: dict[str, list[list[Completion]]], temperature: float
) -> dict[str, Any]:
    timed = {name: [[run_of(one) for one in own] for own in group] for name, group in runs.items()}
    sequential = [one.stats for group in runs["sequential"] for one in group]
    draft_s = sum(round_.draft_s for one in sequential for round_ in one.rounds[1:])
    verify_s = sum(round_.verify_s for one in sequential for round_ in one.rounds[1:])
    whole = speedup(_pairs(timed["sequential"], timed["ahead"]))
    ahead = ratio_without_loops(_pairs(timed["sequential"], timed["ahead"]))
    texts = {name: [one.token_ids for g in group for one in g] for name, group in runs.items()}
    figures: dict[str, Any] = {
        "settings": {name: [way.schedule, way.length] for name, way in ways.items()},
        **_trees_over_chains(timed),
        "draft_share": draft_s / verify_s,
        "ahead_over_sequential": whole.ratio,
        "ahead_over_sequential_ci95": [whole.low, whole.high],
        "ahead_over_sequential_without_loops": ahead,
        "identical": all(texts[name] == texts["plain"] for name in texts),
        **_lane_figures(runs["ahead"]),
    }
    for name in ("sequential", "ahead", "both", "plain on one core"):
        key = {"both": "both_cores", "plain on one core": "one_core"}.get(name, name)
        pairs = _pairs(timed["plain"], timed[name])
        figures[f"{key}_ratio"] = speedup(pairs).ratio
        figures[f"{key}_ratio_without_loops"] = ratio_without_loops(pairs)
        figures[f"{key}_tokens_per_s"] = tokens_per_s(timed[name])
    figures["runs"] = [
        measured_run(
            Raced(
                f"{name}, T={temperature:g}", ways[name].schedule, ways[name].length,
                ways[name].shape == "chain",
            ),
            [one for group in runs[name] for one in group],
        )
        for name in ("sequential", "ahead")
    ]  # fmt: skip
    rates = {name: figures[f"{name}_ratio"] for name in ("sequential", "ahead", "both_cores")}
    figures["winner"] = max({**rates, "plain": 1.0}.items(), key=lambda one: one[1])[0]
    return figures


def _trees_over_chains(timed: dict[str, list[list[Run]]]) -> dict[str, Any]:
    """Trees ahead against chains ahead, where both were raced."""
    if CHAIN not in timed:
        return {}
    pairs = _pairs(timed[CHAIN], timed["ahead"])
    whole = speedup(pairs)
    return {
        "tree_over_chain": whole.ratio,
        "tree_over_chain_ci95": [whole.low, whole.high],
        "tree_over_chain_without_loops": ratio_without_loops(pairs),
        "ahead_chain_ratio": speedup(_pairs(timed["plain"], timed[CHAIN])).ratio,
        "ahead_chain_tokens_per_s": tokens_per_s(timed[CHAIN]),
    }


def _pairs(plain: list[list[Run]], other: list[list[Run]]) -> list[list[Pair]]:
    return [
        [Pair(one, two) for one, two in zip(own, others, strict=True)]
        for own, others in zip(plain, other, strict=True)
    ]


def _lane_figures(runs: list[list[Completion]]) -> dict[str, Any]:
    """Hits and misses of steady rounds: those that had a forecast."""
    completions = [done for group in runs for done in group]
    rounds = [one for done in completions for one in done.stats.rounds[1:]]
    lanes = [one.lane for one in rounds if one.lane is not None]
    counts = {name: sum(getattr(one, f"num_{name}") for one in lanes) for name in _MET}
    met = sum(counts.values())
    clear = [one for done in completions for one in clear_lanes(done)]
    clear_met = sum(getattr(one, f"num_{name}") for one in clear for name in _MET)
    return {
        "hit_rate": counts["hits"] / met if met else 0.0,
        "hit_rate_without_loops": (
            sum(one.num_hits for one in clear) / clear_met if clear_met else None
        ),
        "misses": {name: counts[name] for name in _MET[1:]},
        "num_met": met,
        "num_rounds": len(rounds),
        "verify_s": median(one.verify_s for one in rounds),
        "busy_s": median([one.busy_s for one in lanes if one.busy_s] or [0.0]),
        "num_branches": sum(one.num_branches for one in lanes),
        "num_prepared": sum(one.num_prepared for one in lanes),
        "num_taken": sum(one.num_taken for one in lanes),
    }


def clear_lanes(done: Completion) -> list[LaneStats]:
    """Of rounds that emitted no token inside a loop."""
    marks, at, found = looping(done.token_ids), 0, []
    for one in done.stats.rounds:
        inside = marks[at : at + one.num_accepted + 1]
        at += one.num_accepted + 1
        if one.lane is not None and not any(inside):
            found.append(one.lane)
    return found
