"""Every way of speculating against plain decoding, on one model, in turns: the table of methods.

    python benchmarks/inflate.py --parameters 260M --ratio shipped --out 260M
    python benchmarks/inflate.py --parameters 260M --ratio matched --out 260M-matched
    python benchmarks/methods.py --model 260M --matched 260M-matched/drafters/lm --out methods.json
    python benchmarks/methods.py --only 'lookup,lm shipped chain*' --limit 6 --out a.json
    python benchmarks/methods.py --methods chains 'wide=shipped;tree:3x2x1;match' --out b.json

All are held in memory together. For each prompt and temperature all compositions run one after
another, the order rotating, so that a slow minute of the machine hits each of them alike; the whole
is repeated. A ratio compares a composition with plain decoding of the same prompt in the same turn,
or a tree with a chain likewise. A composition that is not built yet is named and left out. Exit
status 1 if a token differed that had to be plain decoding's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from compositions import DEFAULT_SETS, PLAIN, Method, methods_of, only

from forerun import Engine, SamplingParams
from forerun.backends.memory import available_bytes
from forerun.backends.native import NativeBackend, default_cores
from forerun.engine.results import Completion
from forerun.errors import ForerunError, OptionError
from forerun.models.resolve import resolve_model
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.tokenizer import load_tokenizer
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
MEMORY_SHARE = 0.7  # of what is free, for all engines together
SLACK_TOKENS = 512  # room for drafts beyond the last token, and whole K/V blocks

# What is unknown of a composition whose draft passes are: see `Method.is_counted`.
UNCOUNTED = ("floor_ratio", "times_floor", "draft_flops_per_token", "bytes_per_token")

Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Turn:
    """One completion, as timed and as counted."""

    run: Run
    counts: tuple[RoundCount, ...]


def main() -> int:
    """Measure, print the table, write the file; what cannot be measured is said in one sentence."""
    try:
        return _measure(_arguments())
    except ForerunError as error:
        print(f"methods: {error}", file=sys.stderr)
        return 1


def _measure(arguments: argparse.Namespace) -> int:
    model = resolve_model(arguments.model)
    methods = _methods(arguments, model)
    prompts = _prompts(arguments)
    tokenizer = load_tokenizer(model, read_spec(model))
    texts = [tokenizer.encode(prompt.text) for prompt in prompts]
    room = max(map(len, texts)) + arguments.max_tokens + SLACK_TOKENS
    _refuse_too_many(methods, model, room)
    with ExitStack() as stack:
        engines, skipped = _opened(methods, model, room, stack)
        meter = _Bandwidth(model, list(engines))
        stack.callback(meter.close)
        tables = [
            _table(engines, meter, prompts, texts, temperature, arguments)
            for temperature in arguments.temperatures
        ]
    report = {
        "what": "methods",
        "date": date.today().isoformat(),
        "command": "python benchmarks/methods.py " + shlex.join(sys.argv[1:]),
        "machine": machine.machine_name(),
        "cores": machine.num_cores(),
        "model": arguments.model,
        "parameters": read_spec(model).num_parameters,
        "num_prompts": len(prompts),
        "max_tokens": arguments.max_tokens,
        "repeat": arguments.repeat,
        "skipped": skipped,
        "tables": tables,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(report)
    rows = [(table["temperature"], row) for table in tables for row in table["rows"]]
    return (
        0 if all(row["identical"] for heat, row in rows if row["keeps_tokens"] or not heat) else 1
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", default="forerun-code", help="target, drafter in drafters/lm")
    add("--matched", type=Path, help="an lm drafter of matched size beside it")
    add("--methods", nargs="+", default=list(DEFAULT_SETS), metavar="NAME=DRAFTER;SHAPE;RULE",
        help="also sets: chains, trees, rules; a drafter may be `shipped`, `matched`")  # fmt: skip
    add("--only", help="methods whose names are like these, by commas: 'lookup,lm matched*'")
    add("--suite", default="all", help="categories of the suite, by commas")
    add("--prompts", type=Path, help="JSONL with a prompt key, not the suite")
    add("--limit", type=int, default=24, help="prompts, spread over the suite")
    add("--max-tokens", type=int, default=64)
    add("--repeat", type=int, default=2)
    add("--temperatures", type=float, nargs="+", default=list(TEMPERATURES))
    add("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


def _methods(arguments: argparse.Namespace, model: Path) -> list[Method]:
    drafters = {"shipped": model / "drafters" / "lm", "matched": arguments.matched}
    there = {name: path for name, path in drafters.items() if path is not None and path.exists()}
    if arguments.matched is not None and "matched" not in there:
        raise OptionError(f"--matched {arguments.matched} is not there: name a checkpoint")
    methods = methods_of(arguments.methods, there)
    return only(methods, arguments.only) if arguments.only else methods


def _refuse_too_many(methods: Sequence[Method], model: Path, room: int) -> None:
    """Each engine has a target of its own: too many of them would be read from swap, not memory."""
    specs = [read_spec(path) for one in methods for path in (model, one.weights) if path]
    needed, free = sum(pass_bytes(spec, room) for spec in specs), available_bytes() * MEMORY_SHARE
    if needed > free:
        raise OptionError(
            f"{len(methods)} methods need {needed / 1e9:.1f} GB for their models, and"
            f" {free / 1e9:.1f} GB may be taken: choose fewer with --only"
        )


def _opened(
    methods: Sequence[Method], model: Path, room: int, stack: ExitStack
) -> tuple[dict[Method, Engine], dict[str, str]]:
    """An engine a method, and why the others have none."""
    engines, skipped = {}, {}
    for one in methods:
        progress(f"opening {one.name}")
        try:
            engine = Engine(model, speculate=one.speculation, kv_positions=room)
        except OptionError as error:  # its names are known, so this says what is not built
            skipped[one.name] = str(error)
        else:
            engines[one] = stack.enter_context(engine)
    return engines, skipped


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
    texts: Sequence[Tokens],
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
                turns[method][-1].append(_turn(engines[method], texts[number], params))
            meter.sample()
    progress("")
    rows = {}
    for one in engines:
        rows[one] = _row(one, turns[one], turns[PLAIN], meter)
        rows[one]["categories"] = _categories(prompts, turns[one], turns[PLAIN])
    best = _best(rows, turns)
    return {"temperature": temperature, "rows": list(rows.values()), "best": best}


def _turn(engine: Engine, prompt: Tokens, params: SamplingParams) -> Turn:
    return _turn_of(engine.generate(prompt, params)[0], len(prompt))


def _turn_of(completion: Completion, prompt_len: int) -> Turn:
    run = run_of(completion)
    counts, context = [], prompt_len + len(completion.token_ids) - run.num_decoded
    for one, stats in zip(run.rounds, completion.stats.rounds[1:], strict=True):
        counts.append(
            RoundCount(stats.num_drafted, one.num_tokens, context, stats.num_draft_passes)
        )
        context += one.num_tokens
    return Turn(run, tuple(counts))


def _row(
    method: Method, turns: list[list[Turn]], plain: list[list[Turn]], meter: _Bandwidth
) -> dict[str, Any]:
    pairs = _pairs(plain, turns)
    runs = [[turn.run for turn in group] for group in turns]
    rounds = [one for group in runs for run in group for one in run.rounds]
    spec = meter.drafters.get(method.weights) if method.weights else None
    costs, base = (_costs(some, meter, drafter) for some, drafter in ((turns, spec), (plain, None)))
    bandwidths = meter.of(meter.target), meter.of(spec or meter.target)
    floor_s, plain_floor_s = costs.floor_s(*bandwidths), base.floor_s(*bandwidths)
    speed_s = tokens_per_s(runs)
    return {
        **{key: getattr(method, key) for key in ("name", "shape", "rule", "kind", "keeps_tokens")},
        "identical": all(pair.is_identical for group in pairs for pair in group),
        **_ratio(pairs),
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
        **({} if method.is_counted else dict.fromkeys(UNCOUNTED)),
    }


def _best(
    rows: Mapping[Method, Mapping[str, Any]], turns: Mapping[Method, list[list[Turn]]]
) -> list[dict[str, Any]]:
    """Of each small model, its fastest tree against its fastest chain in the same turns.

    Only where both keep plain decoding's tokens; each is chosen by the figures it is shown with.
    """
    figures = []
    for weights in dict.fromkeys(one.weights for one in rows if one.weights):
        own = [one for one in rows if one.weights == weights and one.keeps_tokens]
        chain, tree = (
            max(
                (one for one in own if one.kind == kind),
                key=lambda one: rows[one]["tokens_per_s"],
                default=None,
            )
            for kind in ("chain", "tree")
        )
        names = {"chain": chain and chain.name, "tree": tree and tree.name}
        pairs = _pairs(turns[chain], turns[tree]) if chain and tree else []
        figures.append({"drafter": str(weights), **names, **(_ratio(pairs) if pairs else {})})
    return figures


def _ratio(pairs: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    speed = speedup(pairs)
    return {
        "ratio": speed.ratio,
        "ratio_ci95": [speed.low, speed.high],
        "ratio_without_loops": ratio_without_loops(pairs),
    }


def _categories(
    prompts: Sequence[Prompt], turns: list[list[Turn]], plain: list[list[Turn]]
) -> dict[str, Any]:
    """The ratio of each category of prompts."""
    pairs, figures = _pairs(plain, turns), {}
    for name in sorted({prompt.category for prompt in prompts}):
        own = [pairs[at] for at, prompt in enumerate(prompts) if prompt.category == name]
        figures[name] = {"num_prompts": len(own), **_ratio(own)}
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
        print("{:28}{:>13}{:>7}{:>14}{:>10}{:>13}{:>8}".format(*heads))
        for row in table["rows"]:
            print(
                f"{row['name']:28}{row['tokens_per_round']:13.2f}{_cells(row)}"
                f"{_digits(row['floor_ratio']):>13}{row['draft_share']:8.0%}"
                f"{'' if row['identical'] or not row['keeps_tokens'] else '   TOKENS DIFFER'}"
            )
        for best in table["best"]:
            if "ratio" in best:
                print(f"{best['tree']} ÷ {best['chain']}:{_cells(best)}")
    for name, reason in report["skipped"].items():
        print(f"{name} left out: {reason}")


def _cells(row: Mapping[str, Any]) -> str:
    low, high = row["ratio_ci95"]
    outside = _digits(row["ratio_without_loops"])
    return f"{row['ratio']:7.2f}{f'{low:.2f}-{high:.2f}':>14}{outside:>10}"


def _digits(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
