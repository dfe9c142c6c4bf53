"""Write docs/benchmarks.md and its pictures from measured files; nothing in it is typed by hand.

    python benchmarks/report.py benchmarks/results/*.json

Each file is what one measuring command wrote. Two files of the same table, from two runs, also give
the share of cells that agree within their intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]
DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# Benchmarks

Written by `python benchmarks/report.py` from the files in `benchmarks/results`; to change a figure,
measure it again. Every ratio compares runs that took turns on one machine, and stands with its 95 %
interval (bootstrap over prompts and repetitions).

- *Without loops* leaves out tokens inside a repeated 4-gram, because loops flatter every drafter.
- *Floor* is the bytes that must move ÷ the bandwidth measured between the turns, on buffers of the
  models' own sizes. *Floor ratio* is the ratio to plain decoding if both ran at their floors: what
  is missing from it is ours to find. *Draft* is the share of time spent drafting.
- `260M` is the embedded target enlarged without changing a bit of its output
  (`benchmarks/inflate.py`), so drafters meet real text at a real size. *Shipped* is the embedded
  drafter as it is, which flatters it; *matched* is the drafter enlarged in the same way to a
  twentieth of the target's bytes, and is what headlines use.
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A goal set before measuring, and the cell that answers it."""

    words: str
    goal: float
    temperature: float
    methods: str
    category: str = ""


BARS = (
    Bar("`lm` chain, matched, greedy, without loops", 1.8, 0.0, "lm matched"),
    Bar("`lm` chain, matched, T=0.7, without loops", 1.6, 0.7, "lm matched"),
    Bar("`lookup` on `edit`, greedy, all tokens", 3.0, 0.0, "lookup", "edit"),
)


RIVALS = ("Transformers", "vLLM (CPU)", "OpenVINO GenAI")
PLAIN_MODES = ("plain", "compiled")


def main() -> int:
    """Read the files, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of measuring commands")
    parser.add_argument("--out", type=Path, default=DOCS / "benchmarks.md")
    arguments = parser.parse_args()
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.files)]
    parts = [HEAD]
    for what, section in SECTIONS.items():
        own = [one for one in reports if one["what"] == what]
        if own:
            parts += section(own, arguments.out.parent)
    arguments.out.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return 0


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
            f"{row['floor_ratio']:.2f}",
            optional(row["times_floor"]),
            f"{row['tokens_per_round']:.2f}",
            f"{row['draft_share']:.0%}",
            f"{row['tokens_per_s_per_core']:.1f}",
            f"{row['target_flops_per_token'] / 1e9:.3g} + {row['draft_flops_per_token'] / 1e9:.2g}",
            f"{row['bytes_per_token'] / 1e6:.0f}",
            f"{row['loop_share']:.0%}",
            "yes" if row["identical"] else "**no**",
        )


def category_table(table: Report) -> Iterator[str]:
    """The ratio of each category, without loops behind the stroke."""
    speculative = [row for row in table["rows"] if row["name"] != "plain"]
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
            if row["name"].startswith(bar.methods)
        ]
        figures = [
            row["categories"][bar.category]["ratio"] if bar.category else row["ratio_without_loops"]
            for row in rows
        ]
        best = max((one for one in figures if one is not None), default=None)
        if best is not None:
            verdict = "met" if best >= bar.goal else "**missed**"
            yield line(bar.words, f"≥ {bar.goal:g}", f"{best:.2f}", verdict)
    yield ""


def agreement(first: Report, other: Report) -> tuple[int, int]:
    """How many ratios of two runs have intervals that meet, of how many."""
    pairs = [
        (one["ratio_ci95"], two["ratio_ci95"])
        for ours, theirs in zip(first["tables"], other["tables"], strict=True)
        for one, two in zip(cells(ours), cells(theirs), strict=True)
    ]
    return sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs), len(pairs)


def cells(table: Report) -> Iterator[Report]:
    """Every measured ratio of a table: of a composition, and of each category under it."""
    for row in table["rows"]:
        if row["name"] != "plain":
            yield row
            yield from row["categories"].values()


def peers_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Every engine and mode of each file, forward passes where measured, and the bars."""
    for report in reports:
        name = Path(report["model"]).name
        yield f"## Other engines on {name}\n"
        yield source(report)
        picture = f"peers-{name}.png"
        if (folder / picture).exists():
            yield f"![tokens per second of every engine]({picture})\n"
        yield from header(
            "engine", "mode", "tokens/s", "÷ forerun plain", "95 %", "first token, ms",
            "tokens equal to forerun's", "loops", "settings",
        )  # fmt: skip
        yield from map(peer_line, report["rows"])
        yield ""
        yield from forward_table(report)
        yield from peer_bars(report)


