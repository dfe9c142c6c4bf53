"""Every way of speculating against plain decoding, on one model, in turns: the table of methods.

    python benchmarks/inflate.py --parameters 260M --ratio shipped --out 260M
    python benchmarks/inflate.py --parameters 260M --ratio matched --out 260M-matched
    python benchmarks/methods.py --model 260M --matched 260M-matched/drafters/lm --out methods.json

For each prompt and temperature all compositions run one after another, the order rotating, so that
a slow minute of the machine hits each of them alike; the whole is repeated. A ratio compares a
composition with plain decoding of the same prompt in the same turn. Exit status 1 if any token
differed from plain decoding.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from forerun import Engine, SamplingParams, Speculation
from forerun.backends.native import NativeBackend, default_cores
from forerun.engine.results import Completion
from forerun.models.resolve import resolve_model
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.weights import open_checkpoint
from forerun.tools import machine
from forerun.tools.bench_decode import progress, run_of
from forerun.tools.costs import Costs, RoundCount, decode_costs, pass_bytes
from forerun.tools.loops import loop_share
from forerun.tools.pairs import (
    Pair,
    Run,
    ratio_without_loops,
    speedup,
    tokens_per_s,
)
from forerun.tools.prompt_files import Prompt, read_prompts, read_suite, spread

TEMPERATURES = (0.0, 0.7, 1.0)


@dataclass(frozen=True, slots=True)
class Method:
    """A composition, its name in the table, and the drafter whose weights it reads."""

    name: str
    drafter: str
    shape: str
    weights: Path | None = None

    @property
    def speculation(self) -> Speculation:
        return Speculation(self.drafter, self.shape)


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion, as timed and as counted."""

    run: Run
    counts: tuple[RoundCount, ...]


def main() -> int:
    """Measure, print the table, write the file."""
    arguments = _arguments()
    model = resolve_model(arguments.model)
    methods = _methods(model, arguments.matched)
    prompts = _prompts(arguments)
    with ExitStack() as stack:
        engines = {
            one: stack.enter_context(Engine(model, speculate=one.speculation)) for one in methods
        }
        meter = _Bandwidth(model, methods)
        stack.callback(meter.close)
        tables = [
            _table(engines, meter, prompts, temperature, arguments)
            for temperature in arguments.temperatures
        ]
    report = {
        "what": "methods",
        "date": date.today().isoformat(),
        "command": "python benchmarks/methods.py " + " ".join(sys.argv[1:]),
        "machine": machine.machine_name(),
        "cores": machine.num_cores(),
        "model": arguments.model,
        "parameters": read_spec(model).num_parameters,
        "num_prompts": len(prompts),
        "max_tokens": arguments.max_tokens,
        "repeat": arguments.repeat,
        "tables": tables,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(report)
    return 0 if all(row["identical"] for table in tables for row in table["rows"]) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="forerun-code", help="target, drafter in drafters/lm")
    parser.add_argument("--matched", type=Path, help="an lm drafter of matched size beside it")
    parser.add_argument("--suite", default="all", help="categories of the suite, by commas")
    parser.add_argument("--prompts", type=Path, help="JSONL with a prompt key, not the suite")
    parser.add_argument("--limit", type=int, default=24, help="prompts, spread over the suite")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--temperatures", type=float, nargs="+", default=list(TEMPERATURES))
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


def _methods(model: Path, matched: Path | None) -> list[Method]:
    methods = [Method("plain", "none", "auto"), Method("lookup", "lookup", "auto")]
    shipped = model / "drafters" / "lm"
    if shipped.exists():
        methods.append(Method("lm shipped auto", f"lm:{shipped}", "auto", shipped))
    if matched is not None:
        methods += [
            Method(f"lm matched {shape}", f"lm:{matched}", shape, matched)
            for shape in ("auto", "chain:3")
        ]
    return methods


def _prompts(arguments: argparse.Namespace) -> list[Prompt]:
    prompts = read_prompts(arguments.prompts) if arguments.prompts else read_suite(arguments.suite)
    return spread(prompts, arguments.limit)


class _Bandwidth:
    """Reads buffers as large as a pass of each model, between the turns."""

    def __init__(self, model: Path, methods: Sequence[Method]) -> None:
        self.target = read_spec(model)
        self.drafters = {one.weights: read_spec(one.weights) for one in methods if one.weights}
        smallest = open_checkpoint(resolve_model("forerun-code"))
        self._backend = NativeBackend(smallest, cores=default_cores(), num_blocks=1)
        self._seen: dict[int, list[float]] = {}

    def sample(self) -> None:
        """Measure every size once, its buffer as warm as the weights would be."""
        for spec in (self.target, *self.drafters.values()):
            num_bytes = pass_bytes(spec, 0)
            self._backend.read_bandwidth(num_bytes)
            seen = self._seen.setdefault(num_bytes, [])
            seen.append(self._backend.read_bandwidth(num_bytes))

    def of(self, spec: ModelSpec) -> float:
        """Median bytes per second over the samples."""
        return median(self._seen[pass_bytes(spec, 0)])

    def close(self) -> None:
        self._backend.close()


