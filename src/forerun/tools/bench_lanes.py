"""`forerun bench decode` of a schedule that works ahead: does it pay on these very cores?

Plain decoding, the sequential schedule on all cores and on the two lanes, and the asked one take
turns on each prompt, the order rotating, so that a slow minute of the machine hits each alike.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.composition import read_drafter
from forerun.engine.drafting import drafter_directory
from forerun.models.drafter_files import open_drafter
from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.options import EngineOptions, SamplingParams
from forerun.tools import machine
from forerun.tools.bench_decode import (
    Plan,
    counts_of,
    figures,
    progress,
    run_of,
    tables,
    why_scheduled,
)
from forerun.tools.lane_report import LaneRun
from forerun.tools.lane_table import (
    AHEAD,
    PLAIN,
    SEQUENTIAL_LANES,
    Entrant,
    Models,
    Turn,
    best_sequential,
    entrants_of,
    overlap_of,
    pairs_of,
    row_of,
)
from forerun.tools.other_work import OtherWork
from forerun.tools.terminal import say, write_json
from forerun.tools.timeline import NUM_ROUNDS, Timeline, timeline_of, typical
from forerun.tools.timeline_pictures import refuse_other_pictures, write_picture

if TYPE_CHECKING:
    from forerun.engine.engine import Completion, Engine
    from forerun.tools.arguments import EngineArguments, SamplingArguments

_FEATURE_DRAFTERS = ("dflash", "dspark", "eagle3")
_FREE_DRAFTERS = ("none", "lookup", "prediction")  # no weights to read
_NUM_SHOWN = 8  # rounds that a terminal's width can tell apart


def run(
    plan: Plan,
    engine: EngineArguments,
    sampling: SamplingArguments,
    *,
    timeline: Path | None,
    as_json: bool,
) -> int:
    """Measure and report; 1 if any token differed."""
    if timeline is not None:
        refuse_other_pictures(timeline)
    params = replace(sampling.params(), seed=sampling.seed or 0)
    entrants = entrants_of(engine.speculation(), lanes_of(engine))
    with ExitStack() as stack:
        engines = {
            one.name: stack.enter_context(engine.open(one.speculation, cores=one.lanes))
            for one in entrants
        }
        cores = {core for one in entrants for lane in one.lanes.values() for core in lane}
        others = OtherWork(cores)
        turns = _measured(engines, plan, params)
        ahead = engines[AHEAD]
        facts = {name: getattr(ahead, name) for name in ("numerics", "exactness")}
        facts["why"] = why_scheduled(ahead) or ahead.schedule_reason
    report = {
        "machine": machine.machine_name(),
        "model": engine.model,
        "drafter": engine.drafter,
        "shape": engine.shape,
        "schedule": engine.schedule,
        **facts,
        "temperature": params.temperature,
        "seed": params.seed,
        "other_cores": others.num_cores(),
        **_compared(plan, entrants, turns, models_of(engine)),
    }
    if timeline is not None:
        write_picture(timeline, drawn_of(turns, NUM_ROUNDS), _title(report))
    _show(report, drawn_of(turns, _NUM_SHOWN), as_json=as_json)
    return 0 if report["identical"] else 1


def lanes_of(engine: EngineArguments) -> dict[str, tuple[int, ...]]:
    """The cores of both lanes, as an engine that works ahead takes them."""
    given = engine.cores()
    options = EngineOptions(
        target_cores=given.get("target"), draft_cores=given.get("draft"), threads=engine.threads
    ).lanes_apart()
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    return {lane: options.cores_of(lane) or allowed for lane in ("target", "draft")}


def models_of(engine: EngineArguments) -> Models:
    """What passes of target and drafter read, as far as the drafter's name tells."""
    directory, name = resolve_model(engine.model), read_drafter(engine.drafter)
    target = read_spec(directory)
    if name.name == "lm":
        return Models(target, read_spec(drafter_directory(name, directory)))
    if name.name in _FEATURE_DRAFTERS:
        return Models(target, open_drafter(drafter_directory(name, directory)).spec)
    return Models(target, None, is_known=name.name in _FREE_DRAFTERS)


def _measured(
    engines: dict[str, Engine], plan: Plan, params: SamplingParams
) -> dict[str, list[list[Turn]]]:
    """By entrant, prompt and repetition; an unmeasured turn first warms each."""
    turns: dict[str, list[list[Turn]]] = {name: [] for name in engines}
    order = list(engines)
    for number, prompt in enumerate(plan.prompts):
        progress(f"{number + 1}/{len(plan.prompts)} {prompt.name}")
        own = replace(params, choice=number % 2**16)
        prompt_len = len(engines[PLAIN].tokenizer.encode(prompt.text))
        for name in order:
            turns[name].append([])
        for again in range(plan.repeat + 1):
            first = (number + again) % len(order)
            for name in order[first:] + order[:first]:
                turn = _turn_of(engines[name].generate(prompt.text, own)[0], prompt_len)
                if again:
                    turns[name][-1].append(turn)
    progress("")
    return turns


def _turn_of(completion: Completion, prompt_len: int) -> Turn:
    run = run_of(completion)
    rounds = completion.stats.rounds
    after = tuple(one.num_tokens for one in run.rounds)
    first = len(completion.token_ids) - sum(after)
    return Turn(run, LaneRun(rounds, (first, *after)), counts_of(completion, run, prompt_len))


def _compared(
    plan: Plan, entrants: list[Entrant], turns: dict[str, list[list[Turn]]], models: Models
) -> dict[str, Any]:
    rows = {one.name: row_of(one, turns, models) for one in entrants}
    groups = pairs_of(turns[PLAIN], turns[AHEAD])
    best = best_sequential(list(rows.values()))
    every = figures(groups)
    others = (pair for name in turns for g in pairs_of(turns[PLAIN], turns[name]) for pair in g)
    every["identical"] = all(pair.is_identical for pair in others)
    return {
        **every,
        "lanes": rows[AHEAD]["lanes"],
        "plain": rows[PLAIN],
        "sequential": best,
        "sequential_lanes": rows[SEQUENTIAL_LANES],
        "ahead": rows[AHEAD],
        "overlap": overlap_of(rows, turns[AHEAD], turns[SEQUENTIAL_LANES]),
        **tables(plan.prompts, groups),
    }


def drawn_of(turns: dict[str, list[list[Turn]]], num_rounds: int) -> Timeline:
    """The lanes in typical rounds of a prompt's last turn, above plain decoding of the same."""
    requests = [group[-1].lanes for group in turns[AHEAD]]
    at, first = typical(requests, num_rounds)
    return timeline_of(requests[at], turns[PLAIN][at][-1].lanes, first, num_rounds)


def _title(report: dict[str, Any]) -> str:
    lanes = ", ".join(
        f"{lane} on {'core' if len(cores) == 1 else 'cores'} {', '.join(map(str, cores))}"
        for lane, cores in report["lanes"].items()
    )
    return f"{report['schedule']}, {report['drafter']}, {report['shape']}: {lanes}"


def _show(report: dict[str, Any], drawn: Timeline, *, as_json: bool) -> None:
    if as_json:
        write_json(report)
    else:
        from forerun.tools.lane_show import show_lanes

        show_lanes(report, drawn)
    if not report["identical"]:
        say("forerun: speculation changed the tokens of at least one prompt")
