"""Forecasts as a page: how often the outcome that came was prepared, by branches and drafter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lanes_page import hit_bars, hit_verdict
from page import Report, header, line, optional, source


def forecasts_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Of each file a row a drafter, shape and temperature, a column a number of branches."""
    del folder
    for report in reports:
        yield f"## Outcomes that were prepared, on {Path(report['model']).name}\n"
        yield source(report)
        yield (
            "Counted, not timed: forecasts are whole, misses are drafted anew. Share of outcomes"
            " among the B prepared, outside loops; in brackets with them. The bar of the best of"
            f" them outside loops is {hit_bars()}, for chains and trees alike."
            " *Tokens a round* at the most branches, beside those of the sequential schedule: a"
            " drafter that needs features foresees without them, and that is its tax.\n"
        )
        branches = sorted({row["branches"] for row in report["rows"]})
        yield from header(
            "drafter", "shape", "T", *(f"B = {number}" for number in branches), "bar", "",
            "tokens a round", "sequential", "same tokens",
        )  # fmt: skip
        yield from _lines(report, branches)
        yield ""


def _lines(report: Report, branches: Sequence[int]) -> Iterator[str]:
    keys = dict.fromkeys(
        (row["drafter"], row["shape"], row["temperature"]) for row in report["rows"]
    )
    for drafter, shape, temperature in keys:
        own = {
            row["branches"]: row
            for row in report["rows"]
            if (row["drafter"], row["shape"], row["temperature"]) == (drafter, shape, temperature)
        }
        cells = [_cell(own.get(number)) for number in branches]
        last = own[max(own)]
        rates = [row["hit_rate_without_loops"] for row in own.values()]
        best = max((one for one in rates if one is not None), default=None)
        yield line(
            drafter, shape, f"{temperature:g}", *cells, *hit_verdict(temperature, best),
            f"{last['tokens_per_round']:.2f}",
            f"{last['tokens_per_round_sequential']:.2f}",
            "yes" if all(row["identical"] for row in own.values()) else "**no**",
        )  # fmt: skip


def _cell(row: Report | None) -> str:
    if row is None:
        return ""
    return f"{optional(row['hit_rate_without_loops'], '.1%')} ({row['hit_rate']:.0%})"
