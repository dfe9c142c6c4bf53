"""Is it speculation all the way down? One, two and three levels, measured, with the formula beside.

    python benchmarks/nested.py --model 260M-matched --smaller 260M/drafters/lm --out nested.json

The target decodes alone, with `lookup`, with its own small model `lm`, and with that model decoding
speculatively itself, with `lookup` or a still smaller model below it. Engines take turns on every
prompt, the order rotating. The formula (facts of the cascade, each level over the one below it):

    t_i = (n_{i-1} t_{i-1} + c_i) / e_i        e_i = (1 - a_i^(n_{i-1} + 1)) / (1 - a_i)

t seconds a token, n tokens drafted a round, c seconds of one verification, a the acceptance of one
drafted token. For three levels its c, a and n are measured on pairs of neighbours, the middle model
decoding by itself, so it is a prediction. Exit status 1 if any token differed from plain decoding.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from forerun import Engine, SamplingParams, Speculation
from forerun.errors import OptionError
from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.stats import RoundStats
from forerun.tools import machine
from forerun.tools.bench_decode import progress
from forerun.tools.prompt_files import Prompt, read_prompts, read_suite, spread


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model and what drafts for it. `below` are the levels under it, as names of decoders that
    were measured by themselves, nearest first."""

    name: str
    model: Path
    drafter: str
    shape: str
    num_levels: int
    below: tuple[str, ...] = ()


@dataclass(slots=True)
class Record:
    """All decoding rounds of one decoder, and what it wrote."""

    rounds: list[RoundStats] = field(default_factory=list)
    texts: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Level:
    """Means over the rounds of one decoder: what the formula needs of two neighbours."""

    num_drafted: float
    acceptance: float
    draft_s: float
    verify_s: float
    round_s: float
    tokens_per_round: float

    @property
    def draft_token_s(self) -> float:
        """Seconds a drafted token of the level below."""
        return self.draft_s / self.num_drafted if self.num_drafted else 0.0

    @property
    def expected(self) -> float:
        """Tokens a round by the formula."""
        a = min(self.acceptance, 1 - 1e-9)
        return float((1 - a ** (self.num_drafted + 1)) / (1 - a))