def _table(
    engines: dict[Method, Engine],
    meter: _Bandwidth,
    prompts: Sequence[Prompt],
    temperature: float,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    turns: dict[Method, list[list[Turn]]] = {one: [] for one in engines}
    for number, prompt in enumerate(prompts):
        params = SamplingParams(
            temperature=temperature,
            seed=0,
            choice=number,
            max_tokens=arguments.max_tokens,
            ignore_eos=True,
        )
        progress(f"T={temperature:g}  {number + 1}/{len(prompts)} {prompt.name}")
        for own in turns.values():
            own.append([])
        for again in range(arguments.repeat):
            order = list(engines)
            first = (number + again) % len(order)
            for method in order[first:] + order[:first]:
                turns[method][-1].append(_turn(engines[method], prompt.text, params))
            meter.sample()
    progress("")
    plain = next(one for one in engines if one.drafter == "none")
    rows = []
    for one in engines:
        row = _row(one, turns[one], turns[plain], meter)
        row["categories"] = _categories(prompts, turns[one], turns[plain])
        rows.append(row)
    return {"temperature": temperature, "rows": rows}


def _turn(engine: Engine, text: str, params: SamplingParams) -> Turn:
    completion = engine.generate(text, params)[0]
    prompt_len = len(engine.tokenizer.encode(text))
    return _turn_of(completion, prompt_len)


def _turn_of(completion: Completion, prompt_len: int) -> Turn:
    run = run_of(completion)
    counts, context = [], prompt_len + len(completion.token_ids) - run.num_decoded
    for one, stats in zip(run.rounds, completion.stats.rounds[1:], strict=True):
        counts.append(RoundCount(stats.num_drafted, one.num_tokens, context))
        context += one.num_tokens
    return Turn(run, tuple(counts))


def _row(
    method: Method, turns: list[list[Turn]], plain: list[list[Turn]], meter: _Bandwidth
) -> dict[str, Any]:
    pairs = _pairs(plain, turns)
    runs = [[turn.run for turn in group] for group in turns]
    rounds = [one for group in runs for run in group for one in run.rounds]
    speed = speedup(pairs)
    spec = meter.drafters.get(method.weights) if method.weights else None
    costs, base = (_costs(some, meter, drafter) for some, drafter in ((turns, spec), (plain, None)))
    bandwidths = meter.of(meter.target), meter.of(spec or meter.target)
    floor_s, plain_floor_s = costs.floor_s(*bandwidths), base.floor_s(*bandwidths)
    speed_s = tokens_per_s(runs)
    return {
        "name": method.name,
        "identical": all(pair.is_identical for group in pairs for pair in group),
        "ratio": speed.ratio,
        "ratio_ci95": [speed.low, speed.high],
        "ratio_without_loops": ratio_without_loops(pairs),
        "floor_ratio": plain_floor_s / base.num_emitted * costs.num_emitted / floor_s,
        "times_floor": costs.num_emitted / speed_s / floor_s if speed_s else None,
        "loop_share": loop_share(group[0].token_ids for group in runs),
        "tokens_per_round": sum(one.num_tokens for one in rounds) / max(1, len(rounds)),
        "draft_share": sum(one.draft_s for one in rounds) / sum(one.round_s for one in rounds),
        "tokens_per_s": speed_s,
        "tokens_per_s_per_core": speed_s / machine.num_cores(),
        "target_flops_per_token": costs.target_flops / costs.num_emitted,
        "draft_flops_per_token": costs.draft_flops / costs.num_emitted,
        "bytes_per_token": (costs.target_bytes + costs.draft_bytes) / costs.num_emitted,
        "target_bandwidth": bandwidths[0],
    }


def _categories(
    prompts: Sequence[Prompt], turns: list[list[Turn]], plain: list[list[Turn]]
) -> dict[str, Any]:
    """The ratio of each category of prompts."""
    pairs, figures = _pairs(plain, turns), {}
    for name in sorted({prompt.category for prompt in prompts}):
        own = [pairs[at] for at, prompt in enumerate(prompts) if prompt.category == name]
        speed = speedup(own)
        figures[name] = {
            "num_prompts": len(own),
            "ratio": speed.ratio,
            "ratio_ci95": [speed.low, speed.high],
            "ratio_without_loops": ratio_without_loops(own),
        }
    return figures


def _pairs(plain: list[list[Turn]], turns: list[list[Turn]]) -> list[list[Pair]]:
    return [
        [Pair(one.run, other.run) for one, other in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(plain, turns, strict=True)
    ]


def _costs(turns: list[list[Turn]], meter: _Bandwidth, drafter: ModelSpec | None) -> Costs:
    """All turns together: counts are the same in every repetition, so they may be added."""
    parts = [
        asdict(decode_costs(turn.counts, meter.target, drafter))
        for group in turns
        for turn in group
    ]
    return Costs(**{name: sum(part[name] for part in parts) for name in parts[0]})


def _print(report: dict[str, Any]) -> None:
    heads = ("method", "tokens/round", "ratio", "95 %", "no loops", "floor ratio", "draft")
    for table in report["tables"]:
        print(f"\nT = {table['temperature']:g}    {report['machine']}, {report['model']}")
        print("{:22}{:>13}{:>7}{:>14}{:>10}{:>13}{:>8}".format(*heads))
        for row in table["rows"]:
            low, high = row["ratio_ci95"]
            outside = row["ratio_without_loops"]
            print(
                f"{row['name']:22}{row['tokens_per_round']:13.2f}{row['ratio']:7.2f}"
                f"{f'{low:.2f}-{high:.2f}':>14}{'—' if outside is None else f'{outside:.2f}':>10}"
                f"{row['floor_ratio']:13.2f}{row['draft_share']:8.0%}"
                f"{'' if row['identical'] else '   TOKENS DIFFER'}"
            )


if __name__ == "__main__":
    sys.exit(main())
