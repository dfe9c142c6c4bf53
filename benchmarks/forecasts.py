"""How often is the outcome that comes among those prepared? Counted, not timed.

    python benchmarks/forecasts.py --json benchmarks/results/forecasts.json
    python benchmarks/forecasts.py --drafters lm --shapes chain:4 --branches 8,24 --limit 20

The verifier waits for every forecast to be whole and has each miss drafted anew, so that figures
depend on models and text alone, not on the machine. Tokens a round stand beside those of the
sequential schedule: what a drafter loses that must foresee without features is its tax. The size of
the target changes none of it, so the embedded model serves.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from lane_limits import Patient
from lane_races import clear_lanes

from forerun import Engine, SamplingParams, Speculation
from forerun.engine.results import Completion
from forerun.errors import IncompatibleSpeculation
from forerun.tools.bench_decode import progress
from forerun.tools.loops import looping
from forerun.tools.machine import machine_name
from forerun.tools.prompt_files import Prompt, read_suite, spread

MET = ("hits", "wrong", "short", "late")


def main() -> int:
    """Count and print; 0."""
    options = _parser().parse_args()
    prompts = spread([one for one in read_suite("all") if one.context != "4k"], options.limit)
    rows = []
    for drafter in options.drafters.split(","):
        for shape in options.shapes.split(","):
            for temperature in options.temperatures:
                rows += _rows(drafter, shape, temperature, prompts, options)
    report = {
        "what": "forecasts",
        "date": date.today().isoformat(),
        "command": "python benchmarks/forecasts.py " + shlex.join(sys.argv[1:]),
        "machine": machine_name(),
        "model": options.model,
        "num_prompts": len(prompts),
        "max_tokens": options.max_tokens,
        "rows": rows,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _rows(
    drafter: str,
    shape: str,
    temperature: float,
    prompts: Sequence[Prompt],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    rows = []
    name = f"{drafter} {shape} T={temperature:g}"
    before = _completions(drafter, shape, "sequential", temperature, prompts, options)
    for branches in options.branches:
        progress(f"{name} ahead:{branches}")
        try:
            done = _completions(drafter, shape, f"ahead:{branches}", temperature, prompts, options)
        except IncompatibleSpeculation as error:
            print(f"{name}: {error}", file=sys.stderr)
            return rows
        figures = _figures(done, before)
        rows.append(
            {"drafter": drafter, "shape": shape, "temperature": temperature, "branches": branches}
            | figures
        )
        print(
            f"{name} B={branches}: hits {figures['hit_rate']:.3f}, outside loops"
            f" {figures['hit_rate_without_loops'] or 0:.3f}; tokens/round"
            f" {figures['tokens_per_round']:.2f}, sequential"
            f" {figures['tokens_per_round_sequential']:.2f}; same tokens {figures['identical']}"
        )
    return rows


def _completions(
    drafter: str,
    shape: str,
    schedule: str,
    temperature: float,
    prompts: Sequence[Prompt],
    options: argparse.Namespace,
) -> list[Completion]:
    speculation = Speculation(drafter, shape, "match", schedule)
    with Engine(options.model, speculate=speculation, threads=1) as engine:
        guarded: Any = engine._parts.drafter._drafter
        if schedule != "sequential":
            guarded._waits = Patient()
        return [
            engine.generate(
                prompt.text,
                SamplingParams(
                    temperature=temperature, seed=0, choice=number,
                    max_tokens=options.max_tokens, ignore_eos=True,
                ),
            )[0]
            for number, prompt in enumerate(prompts)
        ]  # fmt: skip


def _figures(done: Sequence[Completion], before: Sequence[Completion]) -> dict[str, Any]:
    lanes = [one.lane for each in done for one in each.stats.rounds if one.lane is not None]
    counts = {name: sum(getattr(one, f"num_{name}") for one in lanes) for name in MET}
    clear = [lane for each in done for lane in clear_lanes(each)]
    met = sum(counts.values())
    clear_met = sum(getattr(one, f"num_{name}") for one in clear for name in MET)
    return {
        "hit_rate": counts["hits"] / met if met else 0.0,
        "hit_rate_without_loops": (
            sum(one.num_hits for one in clear) / clear_met if clear_met else None
        ),
        "num_outcomes": met,
        "num_outcomes_without_loops": clear_met,
        "misses": {name: counts[name] for name in MET[1:]},
        "tokens_per_round": _tokens_per_round(done),
        "tokens_per_round_sequential": _tokens_per_round(before),
        "identical": [one.token_ids for one in done] == [one.token_ids for one in before],
        "num_prepared": sum(one.num_prepared for one in lanes),
        "num_taken": sum(one.num_taken for one in lanes),
    }


def _tokens_per_round(completions: Sequence[Completion]) -> float:
    """Of rounds outside loops, the first apart."""
    tokens = rounds = 0
    for done in completions:
        marks, at = looping(done.token_ids), 0
        for number, one in enumerate(done.stats.rounds):
            inside = marks[at : at + one.num_accepted + 1]
            at += one.num_accepted + 1
            if number and not any(inside):
                tokens += one.num_accepted + 1
                rounds += 1
    return tokens / max(rounds, 1)


def _counts(text: str) -> Sequence[int]:
    return [int(word) for word in text.split(",")]


def _floats(text: str) -> Sequence[float]:
    return [float(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="forerun-code")
    add("--drafters", default="lm,dspark,eagle3")
    add("--shapes", default="chain:2,chain:4,tree:8")
    add("--branches", type=_counts, default=[8, 16, 24])
    add("--temperatures", type=_floats, default=[0.0, 0.7])
    add("--limit", type=int, default=30, help="prompts, spread over the suite without its longest")
    add("--max-tokens", type=int, default=64)
    add("--json", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
