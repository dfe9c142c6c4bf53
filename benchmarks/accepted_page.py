"""Accepted lengths as a page: by position, by category and domain, by length of context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from page import Report, by_length, header, interval, line, optional, source

MOST_POSITIONS = 8  # of a table; the picture has them all


def accepted_section(reports: Sequence[Report], folder: Path) -> Iterator[str]:
    """Of each file a table by position, one by kind of text and context, and a picture."""
    for number, report in enumerate(reports):
        name = Path(report["model"]).name
        yield f"## What is kept of a draft, on {name}\n"
        yield source(report)
        yield (
            "Counted, not timed; enlarging a model changes no token, so these hold at every size."
            f" Outside loops. In domain: {', '.join(report['in_domain'])}.\n"
        )
        picture = f"accepted-{name}-{number}.png" if number else f"accepted-{name}.png"
        draw_accepted(report, folder / picture)
        yield f"![share of rounds that reach a position; tokens a round by context]({picture})\n"
        yield from position_table(report)
        yield from kind_table(report)


def position_table(report: Report) -> Iterator[str]:
    """The share of rounds that kept at least so many drafted tokens."""
    yield "Share of rounds that kept at least so many drafted tokens; the bonus comes on top.\n"
    positions = map(str, range(1, MOST_POSITIONS + 1))
    yield from header("drafter", "T", "tokens/round", "95 %", *positions)
    for row in known(report):
        reached = [f"{one:.2f}" for one in row["reached"][:MOST_POSITIONS]]
        figures = [f"{row['tokens_per_round']:.2f}", interval(row["tokens_per_round_ci95"])]
        empty = [""] * (MOST_POSITIONS - len(reached))
        yield line(name_of(row), f"{row['temperature']:g}", *figures, *reached, *empty)
    yield ""


def kind_table(report: Report) -> Iterator[str]:
    """Tokens a round by domain, category and context."""
    rows = known(report)
    groups = {
        label: sorted({name for row in rows for name in row[label]}, key=by_length)
        for label in ("domains", "categories", "contexts")
    }
    yield "Tokens a round, by kind of text and by tokens of context.\n"
    yield from header("drafter", "T", *(name for names in groups.values() for name in names))
    for row in rows:
        cells = [
            optional(row[label].get(name, {}).get("tokens_per_round"))
            for label, names in groups.items()
            for name in names
        ]
        yield line(name_of(row), f"{row['temperature']:g}", *cells)
    yield ""


def known(report: Report) -> list[Report]:
    """Rows that have any round outside loops."""
    return [row for row in report["rows"] if row["tokens_per_round"] is not None]


def name_of(row: Report) -> str:
    """What a row is called."""
    return f"{row['drafter']} {row['shape']}"


def draw_accepted(report: Report, path: Path) -> None:
    """Left how far rounds reach, right tokens a round by context, greedy or as near as there is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = known(report)
    coldest = min((row["temperature"] for row in rows), default=0.0)
    rows = [row for row in rows if row["temperature"] == coldest]
    figure, (reach, context) = plt.subplots(1, 2, figsize=(10, 3.8))
    for row in rows:
        style = "-o" if row["shape"].startswith("chain") else "--s"
        reached = [1.0, *row["reached"]]
        reach.plot(range(len(reached)), reached, style, ms=4, label=name_of(row))
        names = sorted(row["contexts"], key=by_length)
        places, tokens = _present(names, row["contexts"])
        context.plot(places, tokens, style, ms=4)
        context.set_xticks(range(len(names)), names)
    reach.set_xlabel("drafted tokens kept")
    reach.set_ylabel("share of rounds")
    context.set_xlabel("tokens of context")
    context.set_ylabel("tokens a round")
    figure.suptitle(f"T = {coldest:g}, outside loops", fontsize=10)
    if rows:
        reach.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _present(names: Sequence[str], groups: Mapping[str, Report]) -> tuple[list[int], list[float]]:
    """Places and figures of the groups that have one."""
    figures = [groups[name]["tokens_per_round"] for name in names]
    places = [at for at, figure in enumerate(figures) if figure is not None]
    return places, [figures[at] for at in places]
