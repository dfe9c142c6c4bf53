"""The table of methods as a page: every composition that was measured, the best, and the bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from page import Report, header, interval, line, optional, source, verdict


@dataclass(frozen=True, slots=True)
class Bar:
    """A goal set before measuring, and the cell that answers it."""

    words: str
    goal: float
    temperature: float
    methods: str
    category: str = ""
    kinds: tuple[str, ...] = ("auto", "chain")


# The best tree against the best chain of the same turns, by temperature.
TREE_GOALS = {0.0: 1.15, 0.7: 1.15}
BARS = (
    Bar("`lm` chain, matched, greedy, without loops", 1.8, 0.0, "lm matched"),
    Bar("`lm` chain, matched, T=0.7, without loops", 1.6, 0.7, "lm matched"),
    Bar("`lookup` on `edit`, greedy, all tokens", 3.0, 0.0, "lookup", "edit"),
)


def methods_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Tables of the first file of each model; further files of it are repetitions."""
    for model in dict.fromkeys(one["model"] for one in reports):
        first, *again = [one for one in reports if one["model"] == model]
        name = Path(model).name
        yield f"## Methods on {name}\n"
        yield source(first)
        picture = f"methods-{name}.png"
        draw_methods(first, folder / picture)
        yield f"![ratio to plain decoding, with the ratio the floors allow]({picture})\n"
        for table in first["tables"]:
            yield f"### T = {table['temperature']:g}\n"
            yield from method_table(table)
            yield ""
            yield from category_table(table)
            yield ""
        yield from best_table(first)
        for left_out, reason in first.get("skipped", {}).items():
            yield f"{left_out} was left out: {reason}.\n"
        yield from bar_table(first)
        for other in again:
            agree, num = agreement(first, other)
            yield f"Repeated: {agree} of {num} ratios agree within their intervals.\n"


def method_table(table: Report) -> Iterator[str]:
    """One row a composition."""
    yield from header(
        "method",
        "ratio",
        "95 %",
        "without loops",
        "floor ratio",
        "× floor",
        "tokens/round",
        "draft",
        "tokens/s/core",
        "GFLOP/token target + draft",
        "MB/token",
        "loops",
        "identical",
    )
    for row in table["rows"]:
        yield line(
            row["name"],
            f"{row['ratio']:.2f}",
            interval(row["ratio_ci95"]),
            optional(row["ratio_without_loops"]),
            optional(row["floor_ratio"]),
            optional(row["times_floor"]),
            f"{row['tokens_per_round']:.2f}",
            f"{row['draft_share']:.0%}",
            f"{row['tokens_per_s_per_core']:.1f}",
            in_units(row, "target_flops_per_token", 1e9, ".3g")
            + " + "
            + in_units(row, "draft_flops_per_token", 1e9, ".2g"),
            in_units(row, "bytes_per_token", 1e6, ".0f"),
            f"{row['loop_share']:.0%}",
            identical(row, table["temperature"]),
        )


def in_units(row: Report, figure: str, unit: float, form: str) -> str:
    """A figure in larger units, or a dash where it is not counted."""
    value = row[figure]
    return optional(None if value is None else value / unit, form)


def identical(row: Report, temperature: float) -> str:
    """Whether the tokens are plain decoding's; sampled rules promise only their law."""
    if row["identical"]:
        return "yes"
    is_promised = temperature == 0 or row.get("keeps_tokens", True)
    return "**no**" if is_promised else "not promised"


def best_table(report: Report) -> Iterator[str]:
    """Of each small model the fastest chain and tree, and the one against the other."""
    rows = [
        (table["temperature"], best) for table in report["tables"] for best in table.get("best", ())
    ]
    if not rows:
        return
    yield "Each the fastest by tokens/s in these same turns, among those that keep every token.\n"
    yield from header(
        "T", "best `lm` chain", "best `lm` tree", "tree ÷ chain", "95 %", "without loops"
    )
    for temperature, best in rows:
        names = [best["chain"] or "—", best["tree"] or "—"]
        figures = ["—"] * 3
        if "ratio" in best:
            outside = optional(best["ratio_without_loops"])
            figures = [f"{best['ratio']:.2f}", interval(best["ratio_ci95"]), outside]
        yield line(f"{temperature:g}", *names, *figures)
    yield ""


