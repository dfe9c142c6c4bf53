"""Rows of load as a table, and as a picture of latency and throughput over load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from forerun.errors import BackendError, OptionError

_COLUMNS = (
    "tok/s", "req/s", "good", "ttft\np50", "\np99", "itl\np50", "\np90", "\np99", "token\np50",
    "kept", "late", "fail", "cpu",
)  # fmt: skip
_BUSY_CORES = 0.2  # of the client: from here on a server on the same machine may be starved by it
_INKS = {"p50": "#1b6ca8", "p90": "#d98a1f", "p99": "#a8321b"}


def show(report: Mapping[str, Any]) -> None:
    """Print the table, its notes and what failed."""
    console = Console()
    fields = report["fields"]
    console.print(
        f"{report['model']} at {report['url']} · {report['endpoint']} ·"
        f" {report['num_prompts']} prompts, {fields['max_tokens']} tokens, temperature"
        f" {fields['temperature']:g} · {report['machine']}",
        soft_wrap=True,
    )
    if report["speculation"] is not None:
        console.print(f"decoded with {composed(report['speculation'])}", soft_wrap=True)
    console.print(table_of(report["rows"]))
    console.print(
        "ms: ttft to the first text from when a request was due; itl between pieces of text; token"
        " a token after the first piece. good: within --ttft-slo and --itl-slo. cpu: of this"
        " client, 100% is a core", soft_wrap=True,
    )  # fmt: skip
    for kind, sentence in report["errors"].items():
        console.print(f"{kind}: {sentence}", soft_wrap=True, markup=False)
    if report["check"] is not None:
        console.print(verdict(report["check"]), soft_wrap=True, markup=False)
    if any(row["client"]["cores"] > _BUSY_CORES for row in report["rows"]):
        console.print(
            f"this client took more than {_BUSY_CORES:.0%} of a core: a server on the same"
            f" machine had less", soft_wrap=True,
        )  # fmt: skip


def composed(speculation: Mapping[str, str]) -> str:
    """A composition as people read it: each axis with its name."""
    return ", ".join(f"{axis} {name}" for axis, name in speculation.items())


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each load."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 0), pad_edge=False)
    is_open = any("rate" in row for row in rows)
    table.add_column("a s" if is_open else "at a\ntime", justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(f"{row.get('concurrency', row.get('rate')):g}", *cells_of(row))
    return table


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row in the order of the columns; what is not known is a dash."""
    good, kept = row["goodput"]["share"], row["acceptance"]
    return [
        f"{row['tokens_per_s']:.1f}",
        f"{row['requests_per_s']:.2f}",
        _share(good),
        *(_ms(row["ttft_s"], name) for name in ("p50", "p99")),
        *(_ms(row["itl_s"], name) for name in ("p50", "p90", "p99")),
        _ms(row["token_s"], "p50"),
        _share(kept["rate"] if kept else None),
        str(row["num_late"]),
        str(row["num_requests"] - row["num_ok"]),
        f"{row['client']['cores']:.0%}",
    ]


def verdict(check: Mapping[str, Any]) -> str:
    """What --check found, in a sentence."""
    if check["identical"]:
        return (
            f"the same text at every load: {check['num_compared']} prompts compared,"
            f" {check['num_everywhere']} of them answered everywhere"
        )
    if not check["different"]:
        return "no prompt was answered twice: nothing was compared"
    one = check["different"][0]
    first, other = one["texts"]
    return (
        f"{len(check['different'])} of {check['num_compared']} prompts had different texts: prompt"
        f" {one['prompt']} at loads {one['points'][0]} and {one['points'][1]}, from character"
        f" {one['at_char']} on: {first!r} and {other!r}"
    )


def require_pictures() -> None:
    """Say before a long measurement that its picture could not be drawn.

    Raises:
        BackendError: matplotlib is not installed.
    """
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise BackendError("--picture needs matplotlib: pip install matplotlib") from error


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Tokens a second, time to the first text and time between pieces, each over load.

    Raises:
        OptionError: the file cannot be written, or its ending says no kind of picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    loads = [row.get("concurrency", row.get("rate")) for row in rows]
    whole, first, between = figure.subplots(1, 3)
    whole.plot(loads, [row["tokens_per_s"] for row in rows], marker="o", color=_INKS["p50"])
    whole.set_title("tokens a second", loc="left", fontsize=10)
    _draw_percentiles(first, loads, [row["ttft_s"] for row in rows], "ms to the first text")
    _draw_percentiles(between, loads, [row["itl_s"] for row in rows], "ms between pieces of text")
    name = "requests at a time" if "concurrency" in rows[0] else "requests a second"
    for axes in (whole, first, between):
        axes.set_xscale("log", base=2)
        axes.set_xticks(loads, [f"{load:g}" for load in loads])
        axes.set_xlabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise OptionError(f"--picture {path} cannot be written: {error}") from error


def _draw_percentiles(
    axes: Any, loads: Sequence[float], spreads: Sequence[Mapping[str, float] | None], title: str
) -> None:
    for name, ink in _INKS.items():
        values = [one[name] * 1e3 if one else float("nan") for one in spreads]
        axes.plot(loads, values, marker="o", color=ink, label=name)
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _ms(spread: Mapping[str, float] | None, name: str) -> str:
    if spread is None:
        return "-"
    value = spread[name] * 1e3
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
