"""Drafting on a lane of its own as a page: two cores used in several ways, and the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from page import Report, header, interval, line, optional, source

_MS = 1e3
HIT_BARS = {0.0: 0.80, 0.7: 0.75}  # by temperature: outcomes prepared, outside loops
ALL_HITS_BAR = 0.92
GAIN_BARS = {0.3: 1.08, 0.5: 1.2, 0.8: 1.35}  # by s: ahead ÷ sequential, drafters in cache
_NEAR_S = 0.1  # of the s of a bar, to be judged by it
_CACHE_BYTES = 32e6


def lanes_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Of each file limits, ways against each other, and hits and misses."""
    del folder
    for report in reports:
        yield f"## A lane of its own for the drafter, {report['shape']}s, on {_name(report)}\n"
        yield source(report)
        yield (
            "Each model on its own core; *both* uses both cores for both models, one after the"
            " other. Every way has its fastest draft length and number of branches. *s* is what"
            " drafting takes in the sequential way on lanes, in units of its verification. `× N`"
            " runs every pass of that drafter N times, as one of N times the depth with shared"
            " weights would. Ratios are to plain decoding on both cores.\n"
        )
        if "note" in report:
            yield f"{report['note']}\n"
        yield from limit_table(report)
        yield from way_table(report)
        yield from tree_table(report)
        yield from miss_table(report)


def tree_table(report: Report) -> Iterator[str]:
    """Trees ahead against chains ahead, where both were raced."""
    rows = [row for row in report["rows"] if "tree_over_chain" in row]
    if not rows:
        return
    yield "Trees ahead and chains ahead on the same lanes, each at its best; the bar is 1.05.\n"
    yield from header(
        "drafter", "T", "chains ahead", "trees ahead", "trees ÷ chains", "outside loops", "95 %"
    )
    for row in rows:
        yield line(
            row["drafter"], f"{row['temperature']:g}", f"{row['ahead_chain_ratio']:.2f}",
            f"{row['ahead_ratio']:.2f}", f"{row['tree_over_chain']:.2f}",
            optional(row["tree_over_chain_without_loops"]), interval(row["tree_over_chain_ci95"]),
        )  # fmt: skip
    yield ""


def limit_table(report: Report) -> Iterator[str]:
    """Both loops apart and at once, and real rounds that always hit."""
    yield (
        "Limits: both models' loops side by side without a hand-over, and rounds that all hit, with"
        " the length and branches that `ahead` had below; the bar is"
        f" {ALL_HITS_BAR:g}. Both do the same work: the same text, whole forecasts, the winner"
        " carried.\n"
    )
    if any("limit_settings" not in row for row in report["rows"]):
        yield (
            "In this file they did not: the loop carried nothing and always went to its full depth"
            " (length 4, 8 branches), rounds may have gone on with less. Such a ratio can pass 1,"
            " and is not judged.\n"
        )
    yield from header(
        "drafter", "length, branches", "MB", "verify ms, alone", "beside", "forecast ms, alone",
        "beside", "limit, rounds/s", "all hits ÷ limit", "",
    )  # fmt: skip
    seen = set()
    for row in report["rows"]:
        settings = tuple(row.get("limit_settings", ()))
        if (row["drafter"], settings) in seen:
            continue
        seen.add((row["drafter"], settings))
        names = ("verify_alone_s", "verify_beside_s", "forecast_alone_s", "forecast_beside_s")
        times = [f"{_MS * row[name]:.1f}" for name in names]
        yield line(
            row["drafter"], ", ".join(map(str, settings)) or "4, 8",
            f"{row['drafter_bytes'] / 1e6:.0f}", *times, f"{row['limit_rounds_per_s']:.1f}",
            f"{row['all_hits_ratio']:.2f}",
            judged(row["all_hits_ratio"], ALL_HITS_BAR if settings else None),
        )  # fmt: skip
    yield ""


