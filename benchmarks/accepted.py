"""How many drafted tokens are kept: by position, kind of text and length of context; no clock.

    python benchmarks/accepted.py --drafters dspark eagle3 lm --out accepted.json
    python benchmarks/accepted.py --drafters dspark --shapes chain:7 tree:16 --limit 60 --threads 1
    python benchmarks/accepted.py --shapes chain:7 --temperatures 0.7 --record --out accepted.json

Enlarging changes no token, so the embedded model answers for every size. A round counts by the
share of its tokens that are outside loops (`tools/loops`), as time does in the table of methods;
the round that read the prompt and the last one, which had to end in time, are left out. Position i
of `reached`: the share of rounds that kept at least i drafted tokens.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun import Engine, SamplingParams, Speculation
from forerun.engine.results import Completion
from forerun.errors import ForerunError
from forerun.models.resolve import resolve_model
from forerun.tools import machine
from forerun.tools.bench_decode import progress, run_of
from forerun.tools.loops import looping
from forerun.tools.prompt_files import Prompt, read_prompts, read_suite, spread

SHAPES = ("chain:7", "tree:16")
TEMPERATURES = (0.0, 0.7, 1.0)
MOST = 16  # kept tokens of a round that have a column of their own
# The embedded family was trained on Python source: these categories are that, all others are not.
IN_DOMAIN = ("novel_code", "edit", "docstrings")
NUM_RESAMPLES = 1000
RECORDED, RECORDED_TEMPERATURE = (2, 4, 7), 0.7  # what `engine/discovery.py` asks for

Kept = NDArray[np.float64]  # [MOST + 1] rounds by how many drafted tokens were kept


@dataclass(frozen=True, slots=True)
class Asked:
    """A drafter, a shape and a temperature."""

    drafter: str
    shape: str
    temperature: float


def main() -> int:
    """Count, print the table, write the file."""
    options = _arguments()
    prompts = read_prompts(options.prompts) if options.prompts else read_suite(options.suite)
    chosen = spread(prompts, options.limit)
    try:
        rows = list(_rows(options, chosen))
    except ForerunError as error:
        print(f"accepted: {error}", file=sys.stderr)
        return 1
    report = {
        "what": "accepted",
        "date": date.today().isoformat(),
        "command": "python benchmarks/accepted.py " + shlex.join(sys.argv[1:]),
        "machine": machine.machine_name(),
        "model": options.model,
        "num_prompts": len(chosen),
        "max_tokens": options.max_tokens,
        "in_domain": list(IN_DOMAIN),
        "rows": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.record:
        record(options.model, rows)
    _print(rows)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model", default="forerun-code")
    add("--drafters", nargs="+", default=["dspark", "eagle3", "lm"], help="as --drafter takes them")
    add("--shapes", nargs="+", default=list(SHAPES))
    add("--temperatures", type=float, nargs="+", default=list(TEMPERATURES))
    add("--suite", default="all", help="categories of the suite, by commas")
    add("--prompts", type=Path, help="JSONL with a prompt key, not the suite")
    add("--limit", type=int, default=0, help="prompts, spread over the suite; 0: all")
    add("--max-tokens", type=int, default=96)
    add("--threads", type=int)
    add("--record", action="store_true", help="write chains' yield at T=0.7 where `auto` reads it")
    add("--out", type=Path, required=True, help="the JSON file to write")
    return parser.parse_args()


def record(model: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write into the config of the model's own drafters what their chains yield, by length."""
    for row in rows:
        directory = resolve_model(model) / "drafters" / row["drafter"]
        is_asked = row["shape"].startswith("chain:") and row["temperature"] == RECORDED_TEMPERATURE
        if not is_asked or not directory.is_dir():
            continue
        path = directory / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        reached = np.cumsum([1.0, *row["reached"]])
        yields = {str(n): round(float(reached[min(n, len(reached) - 1)]), 2) for n in RECORDED}
        config["forerun"] = config.get("forerun", {}) | {"tokens_per_round": yields}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _rows(options: argparse.Namespace, prompts: Sequence[Prompt]) -> Iterator[dict[str, Any]]:
    for drafter in options.drafters:
        for shape in options.shapes:
            speculation = Speculation(drafter, shape)
            with Engine(options.model, speculate=speculation, threads=options.threads) as engine:
                for temperature in options.temperatures:
                    asked = Asked(drafter, shape, temperature)
                    kept = np.array(list(_counted(engine, asked, prompts, options.max_tokens)))
                    yield row_of(asked, prompts, kept)
    progress("")


