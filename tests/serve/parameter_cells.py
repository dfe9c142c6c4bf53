"""What live servers say to every parameter, composition by composition.

Plain decoding's answers are the measure: a cell is `same`, `law`, or `refused` by a 400 that names
the parameter or the part. Whatever else comes is a `Fault`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2

from forerun import Engine, Speculation
from forerun.drafters import overlapped
from forerun.errors import OptionError
from serve.live import serving
from serve.parameters import LANES, NAMES, WISHES, Body, Wish
from serve.structured_parts import CHAT, COMPLETIONS, RESPONSES

DRAFTERS = (
    "lookup", "lm", "dflash", "dspark", "eagle3", "exit:1", "router(lm,lookup)",
    "nested(lookup,chain:2,match)",
)  # fmt: skip
PREDICTION = "prediction"  # the field, beside a drafter that looks up
# What a column is called, with shape and schedule.
WAYS = {
    "chain": ("chain:4", "sequential"),
    "tree": ("tree:6", "sequential"),
    "parallel": ("chain:4", "parallel"),
    "ahead": ("chain:4", "ahead:2"),
}
SAMPLED = {
    ("rejection", "chain"): ("lookup", "lm", "dspark"),
    ("rejection", "tree"): ("lm",),
    ("rejection", "parallel"): ("lm",),
    ("rejection", "ahead"): ("lm",),
    ("block", "chain"): ("lm",),
    ("traversal", "tree"): ("lm",),
    ("kseq", "chain"): ("lm",),
}
SAME, LAW = "same", "law"
_SHARED = {wish.fields for wish in WISHES if wish.path == COMPLETIONS}
_AT_A_TIME = 16
_ANY_MACHINE_S = 120.0


@dataclass(frozen=True)
class Column:
    """A composition; `drafter` may be `PREDICTION`."""

    drafter: str
    way: str
    rule: str = "match"

    @property
    def names(self) -> dict[str, str]:
        """Of the four axes."""
        shape, schedule = WAYS[self.way]
        drafter = "lookup" if self.drafter == PREDICTION else self.drafter
        return {"drafter": drafter, "shape": shape, "rule": self.rule, "schedule": schedule}

    @property
    def server(self) -> Speculation:
        """What the server itself decodes with: requests may choose all but lanes."""
        own = self.names if self.names["schedule"] != "sequential" else {"drafter": "none"}
        return Speculation(**own)

    @property
    def is_sampled(self) -> bool:
        return self.rule != "match"


COLUMNS: tuple[Column, ...] = (
    *(Column(drafter, way) for way in WAYS for drafter in (*DRAFTERS, PREDICTION)),
    *(Column(drafter, way, rule) for (rule, way), names in SAMPLED.items() for drafter in names),
)
ALL_BODIES = Column("lm", "chain")  # is asked by chat and responses too for what is shared


@dataclass(frozen=True)
class Fault:
    """An answer that is none of those that may be."""

    column: Column
    fields: tuple[str, ...]
    path: str
    why: str


@dataclass(frozen=True)
class _Row:
    """One column's cells, tokens that were drafted, and faults."""

    cells: tuple[str | None, ...]
    num_drafted: int
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Found:
    """What every column says to every wish, in the order of `WISHES`; `None`: it was not asked.

    `refused`: columns that no server may be opened with, and why. `num_drafted`: tokens that were
    drafted in each. `unfelt`: wishes whose effect on plain decoding is not what they say.
    """

    cells: Mapping[Column, tuple[str | None, ...]]
    refused: Mapping[Column, str]
    num_drafted: Mapping[Column, int]
    faults: tuple[Fault, ...]
    unfelt: tuple[Wish, ...]


@dataclass(frozen=True)
class Answer:
    """A response: `choices` without what differs from request to request, or `error`."""

    status: int
    choices: Any
    error: Mapping[str, Any]
    num_drafted: int = 0


