"""What each rule accepts of the same drafts' budget, over temperatures: counts, no clock.

    python benchmarks/rules.py --out rules.json                  # the embedded pair, the suite

A chain and a full tree, drafted by the small model as each rule wants it: with the target's own
noise for `match`, sampled for the others. At temperature 0 all rules are one on a chain; a sampled
tree has no siblings there, for its law is one token. Tokens a round count the bonus; intervals
resample prompts, those of the difference to `match` the same prompts of both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forerun import Engine, SamplingParams, Speculation
from forerun.tools.bench_decode import progress
from forerun.tools.prompt_files import read_suite, spread

CHAIN_RULES = ("match", "rejection", "block", "traversal", "kseq")
TREE_RULES = ("match", "rejection", "rejection:top", "rejection:likeliest", "traversal", "kseq")
TEMPERATURES = (0.0, 0.5, 0.7, 1.0)
NUM_RESAMPLES = 2000

Counts = NDArray[np.float64]  # [P, 3] of each prompt: rounds, drafted, accepted


@dataclass(frozen=True, slots=True)
class Row:
    """One rule on one shape at one temperature."""

    shape: str
    rule: str
    temperature: float
    num_rounds: int
    num_drafted: int
    num_accepted: int
    accepted_per_drafted: float
    tokens_per_round: float
    tokens_per_round_ci95: tuple[float, float]
    more_than_match_ci95: tuple[float, float]


def main() -> int:
    """Measure, print the table, write the rows."""
    options = _arguments()
    prompts = [prompt.text for prompt in spread(read_suite(options.suite), options.limit)]
    rows: list[Row] = []
    for shape, rules in ((options.chain, CHAIN_RULES), (options.tree, TREE_RULES)):
        counts = {rule: dict(_measure(options, shape, rule, prompts)) for rule in rules}
        for temperature in TEMPERATURES:
            match = counts["match"][temperature]
            rows += [
                _row(shape, rule, temperature, counts[rule][temperature], match) for rule in rules
            ]
    progress("")
    report = {
        "what": "rules",
        "model": options.model,
        "drafter": options.drafter,
        "num_prompts": len(prompts),
        "max_tokens": options.max_tokens,
        "seed": options.seed,
        "rows": [asdict(row) for row in rows],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _show(report, rows)
    return 0


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="forerun-code")
    parser.add_argument("--drafter", default="lm")
    parser.add_argument("--chain", default="chain:4")
    parser.add_argument("--tree", default="tree:3x2x1")
    parser.add_argument("--suite", default="all", help="categories, by commas")
    parser.add_argument("--limit", type=int, default=40, help="prompts; 0 is all of them")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _measure(
    options: Any, shape: str, rule: str, prompts: Sequence[str]
) -> Iterator[tuple[float, Counts]]:
    """Of each temperature, what every prompt's rounds drafted and kept."""
    name, _, top = rule.partition(":")
    asked = Speculation(options.drafter, f"{shape}:{top}" if top else shape, name)
    with Engine(options.model, speculate=asked, threads=options.threads) as engine:
        for temperature in TEMPERATURES:
            progress(f"{shape} {rule} T={temperature}")
            counts = []
            for at, prompt in enumerate(prompts):
                params = SamplingParams(
                    temperature=temperature,
                    seed=options.seed + at,
                    max_tokens=options.max_tokens,
                    ignore_eos=True,
                )
                stats = engine.generate(prompt, params)[0].stats
                if stats.num_failures:
                    raise SystemExit(
                        f"{shape} {rule}: {stats.num_failures} drafts were thrown away"
                    )
                counts.append([stats.num_rounds, stats.num_drafted, stats.num_accepted])
            yield temperature, np.array(counts, np.float64)


def _row(shape: str, rule: str, temperature: float, counts: Counts, match: Counts) -> Row:
    num_rounds, num_drafted, num_accepted = counts.sum(axis=0).tolist()
    picked = np.random.default_rng(0).integers(len(counts), size=(NUM_RESAMPLES, len(counts)))
    resampled = _tokens_per_round(counts[picked])
    more = resampled - _tokens_per_round(match[picked])
    return Row(
        shape,
        rule,
        temperature,
        int(num_rounds),
        int(num_drafted),
        int(num_accepted),
        num_accepted / max(1.0, num_drafted),
        float(_tokens_per_round(counts)),
        _interval(resampled),
        _interval(more),
    )


def _tokens_per_round(counts: Counts) -> Counts:
    totals = counts.sum(axis=-2)
    ratio: Counts = 1.0 + totals[..., 2] / totals[..., 0]
    return ratio


def _interval(values: Counts) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975)).tolist()
    return low, high


def _show(report: dict[str, Any], rows: Sequence[Row]) -> None:
    table = Table(
        "shape", "rule", "T", "accepted / drafted", "tokens a round", "95 %", "- match, 95 %"
    )
    for row in rows:
        table.add_row(
            row.shape,
            row.rule,
            f"{row.temperature:g}",
            f"{row.accepted_per_drafted:.3f}",
            f"{row.tokens_per_round:.2f}",
            "{:.2f} to {:.2f}".format(*row.tokens_per_round_ci95),
            "{:+.2f} to {:+.2f}".format(*row.more_than_match_ci95),
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(
        f"{report['model']} drafted by {report['drafter']},"
        f" {report['num_prompts']} prompts, {report['max_tokens']} tokens each"
    )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
