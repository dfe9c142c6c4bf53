"""Lanes that break as a page: what is left of the speed, what was logged, how often they rested."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from page import Report, header, line, source

LEAST = 0.9  # of plain decoding, whatever the lane does


def faults_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Of each file a row a fault."""
    del folder
    for report in reports:
        yield f"## A drafter's lane that breaks, on {Path(report['model']).name}\n"
        yield source(report)
        if any("num_rests" not in row for row in report["rows"]):
            yield (
                "This file is of before rests and the log were kept, and its faults were others."
                " Nothing of it is shown: run its command again.\n"
            )
            continue
        yield (
            "Each fault strikes behind the drafter's second answer and stays"
            " (`benchmarks/lane_faults.py` says what each is). Tokens a second ÷ plain decoding on"
            f" the target's core alone; the bar is {LEAST:g}. Above 1, `lookup` drafts where the"
            " lane does not. *Lane busy*: of the time of all rounds.\n"
        )
        yield from header(
            "fault", "÷ plain", "worst prompt", "", "hits of rounds", "lane busy", "rested",
            "first line of log", "same tokens",
        )  # fmt: skip
        for row in report["rows"]:
            yield _line(row)
        yield ""
        yield from _never_rested(report)


def _line(row: Report) -> str:
    return line(
        row["fault"], f"{row['ratio']:.2f}", f"{row['worst_ratio']:.2f}",
        "met" if row["ratio"] >= LEAST else "**missed**",
        f"{row['num_hits']} of {row['num_rounds']}", f"{row['busy_share']:.0%}",
        str(row["num_rests"]), row["logged"][0] if row["logged"] else "",
        "yes" if row["identical"] else "**no**",
    )  # fmt: skip


def _never_rested(report: Report) -> Iterator[str]:
    """Faults that nobody saw, in words."""
    names = [
        row["fault"] for row in report["rows"] if row["fault"] != "none" and not row["num_rests"]
    ]
    if names:
        yield (
            f"Never rested: {', '.join(names)}. Nothing there breaks the drafter's contract, and"
            " never were 32 outcomes in a row missing from its forecasts.\n"
        )