def way_table(report: Report) -> Iterator[str]:
    """The same cores, used in several ways."""
    bars = ", ".join(f"{goal:g} at s = {share:g}" for share, goal in GAIN_BARS.items())
    yield (
        f"Ways, outside loops in brackets. The bar of ahead ÷ sequential is {bars}, within"
        f" {_NEAR_S:g} of such an s, for drafters that fit a cache of"
        f" {_CACHE_BYTES / 1e6:.0f} MB.\n"
    )
    yield from header(
        "drafter", "T", "s", "sequential on lanes", "ahead", "both", "one core, plain",
        "ahead ÷ sequential", "95 %", "bar", "", "winner", "same tokens",
    )  # fmt: skip
    for row in report["rows"]:
        ways = [_ratio(row, name) for name in ("sequential", "ahead", "both_cores", "one_core")]
        yield line(
            row["drafter"], f"{row['temperature']:g}", f"{row['draft_share']:.2f}", *ways,
            _ratio(row, "ahead_over_sequential", ""), interval(row["ahead_over_sequential_ci95"]),
            *gain_verdict(row), row["winner"].replace("_", " "),
            "yes" if row["identical"] else "**no**",
        )  # fmt: skip
    yield ""


def miss_table(report: Report) -> Iterator[str]:
    """What became of forecasts."""
    yield (
        "Outcomes that were prepared, why others were not, and what was thrown away, at the"
        f" settings that were fastest. Outside loops the bar is {hit_bars()}.\n"
    )
    yield from header(
        "drafter", "T", "settings (length, branches)", "hit", "hit outside loops", "bar", "",
        "wrong outcome", "nothing below yet", "late", "nodes thrown away",
    )  # fmt: skip
    for row in report["rows"]:
        schedule, length = row["settings"]["ahead"]
        misses, met = row["misses"], row["num_met"]
        yield line(
            row["drafter"], f"{row['temperature']:g}", f"{length}, {schedule.partition(':')[2]}",
            f"{row['hit_rate']:.0%}", _percent(row["hit_rate_without_loops"]),
            *hit_verdict(row["temperature"], row["hit_rate_without_loops"]),
            *[f"{misses[cause] / max(met, 1):.0%}" for cause in ("wrong", "short", "late")],
            f"{1 - row['num_taken'] / max(row['num_prepared'], 1):.0%}",
        )  # fmt: skip
    yield ""


def gain_verdict(row: Report) -> tuple[str, str]:
    """The bar of ahead ÷ sequential of a drafter that takes so long, and whether it was met."""
    share = min(GAIN_BARS, key=lambda at: abs(at - row["draft_share"]))
    is_near = abs(share - row["draft_share"]) <= _NEAR_S
    goal = GAIN_BARS[share] if is_near and row["drafter_bytes"] <= _CACHE_BYTES else None
    return ("" if goal is None else f"≥ {goal:g}"), judged(row["ahead_over_sequential"], goal)


def hit_verdict(temperature: float, hit_rate: float | None) -> tuple[str, str]:
    """The bar of prepared outcomes at a temperature, and whether a share outside loops met it."""
    goal = HIT_BARS.get(temperature)
    return ("" if goal is None else f"≥ {goal:.0%}"), judged(hit_rate, goal)


def hit_bars() -> str:
    """All of them, in words."""
    return ", ".join(f"{goal:.0%} at T = {at:g}" for at, goal in HIT_BARS.items())


def judged(figure: float | None, goal: float | None) -> str:
    """Whether a figure met its goal; nothing where there is no goal, or nothing was measured."""
    if goal is None:
        return ""
    if figure is None:
        return "not measured"
    return "met" if figure >= goal else "**missed**"


def _name(report: Report) -> str:
    return Path(report["model"]).name


def _ratio(row: Report, name: str, suffix: str = "_ratio") -> str:
    return f"{row[name + suffix]:.2f} ({optional(row[f'{name}{suffix}_without_loops'])})"


def _percent(share: float | None) -> str:
    return optional(share, ".1%")
