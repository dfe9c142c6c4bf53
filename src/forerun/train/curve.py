"""The loss curve of a run, and what a drafter yields meanwhile, as small PNGs.

Knows the logs of a training run. Must not know models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SMOOTHING = 25


def draw_curve(log: Path, out: Path, *, label: str) -> None:
    """Draw smoothed training loss over tokens seen, one line a window length."""
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(6.4, 3.2), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    for row_len in sorted({record["row_len"] for record in records}):
        of_len = [record for record in records if record["row_len"] == row_len]
        width = min(SMOOTHING if row_len < 1024 else 8, len(of_len))
        losses = np.convolve([r["loss"] for r in of_len], np.ones(width) / width, mode="valid")
        tokens = [record["num_tokens"] / 1e6 for record in of_len][width - 1 :]
        axes.plot(tokens, losses, label=f"windows of {row_len}", linewidth=1.2)
    _save(figure, axes, out, "training tokens, millions", label)


def draw_acceptance(log: Path, out: Path) -> None:
    """Draw tokens a round on held-out text over steps, one line a temperature."""
    from matplotlib.figure import Figure

    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(6.4, 3.2), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    for name in records[0]["tokens_per_round"]:
        yields = [record["tokens_per_round"][name] for record in records]
        steps = [record["step"] for record in records]
        axes.plot(steps, yields, label=name, linewidth=1.2, marker=".", markersize=3)
    _save(figure, axes, out, "steps", "tokens a round, held out")


def _save(figure: Any, axes: Any, out: Path, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
