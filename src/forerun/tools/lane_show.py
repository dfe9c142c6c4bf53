"""`bench decode` of a schedule that works ahead, for people: a table, the lanes, the verdict."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from forerun.tools.timeline import Timeline, caption, lines_of

_DISTURBING = 0.1  # cores: what a quiet machine stays below
_ROWS = ("plain", "sequential", "sequential_lanes", "ahead")
LANE_HEADS = ("cores", "tok./s", "/core", "÷plain", "ahead÷", "95 %", "round", "GFLOP")


def show_lanes(report: dict[str, Any], drawn: Timeline) -> None:
    """Who is how fast and at what cost, what working ahead brought, and whether it pays."""
    console = Console()
    console.print(
        f"{report['model']} · {report['drafter']}, {report['shape']}, {report['schedule']} ·"
        f" temperature {report['temperature']:g} · {report['machine']}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(lane_table(report))
    console.print(report["why"], style="dim", soft_wrap=True, highlight=False)
    overlap = report["overlap"]
    if overlap is None:
        console.print("nothing worked ahead: the drafter reads no text of its own", soft_wrap=True)
        return
    for line in (_hits(overlap), _work(overlap), _formula(overlap["published"])):
        if line:
            console.print(line, soft_wrap=True, highlight=False)
    console.print()
    for text in lines_of(drawn, console.width):
        console.print(text, no_wrap=True, overflow="crop")
    console.print(caption(drawn), style="dim", soft_wrap=True, highlight=False)
    console.print()
    if report["other_cores"] > _DISTURBING:
        console.print(
            f"other processes kept {report['other_cores']:.1f} of these cores busy meanwhile:"
            " measure again on a quiet machine before believing this",
            style="bold",
            soft_wrap=True,
            highlight=False,
        )
    identical = "yes" if report["identical"] else "NO"
    console.print(f"{overlap['verdict']}; identical: {identical}", soft_wrap=True, highlight=False)


def lane_table(report: dict[str, Any]) -> Table:
    """A row for each way to decode; in narrow terminals its name is folded, no figure is cut."""
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("")
    for head in LANE_HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for name in _ROWS:
        row = report[name]
        low, high = row["ahead_ratio_ci95"]
        is_ahead = name == "ahead"
        table.add_row(
            report["schedule"] if is_ahead else row["name"],
            _cores(row["lanes"]),
            f"{row['tokens_per_s']:.1f}",
            f"{row['tokens_per_s_per_core']:.1f}",
            f"{row['ratio']:.2f}",
            "" if is_ahead else f"{row['ahead_ratio']:.2f}",
            "" if is_ahead else f"{low:.2f}\N{EN DASH}{high:.2f}",
            f"{row['tokens_per_round']:.2f}",
            _flops(row),
        )
    return table


def _cores(lanes: dict[str, list[int]]) -> str:
    """Cores of target and drafter, once where they are the same."""
    target, draft = (_range(lanes[lane]) for lane in ("target", "draft"))
    return target if target == draft else f"{target}|{draft}"


def _range(cores: list[int]) -> str:
    is_run = len(cores) > 1 and cores == list(range(cores[0], cores[-1] + 1))
    return f"{cores[0]}-{cores[-1]}" if is_run else ",".join(map(str, cores))


def _flops(row: dict[str, Any]) -> str:
    """Operations a token, of target and drafter."""
    draft = row["draft_flops_per_token"]
    drafting = "?" if draft is None else f"{draft / 1e9:.2g}"
    return f"{row['target_flops_per_token'] / 1e9:.2g}+{drafting}"


def _hits(overlap: dict[str, Any]) -> str:
    causes = overlap["causes"]
    missed = ", ".join(
        f"{share:.0%} {cause}" for cause, share in causes.items() if cause != "hit" and share > 0
    )
    return (
        f"prepared drafts used {overlap['hit_rate']:.0%} ({overlap['steady_hit_rate']:.0%} without"
        f" first rounds); missed: {missed or 'none'}; {overlap['num_redrafted']} drafted anew"
    )


def _work(overlap: dict[str, Any]) -> str:
    rounds = max(1, overlap["num_rounds"])
    return (
        f"{overlap['hidden_share']:.0%} of drafting passed beside verification, a round waited"
        f" {overlap['wait_s'] / rounds * 1e3:.2f} ms; thrown away: {overlap['branches_wasted']:.0%}"
        f" of {overlap['num_branches'] / rounds:.1f} branches a round,"
        f" {overlap['nodes_wasted']:.0%} of {overlap['num_prepared'] / rounds:.1f} nodes"
    )


def _formula(published: dict[str, Any] | None) -> str:
    if published is None:
        return ""
    return (
        f"published formula with these hits and times: {published['gain']:.2f} × sequential on the"
        f" same lanes; measured {published['measured_gain']:.2f}"
    )
