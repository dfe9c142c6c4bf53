"""Goals of a table of methods, set before measuring, and what came out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from page import Report, header, line, verdict

CHAIN, TREE, ANY = ("auto", "chain"), ("tree",), ("auto", "chain", "tree")


@dataclass(frozen=True, slots=True)
class Bar:
    """A goal and the rows that answer it: the best of those whose names are like `methods`.

    In one category or, where that is empty, over all prompts; without loops unless it says not.
    """

    words: str
    goal: float
    temperature: float
    methods: tuple[str, ...]
    kinds: tuple[str, ...] = CHAIN
    category: str = ""
    figure: str = "ratio_without_loops"


_BLOCK = ("dspark matched *", "dflash matched *")
SMALL_BARS = (
    Bar("`lm` chain, matched, greedy, without loops", 1.8, 0.0, ("lm matched *",)),
    Bar("`lm` chain, matched, T=0.7, without loops", 1.6, 0.7, ("lm matched *",)),
    Bar("`lookup` on `edit`, greedy, all tokens", 3.0, 0.0, ("lookup",), ANY, "edit", "ratio"),
)
LEARNED_BARS = (
    Bar("block drafter chain, matched, greedy", 2.4, 0.0, _BLOCK),
    Bar("block drafter tree, matched, greedy", 3.0, 0.0, _BLOCK, TREE),
    Bar("block drafter tree, matched, T=0.7", 2.4, 0.7, _BLOCK, TREE),
    Bar("block drafter tree, matched, T=1", 1.5, 1.0, _BLOCK, TREE),
    Bar("best composition as shipped on `novel_code`, greedy", 5.0, 0.0,
        ("* shipped *",), ANY, "novel_code"),
)  # fmt: skip
RIVAL_GOAL = 1.2  # the best block chain over the best `lm` chain, matched, greedy
# The best tree against the best chain of the same turns, by temperature.
TREE_GOALS = {0.0: 1.15, 0.7: 1.15}


def bar_table(report: Report) -> Iterator[str]:
    """The goals of this table; those whose rows were not measured here are of another."""
    yield from header("bar", "goal", "came out", "")
    is_learned = report.get("topic") == "learned"
    for bar in LEARNED_BARS if is_learned else SMALL_BARS:
        figure = best_figure(report, bar)
        if figure is not None or is_learned:
            yield verdict(bar.words + ", without loops" * is_learned, bar.goal, figure)
    if is_learned:
        yield verdict(
            "best block chain ÷ best `lm` chain, matched, greedy, without loops",
            RIVAL_GOAL,
            rival_figure(report),
        )
        yield eagle_line(report)
    else:
        yield from tree_bars(report)
    yield ""


def best_figure(report: Report, bar: Bar) -> float | None:
    """The best of the rows that answer a bar; None without one."""
    figures = [
        (row["categories"].get(bar.category, {}) if bar.category else row).get(bar.figure)
        for table in report["tables"]
        if table["temperature"] == bar.temperature
        for row in table["rows"]
        if row.get("kind", "chain") in bar.kinds and row.get("keeps_tokens", True)
        if any(fnmatchcase(row["name"], like) for like in bar.methods)
    ]
    return max((one for one in figures if one is not None), default=None)


def rival_figure(report: Report) -> float | None:
    """What the block drafter gains over a small model as large, greedy."""
    return next(
        (
            one["ratio_without_loops"]
            for table in report["tables"]
            if table["temperature"] == 0
            for one in table.get("rivals", ())
            if one["size"] == "matched"
        ),
        None,
    )


def eagle_line(report: Report) -> str:
    """EAGLE-3 has no goal but to be measured beside the others, taught as much as they were; what
    each was taught is on its card, and not for a race to judge."""
    trees = Bar("", 0.0, 0.0, ("eagle3 matched *",), TREE)
    figure = best_figure(report, trees)
    words = "EAGLE-3 tree, matched, greedy, without loops"
    if figure is None:
        return line(words, "in the table", "not measured", "**missed**")
    return line(words, "in the table", f"{figure:.2f}", "measured; steps are on the cards")


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