def _counted(
    engine: Engine, asked: Asked, prompts: Sequence[Prompt], max_tokens: int
) -> Iterator[Kept]:
    for number, prompt in enumerate(prompts):
        progress(f"{asked.drafter} {asked.shape} T={asked.temperature:g} {number + 1}")
        params = SamplingParams(
            temperature=asked.temperature,
            seed=0,
            choice=number,
            max_tokens=max_tokens,
            ignore_eos=True,
        )
        yield kept_of(engine.generate(prompt.text, params)[0])


def kept_of(completion: Completion) -> Kept:
    """Rounds of one completion by how many drafted tokens they kept, loops left out."""
    run = run_of(completion)
    marks = looping(run.token_ids)
    start = len(marks) - run.num_decoded
    counts = np.zeros(MOST + 1)
    for one in run.rounds[:-1]:
        inside = marks[start : start + one.num_tokens]
        start += one.num_tokens
        counts[min(MOST, one.num_tokens - 1)] += 1 - sum(inside) / one.num_tokens
    return counts


def row_of(asked: Asked, prompts: Sequence[Prompt], kept: NDArray[np.float64]) -> dict[str, Any]:
    """All figures of one drafter; `kept [P, MOST + 1]` are its rounds, prompt by prompt."""
    domains = ["in domain" if one.category in IN_DOMAIN else "out of domain" for one in prompts]
    labels = {
        "domains": domains,
        "categories": [one.category for one in prompts],
        "contexts": [one.context for one in prompts],
    }
    return {
        "drafter": asked.drafter,
        "shape": asked.shape,
        "temperature": asked.temperature,
        **figures_of(kept),
        **{name: _grouped(own, kept) for name, own in labels.items()},
    }


def _grouped(labels: Sequence[str], kept: NDArray[np.float64]) -> Mapping[str, Any]:
    return {
        name: figures_of(kept[np.array([one == name for one in labels])])
        for name in sorted(set(labels) - {""})
    }


def figures_of(kept: NDArray[np.float64]) -> dict[str, Any]:
    """Of prompts `[P, MOST + 1]`: tokens a round with its interval, and how far rounds reached.

    The interval resamples prompts; None where no round is outside loops.
    """
    rounds = kept.sum()
    if not rounds:
        return {"num_prompts": len(kept), "num_rounds": 0.0, "tokens_per_round": None}
    picked = np.random.default_rng(0).integers(len(kept), size=(NUM_RESAMPLES, len(kept)))
    resampled = _tokens_per_round(kept[picked].sum(axis=1))
    low, high = np.nanquantile(resampled, (0.025, 0.975)).tolist()
    reached = kept.sum(axis=0)[::-1].cumsum()[::-1] / rounds
    return {
        "num_prompts": len(kept),
        "num_rounds": float(rounds),
        "tokens_per_round": float(_tokens_per_round(kept.sum(axis=0))),
        "tokens_per_round_ci95": [low, high],
        "reached": reached[1 : 1 + int(np.count_nonzero(reached[1:]))].tolist(),
    }


def _tokens_per_round(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of rounds `[..., MOST + 1]` by kept tokens: kept and bonus."""
    rounds = counts.sum(axis=-1)
    tokens = counts @ np.arange(1.0, MOST + 2)
    ratio: NDArray[np.float64] = np.divide(
        tokens, rounds, np.full(rounds.shape, np.nan), where=rounds > 0
    )
    return ratio


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"{'drafter':12}{'shape':10}{'T':>5}{'tokens/round':>14}  reached, position by position")
    for row in rows:
        if row["tokens_per_round"] is None:
            continue
        reached = " ".join(f"{one:.2f}" for one in row["reached"])
        print(
            f"{row['drafter']:12}{row['shape']:10}{row['temperature']:5g}"
            f"{row['tokens_per_round']:14.2f}  {reached}"
        )


if __name__ == "__main__":
    sys.exit(main())
