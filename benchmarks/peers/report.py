"""From runs to figures, a table and a picture. Must not run engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap
from operator import eq
from pathlib import Path
from statistics import median
from typing import Any

from entrants import Outcome
from rich.console import Console
from rich.table import Table

from forerun.tools.loops import loop_share
from forerun.tools.pairs import Pair, Round, Run, ratio_without_loops, speedup

_CLOCK = Run((), (Round(1, 1.0, 0.0, 0.0),))
_ONE_PASS_S = 1e-4  # sooner than any pass: tokens that an engine hands over one by one
_FIGURE_INCHES = (9.0, 0.32)  # width, height of a bar

Key = tuple[int, int, int]  # group, repeat, prompt
Runs = Mapping[Key, Mapping[str, Any]]


def rows_of(
    outcomes: Mapping[tuple[str, str], Outcome], categories: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row an entrant, with the keys scripts build on; without runs, `reason` says why.

    `categories` are the prompts' own; a row then has a ratio for each.
    """
    baseline = outcomes["forerun", "plain"].runs
    return [_row(outcome, baseline, categories) for outcome in outcomes.values()]


def _row(outcome: Outcome, baseline: Runs, categories: Sequence[str]) -> dict[str, Any]:
    has_pairs = not baseline.keys().isdisjoint(outcome.runs)
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
        **(_figures(outcome.runs, baseline, categories) if has_pairs else {}),
    }


def _figures(runs: Runs, baseline: Runs, categories: Sequence[str]) -> dict[str, Any]:
    """Rates and ratios are those of `tools/pairs`: plain is forerun's of the same turn."""
    pairs = _pairs(runs, baseline)
    rate, against_plain = speedup(_against_the_clock(pairs)), speedup(list(pairs.values()))
    equal = [
        same
        for group in pairs.values()
        for pair in group
        for same in starmap(eq, zip(*(one.token_ids for one in _sides(pair)), strict=True))
    ]
    return {
        "tokens_per_s": rate.ratio,
        "tokens_per_s_ci95": [rate.low, rate.high],
        "ratio_to_forerun_plain": against_plain.ratio,
        "ratio_ci95": [against_plain.low, against_plain.high],
        "ratio_without_loops": ratio_without_loops(list(pairs.values())),
        "first_token_s": median(run["first_s"] for run in runs.values()),
        "equal_tokens": sum(equal) / len(equal),
        "loop_share": loop_share(run["token_ids"] for run in runs.values()),
        "num_runs": len(runs),
        "categories": _categories(pairs, categories),
        "runs": [
            {"group": key[0], "repeat": key[1], "prompt": key[2]}
            | {name: run[name] for name in ("num_first", "first_s", "rest_s")}
            for key, run in runs.items()
        ],
    }


def _categories(
    pairs: Mapping[int, Sequence[Pair]], categories: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The ratio of each category that has a name and prompts that were run."""
    figures = {}
    for name in sorted({categories[prompt] for prompt in pairs if categories} - {""}):
        own = [group for prompt, group in pairs.items() if categories[prompt] == name]
        speed = speedup(own)
        figures[name] = {
            "num_prompts": len(own),
            "ratio_to_forerun_plain": speed.ratio,
            "ratio_ci95": [speed.low, speed.high],
            "ratio_without_loops": ratio_without_loops(own),
        }
    return figures


def _pairs(runs: Runs, baseline: Runs) -> dict[int, list[Pair]]:
    """By prompt, as many of each: where an engine stopped early, what it did not finish is cut."""
    pairs: dict[int, list[Pair]] = {}
    for key, run in runs.items():
        if key in baseline:
            pairs.setdefault(key[2], []).append(Pair(_run(baseline[key]), _run(run)))
    fewest = min(map(len, pairs.values()))
    return {prompt: group[:fewest] for prompt, group in pairs.items()}


def _run(run: Mapping[str, Any]) -> Run:
    """A driver's answer; the first chunk, which waited for the prompt, is no round."""
    rounds: list[Round] = []
    for num_tokens, seconds in run["arrivals"]:
        if rounds and seconds < _ONE_PASS_S:
            num_tokens, seconds = rounds[-1].num_tokens + num_tokens, rounds.pop().round_s + seconds
        rounds.append(Round(num_tokens, seconds, 0.0, 0.0))
    return Run(tuple(run["token_ids"]), tuple(rounds))


def _against_the_clock(pairs: Mapping[int, Sequence[Pair]]) -> list[list[Pair]]:
    """Each run against one that makes a token a second: its ratio to that is tokens per second."""
    return [[Pair(_CLOCK, pair.speculative) for pair in group] for group in pairs.values()]


def _sides(pair: Pair) -> tuple[Run, Run]:
    return pair.plain, pair.speculative


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
    if "swept" in report:
        console.print(_settings(report["swept"]), soft_wrap=True)
    _show_categories(report["rows"], console)
    for row in report["rows"]:
        if row["reason"]:
            failed = "stopped early" if "tokens_per_s" in row else "did not run"
            console.print(f"{row['engine']}, {row['mode']} {failed}: {row['reason']}", markup=False)
    if report["floor_tokens_per_s"]:
        console.print(f"floor of plain decoding: {report['floor_tokens_per_s']:.1f} tokens/s")


def _settings(swept: Mapping[str, Any]) -> str:
    threads, lengths = (", ".join(map(str, swept[key])) for key in ("threads", "num_draft"))
    return (
        f"settings: each engine's fastest of {threads} threads and {lengths} drafted tokens,"
        f" on {swept['num_prompts']} prompts, {swept['max_tokens']} tokens each"
    )


def _show_categories(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The ratio to forerun's plain decoding in each category of prompts."""
    known = [row for row in rows if row.get("categories")]
    names = sorted({name for row in known for name in row["categories"]})
    if not known:
        return
    table = Table(box=None, pad_edge=False, title="÷ forerun plain, by category")
    table.add_column("engine, mode", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in known:
        cells = [row["categories"].get(name) for name in names]
        ratios = ["—" if one is None else f"{one['ratio_to_forerun_plain']:.2f}" for one in cells]
        table.add_row(f"{row['engine']}, {row['mode']}", *ratios)
    console.print(table)


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
