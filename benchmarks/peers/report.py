"""From runs to figures, a table and a picture. Must not run engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap
from operator import eq
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from race import Outcome, rate_of
from rich.console import Console
from rich.table import Table

from forerun.tools.loops import loop_share

_NUM_RESAMPLES = 2000
_FIGURE_INCHES = (9.0, 0.32)  # width, height of a bar

Key = tuple[int, int, int]  # group, repeat, prompt
Runs = Mapping[Key, Mapping[str, Any]]


def rows_of(outcomes: Mapping[tuple[str, str], Outcome]) -> list[dict[str, Any]]:
    """One row an entrant, with the keys scripts build on; without runs, `reason` says why."""
    baseline = outcomes["forerun", "plain"].runs
    return [_row(outcome, baseline) for outcome in outcomes.values()]


def _row(outcome: Outcome, baseline: Runs) -> dict[str, Any]:
    return {
        "engine": outcome.peer.title,
        "mode": outcome.mode.name,
        "same_weights": outcome.mode.same_weights,
        "versions": dict(outcome.versions),
        "threads": outcome.threads,
        "options": dict(outcome.options),
        "trials": outcome.trials,
        "idle_cpu_share": outcome.idle_share,
        "forward_s": {str(count): seconds for count, seconds in outcome.forwards_s.items()},
        "reason": outcome.reason,
        **(_figures(outcome.runs, baseline) if outcome.runs else {}),
    }


def _figures(runs: Runs, baseline: Runs) -> dict[str, Any]:
    """Rates are medians over prompts of medians over runs; ratios pair runs of the same turn."""
    ratios = {key: rate_of(run) / rate_of(baseline[key]) for key, run in runs.items()}
    rate, *rate_interval = _median_and_interval(
        _by_prompt({k: rate_of(r) for k, r in runs.items()})
    )
    ratio, *ratio_interval = _median_and_interval(_by_prompt(ratios))
    equal = [
        same
        for key, run in runs.items()
        for same in starmap(eq, zip(run["token_ids"], baseline[key]["token_ids"], strict=True))
    ]
    return {
        "tokens_per_s": rate,
        "tokens_per_s_ci95": rate_interval,
        "ratio_to_forerun_plain": ratio,
        "ratio_ci95": ratio_interval,
        "first_token_s": median(run["first_s"] for run in runs.values()),
        "equal_tokens": sum(equal) / len(equal),
        "loop_share": loop_share(run["token_ids"] for run in runs.values()),
        "num_runs": len(runs),
        "runs": [
            {"group": key[0], "repeat": key[1], "prompt": key[2]}
            | {name: run[name] for name in ("num_first", "first_s", "rest_s")}
            for key, run in runs.items()
        ],
    }


def _by_prompt(values: Mapping[Key, float]) -> list[list[float]]:
    prompts: dict[int, list[float]] = {}
    for (_, _, prompt), value in values.items():
        prompts.setdefault(prompt, []).append(value)
    return list(prompts.values())


def _median_and_interval(by_prompt: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Median over prompts of each one's median, and its 95 % bootstrap interval over prompts."""
    medians = np.array([median(values) for values in by_prompt])
    generator = np.random.default_rng(0)
    picks = generator.integers(len(medians), size=(_NUM_RESAMPLES, len(medians)))
    low, high = np.quantile(np.median(medians[picks], axis=1), (0.025, 0.975))
    return float(np.median(medians)), float(low), float(high)


def show(report: Mapping[str, Any], console: Console) -> None:
    """The table for people; an engine that did not run is a row that says why."""
    console.print(
        f"{report['model']} · {report['num_prompts']} prompts, {report['max_tokens']} tokens,"
        f" greedy · {report['machine']} · {report['date']}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("engine, mode", "tokens/s (95 %)", "÷ forerun plain", "equal", "loops", "with"):
        is_text = heading in ("engine, mode", "with")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in report["rows"]:
        if "tokens_per_s" in row:
            table.add_row(*_cells(row))
    console.print(table)
    for row in report["rows"]:
        if row["reason"]:
            failed = "stopped early" if "tokens_per_s" in row else "did not run"
            console.print(f"{row['engine']}, {row['mode']} {failed}: {row['reason']}", markup=False)
    if report["floor_tokens_per_s"]:
        console.print(f"floor of plain decoding: {report['floor_tokens_per_s']:.1f} tokens/s")


def _cells(row: Mapping[str, Any]) -> list[str]:
    settings = [f"{row['threads']} threads"]
    if "num_draft" in row["options"]:
        settings.append(f"{row['options']['num_draft']} drafted")
    if not row["same_weights"]:
        settings.append("other weights")
    rates, ratios = row["tokens_per_s_ci95"], row["ratio_ci95"]
    return [
        f"{row['engine']}, {row['mode']}",
        f"{row['tokens_per_s']:.1f} ({rates[0]:.1f}–{rates[1]:.1f})",  # noqa: RUF001
        f"{row['ratio_to_forerun_plain']:.2f} ({ratios[0]:.2f}–{ratios[1]:.2f})",  # noqa: RUF001
        f"{row['equal_tokens']:.0%}",
        f"{row['loop_share']:.0%}",
        ", ".join(settings),
    ]


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Bars of tokens per second with their intervals, and the floor of plain decoding as a line."""
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if "tokens_per_s" in row]
    width, bar = _FIGURE_INCHES
    figure = Figure(figsize=(width, 1.4 + bar * len(rows)), layout="constrained")
    axes = figure.subplots()
    rates = [row["tokens_per_s"] for row in rows]
    errors = [
        [rate - row["tokens_per_s_ci95"][0] for rate, row in zip(rates, rows, strict=True)],
        [row["tokens_per_s_ci95"][1] - rate for rate, row in zip(rates, rows, strict=True)],
    ]
    names = [f"{row['engine']}, {row['mode']}" for row in rows]
    axes.barh(names, rates, xerr=errors, color=[_colour(row) for row in rows], capsize=2)
    axes.invert_yaxis()
    if report["floor_tokens_per_s"]:
        axes.axvline(report["floor_tokens_per_s"], color="black", linestyle="--", linewidth=1)
        axes.set_title("dashed: floor of plain decoding", loc="right", fontsize=8)
    axes.set_xlabel(f"tokens/s, greedy, {report['max_tokens']} tokens · {report['machine']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _colour(row: Mapping[str, Any]) -> str:
    if not row["same_weights"]:
        return "lightgray"
    own = row["engine"] == "forerun"
    is_plain = row["mode"] in ("plain", "compiled")
    return {
        (True, True): "darkseagreen",
        (True, False): "seagreen",
        (False, True): "lightsteelblue",
        (False, False): "steelblue",
    }[own, is_plain]
