"""Reports as tables for people; numbers with their floor or baseline beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def show_forward(report: dict[str, Any]) -> None:
    """`bench forward`: milliseconds, floor, and how far above it."""
    timed = "step" if report["propose"] else "pass"
    console = Console()
    console.print(
        f"{report['model']}, {report['parameters'] / 1e6:.0f}M parameters, {report['numerics']} ·"
        f" {report['threads']} threads, {report['isa']} · {report['machine']}",
        soft_wrap=True,
    )
    table = _table("tokens", "context", f"{timed} ms", "floor ms", "× floor", "× first", "GB/s")
    first: dict[int, float] = {}
    for row in report["rows"]:
        base = first.setdefault(row["context"], row["median_s"])
        table.add_row(
            str(row["num_tokens"]),
            str(row["context"]),
            f"{row['median_s'] * 1e3:.3f}",
            f"{row['floor_s'] * 1e3:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['median_s'] / base:.2f}",
            f"{row['bandwidth_bytes_per_s'] / 1e9:.1f}",
        )
    console.print(table)


def show_decode(report: dict[str, Any]) -> None:
    """`bench decode`: a line a prompt or a category, then all against the baseline."""
    console = Console()
    console.print(
        f"{report['model']} · {report['drafter']}, {report['shape']} ·"
        f" temperature {report['temperature']:g} · {report['machine']}",
        soft_wrap=True,
    )
    console.print(_suite_table(report) if report["categories"] else _prompt_table(report))
    console.print(_verdict(report), soft_wrap=True)
    if report.get("schedule"):
        console.print(f"schedule: {report['schedule']}", soft_wrap=True)


def _prompt_table(report: dict[str, Any]) -> Table:
    table = _table("prompt", "tokens", "plain/s", "spec./s", "ratio", "a round", "loops", "same")
    for one in report["prompts"]:
        table.add_row(
            one["name"],
            str(one["num_tokens"]),
            f"{one['plain_tokens_per_s']:.0f}",
            f"{one['tokens_per_s']:.0f}",
            f"{one['ratio']:.2f}",
            f"{one['tokens_per_round']:.2f}",
            f"{one['loop_share']:.0%}",
            "yes" if one["identical"] else "NO",
        )
    return table


def _suite_table(report: dict[str, Any]) -> Table:
    """A row a category and one for all of them, then by context and by entropy; 80 columns wide."""
    table = _table(
        "category", "n", "plain/s", "spec./s", "ratio", "95 %", "outside", "round", "loops"
    )
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
    ours = report["speculative"]
    total = {
        **report,
        **ours,
        "num_prompts": len(report["prompts"]),
        "plain_tokens_per_s": report["baseline"]["tokens_per_s"],
    }
    _add_rows(table, [(one["category"], one) for one in report["categories"]])
    _add_rows(table, [("total", total)])
    _add_rows(table, [(f"context {one['context']}", one) for one in report["contexts"]])
    _add_rows(table, [(f"{one['entropy']} entropy", one) for one in report["entropies"]])
    return table


def _add_rows(table: Table, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    for name, one in rows:
        low, high = one["ratio_ci95"]
        without = one["ratio_without_loops"]
        table.add_row(
            name,
            str(one["num_prompts"]),
            f"{one['plain_tokens_per_s']:.0f}",
            f"{one['tokens_per_s']:.0f}",
            f"{one['ratio']:.2f}" if one["identical"] else "NOT SAME",
            f"{low:.2f}\N{EN DASH}{high:.2f}",
            "none" if without is None else f"{without:.2f}",
            f"{one['tokens_per_round']:.2f}",
            f"{one['loop_share']:.0%}",
        )
    table.add_section()


def _verdict(report: dict[str, Any]) -> str:
    ours, (low, high) = report["speculative"], report["ratio_ci95"]
    without = report["ratio_without_loops"]
    outside = "no token outside loops" if without is None else f"{without:.2f} outside loops"
    return (
        f"{ours['tokens_per_s']:.0f} tokens/s, plain {report['baseline']['tokens_per_s']:.0f}:"
        f" ratio {report['ratio']:.2f} (95 % {low:.2f} to {high:.2f}), {outside};"
        f" {ours['tokens_per_round']:.2f} tokens a round, {ours['draft_share']:.0%} of the time"
        f" drafting, {ours['engine_s_per_round'] * 1e3:.3f} ms of engine a round,"
        f" {ours['loop_share']:.0%} in loops; identical: {'yes' if report['identical'] else 'NO'}"
    )


def _table(*columns: str) -> Table:
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table
