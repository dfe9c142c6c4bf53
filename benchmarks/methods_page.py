"""The table of methods as a page: every composition that was measured, and the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from method_bars import bar_table
from page import Report, by_length, header, interval, line, optional, source

TITLES = {"": "Methods", "learned": "Learned drafters"}


def methods_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Tables of the first file of each topic and model; further files of it are repetitions."""
    for key in dict.fromkeys(map(table_key, reports)):
        first, *again = [one for one in reports if table_key(one) == key]
        topic, name = key
        yield f"## {TITLES.get(topic, topic)} on {name}\n"
        yield source(first)
        picture = "-".join(filter(None, ("methods", topic, f"{name}.png")))
        draw_methods(first, folder / picture)
        yield f"![ratio to plain decoding, with the ratio the floors allow]({picture})\n"
        for table in first["tables"]:
            yield f"### T = {table['temperature']:g}\n"
            yield from method_table(table)
            yield ""
            yield from group_table(table, "categories")
            yield from group_table(table, "contexts")
        yield from best_table(first)
        yield from rival_table(first)
        for left_out, reason in first.get("skipped", {}).items():
            yield f"{left_out} was left out: {reason}.\n"
        yield from bar_table(first)
        for other in again:
            yield repeated(first, other)


def table_key(report: Report) -> tuple[str, str]:
    """What a table is about: its topic and its model."""
    return report.get("topic", ""), Path(report["model"]).name


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
    yield from header("T", "best chain", "best tree", "tree ÷ chain", "95 %", "without loops")
    for temperature, best in rows:
        names = [best["chain"] or "—", best["tree"] or "—"]
        figures = ["—"] * 3
        if "ratio" in best:
            outside = optional(best["ratio_without_loops"])
            figures = [f"{best['ratio']:.2f}", interval(best["ratio_ci95"]), outside]
        yield line(f"{temperature:g}", *names, *figures)
    yield ""


def rival_table(report: Report) -> Iterator[str]:
    """The best chain of a block drafter against the best of a small model as large."""
    rows = [
        (table["temperature"], one) for table in report["tables"] for one in table.get("rivals", ())
    ]
    if not rows:
        return
    yield "Each the best without loops, compared in the same turns.\n"
    yield from header("T", "block drafter", "small model", "block ÷ lm", "95 %", "without loops")
    for temperature, one in rows:
        figures = [f"{one['ratio']:.2f}", interval(one["ratio_ci95"])]
        outside = optional(one["ratio_without_loops"])
        yield line(f"{temperature:g}", one["block"], one["lm"], *figures, outside)
    yield ""


def group_table(table: Report, label: str) -> Iterator[str]:
    """The ratio of each category or context, without loops behind the stroke."""
    speculative = [row for row in table["rows"] if row["name"] != "plain" and row.get(label)]
    if not speculative:
        return
    names = sorted(speculative[0][label], key=by_length)
    yield from header("ratio / without loops", *(name or "other" for name in names))
    for row in speculative:
        cells = [row[label][name] for name in names]
        yield line(
            row["name"],
            *(f"{one['ratio']:.2f} / {optional(one['ratio_without_loops'])}" for one in cells),
        )
    yield ""


def repeated(first: Report, other: Report) -> str:
    """How many ratios of two runs have intervals that meet: over all prompts, and by category."""
    counts = []
    for is_whole in (True, False):
        ours, theirs = (
            {key: value for key, value in cells(run).items() if is_whole == (not key[2])}
            for run in (first, other)
        )
        pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
        agree = sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs)
        counts.append(f"{agree} of {len(pairs)}")
    return (
        f"Repeated in a run of {other['date']}: of the ratios over all prompts {counts[0]} agree"
        f" within their intervals, of those by category, a few prompts each, {counts[1]}.\n"
    )


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