def peer_line(row: Report) -> str:
    """One engine and mode; what did not run says why."""
    settings = ", ".join(
        [
            f"{row['threads']} threads",
            *(f"{name} {value}" for name, value in row["options"].items()),
            *([] if row["same_weights"] else ["**other weights**"]),
            *([row["reason"]] if row["reason"] else []),
        ]
    )
    if "tokens_per_s" not in row:
        return line(row["engine"], row["mode"], *["—"] * 6, f"did not run: {row['reason']}")
    return line(
        row["engine"],
        row["mode"],
        f"{row['tokens_per_s']:.1f}",
        f"{row['ratio_to_forerun_plain']:.2f}",
        interval(row["ratio_ci95"]),
        f"{row['first_token_s'] * 1e3:.0f}",
        f"{row['equal_tokens']:.1%}",
        f"{row['loop_share']:.0%}",
        settings,
    )


def forward_table(report: Report) -> Iterator[str]:
    """Milliseconds of a pass of n tokens, where an engine lets one measure it."""
    rows = [row for row in report["rows"] if row.get("forward_s")]
    counts = sorted({int(count) for row in rows for count in row["forward_s"]})
    if not rows:
        return
    yield from header("forward pass, ms", *(f"n = {count}" for count in counts))
    for row in rows:
        times = [row["forward_s"].get(str(count)) for count in counts]
        yield line(row["engine"], *("—" if one is None else f"{one * 1e3:.1f}" for one in times))
    yield ""


def peer_bars(report: Report) -> Iterator[str]:
    """Our own plain decoding and our best speculation beside the best of the others'.

    Speeds are ratios to our plain decoding of the same prompt in the same turn.
    """
    speeds = {
        (row["engine"], row["mode"]): row["ratio_to_forerun_plain"]
        for row in report["rows"]
        if "tokens_per_s" in row and row["same_weights"]
    }
    own = {mode: speed for (engine, mode), speed in speeds.items() if engine == "forerun"}
    plain = {e: v for (e, mode), v in speeds.items() if e != "forerun" and mode == "plain"}
    guessing = {k: v for k, v in speeds.items() if k[0] != "forerun" and k[1] not in PLAIN_MODES}
    lm = max((speed for mode, speed in own.items() if mode.startswith("lm")), default=None)
    llama = {engine: speed for engine, speed in plain.items() if "llama" in engine.lower()}
    others = {engine: speed for engine, speed in plain.items() if engine in RIVALS}
    yield from header("bar", "goal", "came out", "")
    for words, goal, ours, theirs in (
        ("plain ÷ the fastest of " + ", ".join(RIVALS), 1.8, own["plain"], others),
        ("plain ÷ llama.cpp at bf16", 1.25, own["plain"], llama),
        ("`lm` chain ÷ the best speculative mode of any other", 2.2, lm, guessing),
    ):
        if ours is None or not theirs:
            yield line(words, f"≥ {goal:g}", "not measured", "")
            continue
        ratio = ours / max(theirs.values())
        yield line(words, f"≥ {goal:g}", f"{ratio:.2f}", "met" if ratio >= goal else "**missed**")
    yield ""


def draw_methods(report: Report, path: Path) -> None:
    """Measured ratio with its interval, and beside it what the floors would allow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tables = report["tables"]
    figure, axes = plt.subplots(1, len(tables), figsize=(4.2 * len(tables), 3.4), sharey=True)
    for axis, table in zip([axes] if len(tables) == 1 else axes, tables, strict=True):
        rows = [row for row in table["rows"] if row["name"] != "plain"][::-1]
        at = range(len(rows))
        ratios = [row["ratio"] for row in rows]
        errors = [
            [row["ratio"] - row["ratio_ci95"][0] for row in rows],
            [row["ratio_ci95"][1] - row["ratio"] for row in rows],
        ]
        axis.barh(at, ratios, xerr=errors, color="#4c78a8", height=0.6, label="measured, 95 %")
        axis.plot([row["floor_ratio"] for row in rows], at, "D", color="#e45756", label="at floors")
        outside = [(row["ratio_without_loops"], y) for row, y in zip(rows, at, strict=True)]
        known = [(x, y) for x, y in outside if x is not None]
        axis.plot(*zip(*known, strict=True), "|", color="black", ms=14, label="without loops")
        axis.axvline(1.0, color="gray", lw=1)
        axis.set_yticks(at, [row["name"] for row in rows])
        axis.set_title(f"T = {table['temperature']:g}")
        axis.set_xlabel("tokens/s ÷ plain")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def source(report: Report) -> str:
    """Where the figures under it come from."""
    prompts = f"{report['num_prompts']} prompts, {report['max_tokens']} tokens each"
    return f"{report['machine']}, {report['date']}, {prompts}.\n\n```\n{report['command']}\n```\n"


def header(*names: str) -> Iterable[str]:
    """Two lines that begin a table."""
    return line(*names), "|" + "---|" * len(names)


def line(*values: str) -> str:
    """One row of a table."""
    return "| " + " | ".join(values) + " |"


def interval(pair: Sequence[float]) -> str:
    """Low and high."""
    return f"{pair[0]:.2f} to {pair[1]:.2f}"


def optional(value: float | None) -> str:
    """Two digits, or a dash where there is nothing to measure."""
    return "—" if value is None else f"{value:.2f}"


SECTIONS: dict[str, Callable[[Sequence[Report], Path], Iterator[str]]] = {
    "methods": methods_section,
    "peers": peers_section,
}


if __name__ == "__main__":
    sys.exit(main())