def category_table(table: Report) -> Iterator[str]:
    """The ratio of each category, without loops behind the stroke."""
    speculative = [row for row in table["rows"] if row["name"] != "plain"]
    if not speculative:
        return
    names = list(speculative[0]["categories"])
    yield from header("ratio / without loops", *names)
    for row in speculative:
        cells = [row["categories"][name] for name in names]
        yield line(
            row["name"],
            *(f"{one['ratio']:.2f} / {optional(one['ratio_without_loops'])}" for one in cells),
        )


def bar_table(report: Report) -> Iterator[str]:
    """The goals of this table; the best of the named compositions answers."""
    yield from header("bar", "goal", "came out", "")
    for bar in BARS:
        rows = [
            row
            for table in report["tables"]
            if table["temperature"] == bar.temperature
            for row in table["rows"]
            if row["name"].startswith(bar.methods) and row.get("kind", "chain") in bar.kinds
        ]
        figures = [
            row["categories"].get(bar.category, {}).get("ratio")
            if bar.category
            else row["ratio_without_loops"]
            for row in rows
        ]
        best = max((one for one in figures if one is not None), default=None)
        if best is not None:
            yield verdict(bar.words, bar.goal, best)
    yield from tree_bars(report)
    yield ""


def tree_bars(report: Report) -> Iterator[str]:
    """Trees against chains at the temperatures that have a goal; the matched drafter answers."""
    for table in report["tables"]:
        goal = TREE_GOALS.get(table["temperature"])
        ratios = [
            best["ratio"]
            for best in table.get("best", ())
            if "ratio" in best and best["tree"].startswith("lm matched")
        ]
        if goal is not None and ratios:
            words = f"best `lm` tree ÷ best `lm` chain, matched, T = {table['temperature']:g}"
            yield verdict(words, goal, max(ratios))


def agreement(first: Report, other: Report) -> tuple[int, int]:
    """How many ratios that two runs share have intervals that meet, of how many."""
    ours, theirs = cells(first), cells(other)
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
    return sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs), len(pairs)


def cells(report: Report) -> dict[tuple[float, str, str], Sequence[float]]:
    """The interval of every measured ratio: of a composition, and of each category under it."""
    return {
        (table["temperature"], row["name"], category): figures["ratio_ci95"]
        for table in report["tables"]
        for row in table["rows"]
        if row["name"] != "plain"
        for category, figures in {"": row, **row["categories"]}.items()
    }


def draw_methods(report: Report, path: Path) -> None:
    """Measured ratio with its interval, and beside it what the floors would allow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tables = report["tables"]
    height = max(3.4, 1.2 + 0.28 * len(tables[0]["rows"]))
    figure, axes = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), height), sharey=True)
    for axis, table in zip([axes] if len(tables) == 1 else axes, tables, strict=True):
        rows = [row for row in table["rows"] if row["name"] != "plain"][::-1]
        at = range(len(rows))
        ratios = [row["ratio"] for row in rows]
        errors = [
            [row["ratio"] - row["ratio_ci95"][0] for row in rows],
            [row["ratio_ci95"][1] - row["ratio"] for row in rows],
        ]
        axis.barh(at, ratios, xerr=errors, color="#4c78a8", height=0.6, label="measured, 95 %")
        axis.plot(*known(rows, "floor_ratio"), "D", color="#e45756", label="at floors")
        axis.plot(
            *known(rows, "ratio_without_loops"), "|", color="black", ms=14, label="without loops"
        )
        axis.axvline(1.0, color="gray", lw=1)
        axis.set_yticks(at, [row["name"] for row in rows])
        axis.set_title(f"T = {table['temperature']:g}")
        axis.set_xlabel("tokens/s ÷ plain")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def known(rows: Sequence[Report], figure: str) -> tuple[list[float], list[int]]:
    """A figure where there is one, and the places of its rows."""
    places = [at for at, row in enumerate(rows) if row[figure] is not None]
    return [rows[at][figure] for at in places], places
