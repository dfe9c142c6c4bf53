"""Every way of speculating against plain decoding, on one model, in turns: the table of methods.

    python benchmarks/inflate.py --parameters 260M --ratio shipped --out 260M
    python benchmarks/inflate.py --parameters 260M --ratio matched --out 260M-matched
    python benchmarks/methods.py --model 260M --matched 260M-matched/drafters/lm --out methods.json
    python benchmarks/methods.py --only 'lookup,lm shipped chain*' --limit 6 --out a.json
    python benchmarks/methods.py --methods blocks eagles chains --topic learned --out learned.json
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
from datetime import date
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any

from compositions import DEFAULT_SETS, KINDS, PLAIN, Method, methods_of, only
from method_rows import Turn, best_of, by_label, rivals_of, row_of

from forerun import Engine, SamplingParams
from forerun.backends.memory import available_bytes
from forerun.backends.native import NativeBackend, default_cores
from forerun.engine.results import Completion
from forerun.errors import ForerunError, OptionError
from forerun.models.drafter_files import open_drafter
from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.tools import machine
from forerun.tools.bench_decode import counts_of, progress, run_of
from forerun.tools.costs import pass_bytes
from forerun.tools.feature_costs import AnySpec, drafting_bytes
from forerun.tools.prompt_files import Prompt, read_prompts, read_suite, spread

TEMPERATURES = (0.0, 0.7, 1.0)
MEMORY_SHARE = 0.7  # of what is free, for all engines together
SLACK_TOKENS = 512  # room for drafts beyond the last token, and whole K/V blocks

Tokens = list[int]


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
        "topic": arguments.topic,
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
    add("--model", default="forerun-code", help="target, drafters in drafters/{lm,dspark,…}")
    add("--matched", type=Path, help="drafters of matched size: their directory, or its lm")
    add("--methods", nargs="+", default=list(DEFAULT_SETS), metavar="NAME=DRAFTER;SHAPE;RULE",
        help="also sets: chains, trees, rules, blocks, eagles; a drafter may be `matched`,"
        " `dspark shipped`, …")  # fmt: skip
    add("--topic", default="", help="what the page calls this table; repetitions share it")
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
    places = {"shipped": model / "drafters"}
    if arguments.matched is not None:
        is_lm = arguments.matched.name == "lm"
        places["matched"] = arguments.matched.parent if is_lm else arguments.matched
    there = {
        f"{kind} {size}": folder / kind
        for kind in KINDS
        for size, folder in places.items()
        if (folder / kind).is_dir()
    }
    if arguments.matched is not None and not any(name.endswith("matched") for name in there):
        raise OptionError(
            f"--matched {arguments.matched} has no drafter in it: name a directory with"
            f" {', '.join(KINDS)} below it"
        )
    methods = methods_of(arguments.methods, there)
    return only(methods, arguments.only) if arguments.only else methods


def _spec_of(method: Method) -> AnySpec | None:
    """The small model that a method reads."""
    if method.weights is None:
        return None
    is_model = method.drafter_kind == "lm"
    return read_spec(method.weights) if is_model else open_drafter(method.weights).spec


def _refuse_too_many(methods: Sequence[Method], model: Path, room: int) -> None:
    """Each engine has a target of its own: too many of them would be read from swap, not memory."""
    drafters = [spec for spec in map(_spec_of, methods) if spec is not None]
    needed = len(methods) * pass_bytes(read_spec(model), room)
    needed += sum(drafting_bytes(spec, room) for spec in drafters)
    free = available_bytes() * MEMORY_SHARE
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
        self._specs = {one: _spec_of(one) for one in methods}
        smallest = open_checkpoint(resolve_model("forerun-code"))
        self._backend = NativeBackend(smallest, cores=default_cores(), num_blocks=1)
        self._seen: dict[int, list[float]] = {}

    def drafter(self, method: Method) -> AnySpec | None:
        """The small model that a method reads."""
        return self._specs[method]

    def sample(self) -> None:
        """Measure every size once, its buffer as warm as the weights would be."""
        specs = [self.target, *filter(None, self._specs.values())]
        for num_bytes in dict.fromkeys(drafting_bytes(spec, 0) for spec in specs):
            self._backend.read_bandwidth(num_bytes)
            seen = self._seen.setdefault(num_bytes, [])
            seen.append(self._backend.read_bandwidth(num_bytes))

    def of(self, spec: AnySpec) -> float:
        """Median bytes per second over the samples."""
        return median(self._seen[drafting_bytes(spec, 0)])

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
    plain = turns[PLAIN]
    for one, own in turns.items():
        rows[one] = row_of(one, own, plain, meter)
        rows[one]["categories"] = by_label(attrgetter("category"), prompts, own, plain)
        rows[one]["contexts"] = by_label(attrgetter("context"), prompts, own, plain)
    return {
        "temperature": temperature,
        "rows": list(rows.values()),
        "best": best_of(rows, turns),
        "rivals": rivals_of(rows, turns),
    }


def _turn(engine: Engine, prompt: Tokens, params: SamplingParams) -> Turn:
    return _turn_of(engine.generate(prompt, params)[0], len(prompt))


def _turn_of(completion: Completion, prompt_len: int) -> Turn:
    run = run_of(completion)
    return Turn(run, counts_of(completion, run, prompt_len))


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
        for rivals in table["rivals"]:
            print(f"{rivals['block']} ÷ {rivals['lm']}:{_cells(rivals)}")
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
