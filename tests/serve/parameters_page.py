"""docs/parameters.md: what live servers answered to every parameter under every composition.

    PYTHONPATH=tests python -m serve.parameters_page

Writes the page anew, unless an answer was none of those that may be.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from serve.parameter_cells import COLUMNS, DRAFTERS, PREDICTION, WAYS, Column, Found, found
from serve.parameter_models import write_model
from serve.parameters import NAMES, UNHEARD, WISHES, Wish
from serve.structured_parts import CHAT, COMPLETIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"
_LONGEST = 60  # characters of a value
_HEAD = """\
# Every parameter with every composition

Written by `PYTHONPATH=tests python -m serve.parameters_page`; a test asks again and compares.
Tiny random models with a drafter of each kind beside them are served, and each
[field](server.md#fields) is sent with each composition, some requests at a time. Sequential
compositions are asked for by the request (`speculation`); those with lanes are the server's own,
for no request may ask for lanes. What chat and responses share with completions they are asked of
one composition; in the others completions are. A cell counts the compositions.

- **same**: status 200, and text, tokens, scores and reason of every choice are those of
  `"speculation": "off"`.
- **law** (sampled rules draw other noise): status 200, a seed has one text, and where the
  parameters leave one text (temperature 0, `top_k` 1, `top_p` next to 0, `min_p` 1) it is that of
  `off`.
- **refused: name**: status 400, and the message names this.

Nothing else came. Parameters that change an answer changed that of plain decoding, and something
was drafted in every composition.
"""


def page_of(everything: Found) -> str:
    """The page, as Markdown; whether there are faults is for others to ask."""
    lines = [_HEAD, *_compositions(everything), "", *_parameters(everything)]
    return "\n".join(lines) + "\n"


def _compositions(everything: Found) -> Iterator[str]:
    """Which there are."""
    words = [f"`{shape}`, `{schedule}`" for shape, schedule in WAYS.values()]
    yield "## Compositions\n"
    yield from _header("drafter, under `match`", *map("{}: {}".format, WAYS, words))
    for drafter in (*DRAFTERS, PREDICTION):
        cells = [
            f"refused: `{why.partition(' ')[0]}`" if why else "served"
            for why in (everything.refused.get(Column(drafter, way)) for way in WAYS)
        ]
        yield _line(f"`{drafter}`" + (", the field" if drafter == PREDICTION else ""), *cells)
    groups = groupby([one for one in COLUMNS if one.is_sampled], lambda one: (one.rule, one.way))
    told = [
        f"`{rule}` {way} ({', '.join(one.drafter for one in group)})"
        for (rule, way), group in groups
    ]
    yield f"\nSampled rules: {', '.join(told)}."
    yield "Which others cannot be, and why, is in [exactness.md](exactness.md).\n"
    for why in sorted(set(everything.refused.values())):
        yield f"Refused when a server is opened: {why}."


def _parameters(everything: Found) -> Iterator[str]:
    """A line for each, and what came of it."""
    asked = [one for one in COLUMNS if one in everything.cells]
    drawn = [one for one in asked if not one.is_sampled]
    laws = [one for one in asked if one.is_sampled]
    yield "## Parameters\n"
    yield from _header(
        "parameter",
        "sent as",
        "to",
        f"{len(drawn)} under `match`",
        f"{len(laws)} under sampled rules",
    )
    for names in dict.fromkeys(wish.fields for wish in WISHES):
        own = [at for at, wish in enumerate(WISHES) if wish.fields == names]
        said = {
            column: [cell for at in own if (cell := cells[at]) is not None]
            for column, cells in everything.cells.items()
        }
        paths = ", ".join(_short(WISHES[at].path) for at in own)
        cells = [_summary({one: said[one] for one in columns}) for columns in (drawn, laws)]
        yield _line(_named(names), _value(WISHES[own[0]]), paths, *cells)


def _summary(said: Mapping[Column, Sequence[str]]) -> str:
    """What came and how often; what came less often, where."""
    asked = [column for column, verdicts in said.items() if verdicts]
    by_verdict: dict[str, list[Column]] = {}
    for column in asked:
        by_verdict.setdefault("; ".join(sorted(set(said[column]))), []).append(column)
    most = max(by_verdict, key=lambda one: len(by_verdict[one]), default=None)
    if most is None:
        return "—"
    parts = [f"{one} ({_where(by_verdict[one], asked)})" for one in by_verdict if one != most]
    return "; ".join([f"{most} in {len(by_verdict[most])}", *parts])


def _where(columns: Collection[Column], asked: Sequence[Column]) -> str:
    """Compositions by rule and shape; drafters only where not all of them are meant."""
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in asked:
        groups.setdefault((column.rule, column.way), []).append(column)
    told = []
    for (rule, way), group in groups.items():
        meant = [one.drafter for one in group if one in columns]
        drafters = "" if len(meant) == len(group) else f" of {', '.join(meant)}"
        if meant:
            told.append((way if rule == "match" else f"{rule} {way}") + drafters)
    return ", ".join(told)


def _short(path: str) -> str:
    return {COMPLETIONS: "completions", CHAT: "chat"}.get(path, "responses")


def _named(names: tuple[str, ...]) -> str:
    first, comma, more = names[0].partition(",")
    return ", ".join([f"`{first}`{comma}{more}", *(f"`{one}`" for one in names[1:])])


def _value(wish: Wish) -> str:
    """What was sent, as JSON; for what only a composition knows, words."""
    if wish.asks is UNHEARD:
        return "a value each"
    (value,) = wish.asks.values()
    if isinstance(value, str) and value.startswith(NAMES.split()[0]):
        return value
    text = json.dumps(value)
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return f"`{text}`".replace("|", "\\|")


def _header(*names: str) -> tuple[str, str]:
    return _line(*names), "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Ask, and write what was found."""
    with tempfile.TemporaryDirectory() as root:
        everything = found(write_model(Path(root)))
    silent = [column for column, num in everything.num_drafted.items() if not num]
    wrong = [*everything.faults, *everything.unfelt, *silent]
    sys.stderr.writelines(f"{one}\n" for one in wrong)
    if wrong:
        return 1
    PAGE.write_text(page_of(everything), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