class Asking:
    """Sends bodies to one server, some at a time."""

    def __init__(self, http: httpx2.Client, pool: ThreadPoolExecutor) -> None:
        self._http, self._pool = http, pool

    def all(self, asked: Iterable[tuple[str, Body]]) -> list[Answer]:
        """Answers in order. The first request is alone: what it has built is there for the rest,
        of whom more than a few would be told to come again."""
        first, *rest = asked
        return [self._one(*first), *self._pool.map(lambda one: self._one(*one), rest)]

    def _one(self, path: str, body: Body) -> Answer:
        response = self._http.post(path, json=dict(body))
        if response.status_code != 200:
            return Answer(response.status_code, None, response.json().get("error", {}))
        if body.get("stream"):
            return Answer(200, _joined(path, _events(response.text)), {})
        answer = response.json()
        drafted = (answer.get("timings") or {}).get("draft_n", 0)
        choices = answer["output" if path == RESPONSES else "choices"]
        return Answer(200, _without_ids(choices), {}, drafted)


@contextmanager
def asking(model: Path, own: Speculation) -> Iterator[Asking]:
    """A live server of that composition, and who asks it."""
    with (
        Engine(model, speculate=own, backend="native", threads=1, kv_positions=16_384) as engine,
        serving(engine) as live,
        live.http() as http,
        ThreadPoolExecutor(_AT_A_TIME) as pool,
    ):
        yield Asking(http, pool)


@patch.multiple(overlapped, _PATIENT_S=_ANY_MACHINE_S, _CLOSING_S=_ANY_MACHINE_S)
def found(model: Path, columns: Sequence[Column] = COLUMNS) -> Found:
    """Ask for all of it: a server for each composition with lanes, one for all others.

    Where others need the cores, a drafter on a lane is waited for: one that is given up, as is
    right for who wants speed, leaves a sampled rule other draws, and so a seed another text.
    """
    with asking(model, Speculation("none")) as server:
        plain, greedy, unfelt = _plain(server)
    rows: dict[Column, _Row] = {}
    refused: dict[Column, str] = {}
    for own, group in groupby(sorted(_possible(columns, refused), key=_server), key=_server):
        with asking(model, Speculation(*own)) as server:
            rows |= {column: _row(server, column, plain, greedy) for column in group}
    return Found(
        {column: row.cells for column, row in rows.items()},
        refused,
        {column: row.num_drafted for column, row in rows.items()},
        tuple(fault for row in rows.values() for fault in row.faults),
        unfelt,
    )


def _server(column: Column) -> tuple[str, ...]:
    own = column.server
    return own.drafter, own.shape, own.rule, own.schedule


def _possible(columns: Sequence[Column], refused: dict[Column, str]) -> list[Column]:
    """Those that a server may be opened with; the others' reasons are kept."""
    possible = []
    for column in columns:
        try:
            Speculation(**column.names)
            possible.append(column)
        except OptionError as error:
            refused[column] = str(error)
    return possible


def _plain(server: Asking) -> tuple[list[Any], list[Any], tuple[Wish, ...]]:
    """What is the measure of all wishes, drawn and greedy, and those that are not felt as said."""
    off = {"speculation": "off"}
    drawn = server.all((one.path, {**one.base, **one.asks, **off}) for one in WISHES)
    greedy = server.all((one.path, {**one.greedy, **off}) for one in WISHES)
    bases = server.all((one.path, {**one.base, **off}) for one in WISHES)
    unfelt = [
        wish
        for wish, answer, base in zip(WISHES, drawn, bases, strict=True)
        if answer.status != 200 or (answer.choices != base.choices) is not wish.is_felt
    ]
    return [one.choices for one in drawn], [one.choices for one in greedy], tuple(unfelt)


