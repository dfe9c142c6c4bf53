"""Drafting on a lane of its own, each model on its own core: does it pay, and what limits it?

    python benchmarks/lanes.py --json benchmarks/results/lanes-260M.json
    python benchmarks/lanes.py --drafters 24x3 --limit 4 --temperatures 0 --branches 8

Drafters are the embedded `lm`, enlarged to so many megabytes with its bits kept; `24x3` runs every
pass of the 24 MB one three times, as one of three times the depth with shared weights would: what
rests in cache is quick here, and the table wants drafters that take longer without reading more.
By default drafting takes about 0.3, 0.5 and 0.8 of a verification, once by a drafter that fits a
cache of 32 MB, and once by one that does not.
For each: on prompts of the suite `sequential` and `ahead` on the same two lanes, each with its
fastest length and branches, and `sequential` with both cores for both models; then with the length
and branches that `ahead` had the concurrency limit (both models' loops side by side, no hand-over),
and rounds a second when every outcome is a hit (drafts are told, passes are real) against it. Runs
take turns; needs 2 cores.
With `--shape tree` all of these draft trees (`--lengths` are nodes), and chains ahead, of
`--chain-lengths`, run in turns with them: the last column is trees ahead ÷ chains ahead.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from inflate import Enlargement, write_one
from lane_limits import Settings, limits_of
from lane_races import CHAIN, Race, raced

from forerun.errors import ForerunError
from forerun.models.resolve import resolve_model
from forerun.models.weights import open_checkpoint
from forerun.tools.bench_decode import progress
from forerun.tools.inflation import LEAST_RATIO, SIZES, drafter_spec
from forerun.tools.machine import machine_name
from forerun.tools.prompt_files import CONTEXT_LENS, read_suite, spread


@dataclass(frozen=True, slots=True)
class Sized:
    """A drafter of so many megabytes, every pass of which is run `num_times`."""

    megabytes: int
    num_times: int
    directory: Path

    @property
    def name(self) -> str:
        times = f" × {self.num_times}" if self.num_times > 1 else ""
        return f"{self.megabytes} MB{times}"


def main() -> int:
    """0: measured. 2: refused, with a sentence."""
    options = _parser().parse_args()
    try:
        report = measured(options)
    except ForerunError as error:
        print(f"lanes: {error}", file=sys.stderr)
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(report)
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The whole table as plain data."""
    suite = [one for one in read_suite("all") if one.context in options.contexts]
    prompts = spread(suite, options.limit)
    rows = []
    for sized in [_sized(word, options.work) for word in options.drafters.split(",")]:
        limits: dict[Settings, dict[str, Any]] = {}
        for temperature in options.temperatures:
            race = Race(
                options.model, sized, temperature, options.max_tokens, options.repeat,
                options.lengths, options.branches, options.shape, options.chain_lengths,
            )  # fmt: skip
            progress(f"{sized.name}: T={temperature:g}")
            row = raced(race, prompts)
            settings = _settings(row)
            if settings not in limits:
                progress(f"{sized.name}: limits")
                limits[settings] = limits_of(options.model, sized, settings, options.rounds)
            rows.append({"drafter": sized.name, **limits[settings], **row})
    runs = [
        one | {"name": f"{row['drafter']}, {one['name']}"}
        for row in rows
        for one in row.pop("runs")
    ]
    return {
        "what": "lanes",
        "shape": options.shape,
        "date": date.today().isoformat(),
        "command": "python benchmarks/lanes.py " + shlex.join(sys.argv[1:]),
        "machine": machine_name(),
        "model": str(options.model),
        "num_prompts": len(prompts),
        "max_tokens": options.max_tokens,
        "rows": rows,
        "runs": runs,
    }


def _settings(row: dict[str, Any]) -> Settings:
    """Those of chains ahead that were fastest: what limits are measured with."""
    schedule, length = row["settings"].get(CHAIN, row["settings"]["ahead"])
    return Settings(length, int(schedule.partition(":")[2]))


def _sized(word: str, work: Path) -> Sized:
    """`24` or `24x3`; written where it is not there yet."""
    size, _, times = word.partition("x")
    megabytes = int(size)
    directory = work / f"lm-{megabytes}"
    if not directory.is_dir():
        source = open_checkpoint(resolve_model("forerun-code") / "drafters" / "lm")
        target_bytes = int(megabytes * 1e6 / LEAST_RATIO["lm"])
        spec = drafter_spec(source.spec, "lm", SIZES["260M"], target_bytes)
        write_one(Enlargement(source, spec), directory)
    return Sized(megabytes, int(times or 1), directory)


def _print(report: dict[str, Any]) -> None:
    heads = (
        "drafter T s limit all-hits÷limit hit seq÷plain ahead÷plain ahead÷seq both÷plain same"
        " tree÷chain"
    )
    print(f"{report['machine']}, {report['model']}, {report['num_prompts']} prompts")
    print(("{:>16}" * 12).format(*heads.split()))
    for row in report["rows"]:
        cells = (
            row["drafter"], f"{row['temperature']:g}", f"{row['draft_share']:.2f}",
            f"{row['limit_rounds_per_s']:.1f}/s", f"{row['all_hits_ratio']:.2f}",
            f"{row['hit_rate']:.2f}", f"{row['sequential_ratio']:.2f}",
            f"{row['ahead_ratio']:.2f}", f"{row['ahead_over_sequential']:.2f}",
            f"{row['both_cores_ratio']:.2f}", f"{row['identical']}", _over_chains(row),
        )  # fmt: skip
        print(("{:>16}" * 12).format(*cells))
    best = [row["ahead_over_sequential"] for row in report["rows"]]
    print(f"ahead ÷ sequential, median of the rows: {median(best):.2f}")


def _over_chains(row: dict[str, Any]) -> str:
    if "tree_over_chain" not in row:
        return "-"
    low, high = row["tree_over_chain_ci95"]
    return f"{row['tree_over_chain']:.2f} ({low:.2f} to {high:.2f})"


def _floats(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _counts(text: str) -> Sequence[int]:
    return [int(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, default=Path("build/260M-matched"), help="a target checkpoint")
    add(
        "--drafters",
        default="24x3,24x5,24x9,72,120,192",
        help="megabytes, each with xN for N times a pass",
    )
    add("--work", type=Path, default=Path("build/lanes"), help="where drafters are written")
    add("--temperatures", type=_floats, default=[0.0, 0.7])
    add("--limit", type=int, default=10, help="prompts, spread over the suite")
    add("--contexts", nargs="+", default=["64"], choices=[*CONTEXT_LENS], help="of these")
    add("--max-tokens", type=int, default=40)
    add("--repeat", type=int, default=1)
    add("--rounds", type=int, default=24, help="rounds that limits are measured over")
    add("--lengths", type=_counts, default=[2, 3, 4], help="draft lengths to choose from")
    add("--chain-lengths", type=_counts, default=[2, 4, 6], help="of chains beside trees")
    add("--branches", type=_counts, default=[1, 2, 4, 8, 16], help="how many, to choose from")
    add("--shape", default="chain", choices=("chain", "tree"))
    add("--json", type=Path)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