def main() -> int:
    """Measure, print the table, write the file."""
    arguments = _arguments()
    decoders = _decoders(arguments)
    prompts = read_prompts(arguments.prompts) if arguments.prompts else read_suite(arguments.suite)
    prompts = spread(prompts, arguments.limit)
    with ExitStack() as stack:
        engines = _opened(decoders, stack)
        tables = [
            {"temperature": one, "rows": _rows(engines, prompts, one, arguments)}
            for one in arguments.temperatures
        ]
    report = {
        "what": "nested",
        "date": date.today().isoformat(),
        "command": "python benchmarks/nested.py " + " ".join(sys.argv[1:]),
        "machine": machine.machine_name(),
        "cores": machine.num_cores(),
        "parameters": {one.name: read_spec(one.model).num_parameters for one in decoders},
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
    parser.add_argument("--model", default="forerun-code", help="target, its model in drafters/lm")
    parser.add_argument("--smaller", type=Path, help="a model below drafters/lm, its vocabulary")
    parser.add_argument("--chain", type=int, default=4, help="tokens drafted for the target")
    parser.add_argument("--inner-chain", type=int, default=4, help="and for the middle model")
    parser.add_argument("--suite", default="all", help="categories of the suite, by commas")
    parser.add_argument("--prompts", type=Path, help="JSONL with a prompt key, not the suite")
    parser.add_argument("--limit", type=int, default=12, help="prompts, spread over the suite")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


def _decoders(arguments: argparse.Namespace) -> list[Decoder]:
    """Every decoder of the table, and the neighbours that the formula is fed with."""
    target = resolve_model(arguments.model)
    middle = target / "drafters" / "lm"
    outer, inner = f"chain:{arguments.chain}", f"chain:{arguments.inner_chain}"
    decoders = [
        Decoder("target", target, "none", "auto", 1),
        Decoder("target+lookup", target, "lookup", outer, 2),
        Decoder("target+lm", target, f"lm:{middle}", outer, 2),
        Decoder("lm", middle, "none", "auto", 1),
    ]
    below = {"lookup": "lookup"}
    if arguments.smaller is not None:
        below["smaller"] = f"lm:{arguments.smaller.resolve()}"
    for name, drafter in below.items():
        pair = f"lm+{name}"
        nested = f"nested({drafter},{inner},match)"
        levels = ("target+lm", pair)
        decoders.append(Decoder(pair, middle, drafter, inner, 2))
        decoders.append(Decoder(f"target+lm+{name}", target, nested, outer, 3, levels))
    return decoders


def _opened(decoders: Sequence[Decoder], stack: ExitStack) -> dict[Decoder, Engine]:
    engines = {}
    for one in decoders:
        try:
            speculation = Speculation(one.drafter, one.shape, "match", "sequential")
            engines[one] = stack.enter_context(Engine(one.model, speculate=speculation))
        except OptionError as error:
            progress("")
            print(f"{one.name} is left out: {error}", file=sys.stderr)
    return engines


def _rows(
    engines: dict[Decoder, Engine],
    prompts: Sequence[Prompt],
    temperature: float,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    records = {one: Record() for one in engines}
    for number, prompt in enumerate(prompts):
        params = SamplingParams(
            temperature=temperature,
            seed=0,
            choice=number,
            max_tokens=arguments.max_tokens,
            ignore_eos=True,
        )
        progress(f"T={temperature:g}  {number + 1}/{len(prompts)} {prompt.name}")
        for again in range(arguments.repeat):
            order = list(engines)
            first = (number + again) % len(order)
            for one in order[first:] + order[:first]:
                completion = engines[one].generate(prompt.text, params)[0]
                records[one].rounds += completion.stats.rounds[1:]  # the first reads the prompt too
                records[one].texts.append(tuple(completion.token_ids))
    progress("")
    levels = {one.name: _level(record.rounds) for one, record in records.items()}
    plain = {one.model: records[one].texts for one in engines if one.drafter == "none"}
    return [
        _row(one, levels, is_identical=records[one].texts == plain[one.model]) for one in engines
    ]


def _level(rounds: Sequence[RoundStats]) -> Level:
    num = max(1, len(rounds))
    drafted = sum(one.num_drafted for one in rounds)
    accepted = sum(one.num_accepted for one in rounds)
    # A chain ends in one rejection, or in none when all of it was kept.
    rejected = sum(one.num_accepted < one.num_drafted for one in rounds)
    return Level(
        num_drafted=drafted / num,
        acceptance=accepted / max(1, accepted + rejected),
        draft_s=sum(one.draft_s for one in rounds) / num,
        verify_s=sum(one.verify_s for one in rounds) / num,
        round_s=sum(one.round_s for one in rounds) / num,
        tokens_per_round=(accepted + num) / num,
    )


def _row(decoder: Decoder, levels: dict[str, Level], *, is_identical: bool) -> dict[str, Any]:
    own = levels[decoder.name]
    predicted = _predicted(decoder, levels)
    plain = levels["target" if decoder.name.startswith("target") else "lm"]
    return {
        "name": decoder.name,
        "num_levels": decoder.num_levels,
        "speculation": [decoder.drafter, decoder.shape],
        "identical": is_identical,
        **asdict(own),
        "token_s": own.round_s / own.tokens_per_round,
        "ratio": plain.round_s / plain.tokens_per_round * own.tokens_per_round / own.round_s,
        "formula_round_s": predicted[0],
        "formula_tokens_per_round": predicted[1],
        "formula_token_s": predicted[0] / predicted[1],
    }


def _predicted(decoder: Decoder, levels: dict[str, Level]) -> tuple[float, float]:
    """Seconds and tokens of a round by the formula, from pairs of neighbours."""
    chain = [levels[name] for name in decoder.below] or [levels[decoder.name]]
    below_s = chain[-1].draft_token_s
    for level in reversed(chain[1:]):
        below_s = (level.num_drafted * below_s + level.verify_s) / level.expected
    top = chain[0]
    return top.num_drafted * below_s + top.verify_s, top.expected


def _print(report: dict[str, Any]) -> None:
    heads = ("decoder", "levels", "tokens/round", "formula", "round ms", "formula", "ratio")
    for table in report["tables"]:
        print(f"\nT = {table['temperature']:g}    {report['machine']}, {report['cores']} cores")
        print("{:22}{:>7}{:>14}{:>9}{:>10}{:>9}{:>8}".format(*heads))
        for row in table["rows"]:
            print(
                f"{row['name']:22}{row['num_levels']:7}"
                f"{row['tokens_per_round']:14.2f}{row['formula_tokens_per_round']:9.2f}"
                f"{row['round_s'] * 1e3:10.2f}{row['formula_round_s'] * 1e3:9.2f}"
                f"{row['ratio']:8.2f}{'' if row['identical'] else '   TOKENS DIFFER'}"
            )


if __name__ == "__main__":
    sys.exit(main())
