"""Reports as tables for people; numbers with their floor or baseline beside them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show_forward(report: dict[str, Any]) -> None:
    """`bench forward`: milliseconds, floor, and how far above it."""
    timed = "step" if report["propose"] else "pass"
    console = Console()
    console.print(
        f"{report['model']}, {report['parameters'] / 1e6:.0f}M parameters, bf16 ·"
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
    """`bench decode`: one line a prompt, then all together against the baseline."""
    console = Console()
    console.print(
        f"{report['model']} · {report['drafter']}, {report['shape']} ·"
        f" temperature {report['temperature']:g} · {report['machine']}",
        soft_wrap=True,
    )
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
    console.print(table)
    console.print(_verdict(report), soft_wrap=True)


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
