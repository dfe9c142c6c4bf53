"""Tables and figures as Markdown, for the pages that the benchmarks write. Knows no benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Report = dict[str, Any]


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


def optional(value: float | None, form: str = ".2f") -> str:
    """In that form, or a dash where there is nothing to measure."""
    return "—" if value is None else format(value, form)


def verdict(words: str, goal: float, figure: float | None) -> str:
    """A row of a table of bars: a goal set before measuring, and what came out."""
    if figure is None:
        return line(words, f"≥ {goal:g}", "not measured", "")
    return line(words, f"≥ {goal:g}", f"{figure:.2f}", "met" if figure >= goal else "**missed**")


def by_length(name: str) -> tuple[int, str]:
    """Contexts in order of their length (`64`, `1k`, `4k`), all else by name."""
    number = name.removesuffix("k")
    if not number.isdigit():
        return 0, name
    return int(number) * (1000 if name.endswith("k") else 1), name
