"""Which loss teaches a block drafter most in equally many steps: expected tokens a round.

    python benchmarks/losses.py --corpus corpus --text text --work build/losses --out losses.json

Every loss trains the same drafter from the same start on the same batches of the same seeds, for
as many steps; what each drafter then yields is counted on the same held-out text of the target
(`forerun train expect`), without an engine and without a clock. Repeat the command to go on after
an interruption. Two seeds show how far apart equal things may lie.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from forerun.tools.bench_decode import progress
from forerun.tools.machine import machine_name

LOSSES = {
    "cross-entropy, decay": ("--hard-share", "1"),
    "KL, decay": (),
    "KL, D-PACE": ("--weights", "pace"),
    "L1, decay": ("--divergence", "l1"),
}
NO_CLOCK = ("--minutes", "1", "--examine-every", "1000000", "--engine", "eager")


@dataclass(frozen=True, slots=True)
class Row:
    """What one loss came to: tokens a round by temperature, a list of seeds each."""

    loss: str
    num_steps: int
    seeds: tuple[int, ...]
    tokens_per_round: dict[str, list[float]]
    right_by_position: dict[str, list[float]]  # of the last seed


def main() -> int:
    """Train what is not trained yet, count, print the table, write the rows."""
    options = _arguments()
    heldout = options.work / "heldout.npz"
    rows = []
    for loss, arguments in LOSSES.items():
        yields = []
        for seed in options.seeds:
            progress(f"{loss}, seed {seed}")
            out = options.work / f"{'-'.join(loss.replace(',', '').lower().split())}-{seed}"
            yields.append(_yield_of(options, out, heldout, ("--seed", str(seed), *arguments)))
        rows.append(_row(loss, options, yields))
    progress("")
    report = {
        "what": "losses",
        "command": "python benchmarks/losses.py " + " ".join(sys.argv[1:]),
        "machine": machine_name(),
        "model": options.model,
        "rows": [asdict(row) for row in rows],
    }
    Console().print(_table(rows))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _yield_of(
    options: argparse.Namespace, out: Path, heldout: Path, arguments: tuple[str, ...]
) -> dict[str, Any]:
    """Figures by temperature of a drafter that was trained with these arguments."""
    figures = out / "figures.json"
    if not figures.exists():
        if heldout.exists():  # made once, by the first: the same text for all
            (out / "run").mkdir(parents=True, exist_ok=True)
            shutil.copy(heldout, out / "run" / "heldout.npz")
        source = ("--model", options.model, "--corpus", str(options.corpus))
        text = tuple(part for path in options.text for part in ("--text", str(path)))
        size = (
            *("--layers", str(options.layers), "--rows", str(options.rows)),
            *("--dense-steps", str(options.steps // 4), "--threads", str(options.threads)),
            *("--anchors", "64", "--max-steps", str(options.steps), "--markov-kind", "vanilla"),
        )
        _train("dspark", "--out", str(out), *NO_CLOCK, *source, *text, *size, *arguments)
        if not heldout.exists():
            shutil.copy(out / "run" / "heldout.npz", heldout)
        examined = ("--model", options.model, "--text", str(heldout), "--rows", "24", "--json")
        said = _train("expect", str(out), *examined, "--threads", str(options.threads))
        figures.write_text(said)
    read: dict[str, Any] = json.loads(figures.read_text())
    return read


def _train(*arguments: str) -> str:
    command = [sys.executable, "-m", "forerun.cli", "train", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _row(loss: str, options: argparse.Namespace, yields: list[dict[str, Any]]) -> Row:
    names = list(yields[0])
    return Row(
        loss,
        options.steps,
        tuple(options.seeds),
        {name: [one[name]["tokens_per_round"] for one in yields] for name in names},
        {name: yields[-1][name]["by_position"] for name in names},
    )


def _table(rows: list[Row]) -> Table:
    table = Table(title=f"tokens a round after {rows[0].num_steps} steps, mean (each seed)")
    table.add_column("loss")
    for name in rows[0].tokens_per_round:
        table.add_column(name)
    for row in rows:
        cells = (
            f"{mean(each):.2f} ({', '.join(f'{one:.2f}' for one in each)})"
            for each in row.tokens_per_round.values()
        )
        table.add_row(row.loss, *cells)
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="forerun-code", help="whose drafters")
    parser.add_argument("--corpus", type=Path, required=True, help="of `forerun train corpus`")
    parser.add_argument(
        "--text", type=Path, nargs="+", required=True, help="of `forerun train text`"
    )
    parser.add_argument("--work", type=Path, required=True, help="where the drafters are kept")
    parser.add_argument("--steps", type=int, default=240, help="of every training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="trainings of a loss")
    parser.add_argument("--layers", type=int, default=2, help="of the drafters")
    parser.add_argument("--rows", type=int, default=4, help="windows a step")
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument("--out", type=Path, default=None, help="write JSON")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