def _row(server: Asking, column: Column, plain: list[Any], greedy: list[Any]) -> _Row:
    """What one composition answers, held against plain decoding."""
    wishes = [at for at, wish in enumerate(WISHES) if _is_asked(wish, column)]
    if column.is_sampled:
        answers, measures = _sampled(server, column, wishes), greedy
    else:
        answers = server.all((WISHES[at].path, body_of(WISHES[at], column)) for at in wishes)
        measures = plain
    cells: list[str | None] = [None] * len(WISHES)
    faults = []
    for at, answer in zip(wishes, answers, strict=True):
        verdict = verdict_of(answer, measures[at], WISHES[at])
        cells[at] = LAW if column.is_sampled and verdict == SAME else verdict
        if verdict.startswith("fault"):
            faults.append(Fault(column, WISHES[at].fields, WISHES[at].path, verdict))
    return _Row(tuple(cells), sum(one.num_drafted for one in answers), tuple(faults))


def _is_asked(wish: Wish, column: Column) -> bool:
    """Chat is asked for what completions lack everywhere under match, and for all that it shares
    with them of one composition; responses, which are read as chat, of that one only."""
    if wish.path == COMPLETIONS or column == ALL_BODIES:
        return True
    return wish.path == CHAT and not column.is_sampled and wish.fields not in _SHARED


def _sampled(server: Asking, column: Column, wishes: Sequence[int]) -> list[Answer]:
    """Answers to laws of one text; or one that is a fault, where a seed has two texts."""
    bodies = [(WISHES[at].path, body_of(WISHES[at], column)) for at in wishes]
    first, again = server.all(bodies), server.all(bodies)
    pinned = server.all(
        (WISHES[at].path, body_of(WISHES[at], column, is_greedy=True)) for at in wishes
    )
    return [_worst(*answers) for answers in zip(first, again, pinned, strict=True)]


def _worst(drawn: Answer, repeated: Answer, pinned: Answer) -> Answer:
    """The pinned answer, unless one of the others is worse."""
    refused = [one for one in (drawn, repeated) if one.status != pinned.status]
    if refused:
        return refused[0]
    if drawn.choices != repeated.choices:
        return Answer(200, f"two texts of one seed: {drawn.choices}, {repeated.choices}", {})
    return pinned


def body_of(wish: Wish, column: Column, *, is_greedy: bool = False) -> Body:
    """A wish as it is sent to this composition."""
    body = dict(wish.greedy) if is_greedy else {**wish.base, **wish.asks}
    names = column.names
    in_words = " + ".join(names.values())
    said = {NAMES: names, LANES: {**names, "schedule": "ahead:3"}}
    body["speculation"] = said[body["speculation"]] if "speculation" in body else in_words
    if column.drafter == PREDICTION:
        body.setdefault("prediction", {"type": "content", "content": "abcdabcabcdabd"})
    return body


def verdict_of(answer: Answer, plain: Any, wish: Wish) -> str:
    """What the table says of an answer; a fault says what is wrong."""
    if answer.status == 200:
        if answer.choices == plain:
            return SAME
        return f"fault: {json.dumps(answer.choices)} for {json.dumps(plain)}"
    named = str(answer.error.get("param")).partition(".")[0]
    is_named = named in (*wish.fields, "speculation")
    if answer.status == 400 and is_named and named in str(answer.error.get("message")):
        return f"refused: `{named}`"
    return f"fault: {answer.status} {json.dumps(dict(answer.error))}"


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_ids(one) for key, one in value.items() if key not in ("id", "call_id")
        }
    return [_without_ids(one) for one in value] if isinstance(value, list) else value


def _events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def _joined(path: str, events: Sequence[Any]) -> Any:
    """The choices of a stream, as they are where nothing is streamed."""
    if path == RESPONSES:
        return _without_ids(events[-1]["response"]["output"])
    parts = [one for event in events for one in event["choices"]]
    ends = [one["finish_reason"] for one in parts if one["finish_reason"]]
    if path == COMPLETIONS:
        said: Any = {"text": "".join(one["text"] for one in parts)}
    else:
        text = "".join(one["delta"].get("content") or "" for one in parts)
        said = {"message": {"role": "assistant", "content": text, "refusal": None}}
    return [{"index": 0, **said, "logprobs": None, "finish_reason": ends[0]}]
