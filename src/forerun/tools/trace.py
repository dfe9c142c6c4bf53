"""A trace: every round of every request, as frozen values and as lines of JSON.

The schema is docs/trace.md. Knows values; must not know engines or models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import UnionType
from typing import Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

FORMAT = 1
NUM_TOP = 8  # tokens of a law that are written beside those it is asked for

Token: TypeAlias = tuple[int, float]  # a token id and its probability
_Line = TypeVar("_Line")


@dataclass(frozen=True, slots=True)
class Header:
    """The first line: what made the trace. `speculation` is as asked for, `auto` included."""

    format: int
    version: str
    model: str
    vocab: int
    numerics: str
    exactness: str
    backend: str
    device: str
    drafter: str
    shape: str
    rule: str
    schedule: str
    machine: str


@dataclass(frozen=True, slots=True)
class Request:
    """Before a request's first round; `request` counts from 0 in order of beginning."""

    request: int
    prompt_ids: tuple[int, ...]
    params: dict[str, Any]
    seed: int
    limit: int


@dataclass(frozen=True, slots=True)
class NodeLaw:
    """A law at a node of the kept path: its likeliest tokens, best first, its probability of each
    drafted child, and of the token that was kept there (None where nothing was)."""

    node: int
    top: tuple[Token, ...]
    children: tuple[Token, ...]
    kept: Token | None


@dataclass(frozen=True, slots=True)
class Round:
    """One row's round; times are those of the whole pass `step`, which may hold several rows.

    `known` tokens, prompt included, as it began; `kept` of `path` and `bonus` were emitted (fewer
    only where a stop or the end came first). `choices` where the rule reads choices, else
    `target_laws`. A figure that is not finite is None.
    """

    request: int
    round: int
    step: int
    num_rows: int
    known: int
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    draw: str
    margins: tuple[float | None, ...] | None
    ranks: tuple[int, ...] | None
    scores: tuple[float | None, ...] | None
    draft_laws: tuple[NodeLaw, ...] | None
    choices: tuple[int, ...] | None
    target_laws: tuple[NodeLaw, ...] | None
    path: tuple[int, ...]
    bonus: int
    kept: int
    finish_reason: str | None
    draft_s: float
    verify_s: float
    round_s: float

    @property
    def emitted(self) -> tuple[int, ...]:
        """The tokens that this round added."""
        return (*[self.tokens[node] for node in self.path[1:]], self.bonus)[: self.kept]

    @property
    def num_drafted(self) -> int:
        return len(self.tokens) - 1

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that were emitted."""
        return min(self.kept, len(self.path) - 1)


@dataclass(frozen=True, slots=True)
class Summary:
    """The last line of a trace that was not cut; `sha256` is that of all bytes before it."""

    num_requests: int
    num_steps: int
    num_rounds: int
    num_tokens: int
    num_drafted: int
    num_accepted: int
    draft_s: float
    verify_s: float
    round_s: float
    sha256: str


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace; without `summary` it was cut, and ends with its last whole round."""

    header: Header
    requests: tuple[Request, ...]
    rounds: tuple[Round, ...]
    summary: Summary | None

    @property
    def begun(self) -> list[Request]:
        """The requests that have a round; a cut may leave out the last one's."""
        return [one for one in self.requests if self.rounds_of(one.request)]

    def rounds_of(self, request: int) -> list[Round]:
        """The rounds of one request, in order."""
        return [one for one in self.rounds if one.request == request]

    def emitted(self, request: int) -> list[int]:
        """Every token that a request was given."""
        return [token for one in self.rounds_of(request) for token in one.emitted]


def summary_of(requests: int, rounds: list[Round], sha256: str) -> Summary:
    """The figures of so many requests; a pass of several rows counts its time once."""
    steps = {one.step: one for one in rounds}.values()
    return Summary(
        num_requests=requests,
        num_steps=len(steps),
        num_rounds=len(rounds),
        num_tokens=sum(one.kept for one in rounds),
        num_drafted=sum(one.num_drafted for one in rounds),
        num_accepted=sum(one.num_accepted for one in rounds),
        draft_s=sum(one.draft_s for one in steps),
        verify_s=sum(one.verify_s for one in steps),
        round_s=sum(one.round_s for one in steps),
        sha256=sha256,
    )


KINDS: Mapping[str, type] = {
    "header": Header,
    "request": Request,
    "round": Round,
    "summary": Summary,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


def line_of(value: Header | Request | Round | Summary) -> str:
    """One line of the file, its newline included."""
    line = {"kind": _NAMES[type(value)], **asdict(value)}
    return json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n"


def built(kind: type[_Line], record: Mapping[str, Any]) -> _Line:
    """A value out of a line's object.

    Raises:
        KeyError, TypeError, ValueError: a field that is missing, or not of its type.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _typed(hints[name], record[name], name) for name in names})


def _typed(hint: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type a field has."""
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        (hint,) = [one for one in get_args(hint) if one is not type(None)]
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list):
            raise TypeError(f"{name} must be a list")
        if kinds[-1] is Ellipsis:
            return tuple([_typed(kinds[0], one, name) for one in value])
        pairs = zip(kinds, value, strict=True)
        return tuple(_typed(one, item, name) for one, item in pairs)
    if hint is NodeLaw:
        return built(NodeLaw, value)
    if hint == dict[str, Any]:
        hint = dict
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_plain = isinstance(value, hint) and not isinstance(value, bool)
    if not is_plain or (hint is float and not math.isfinite(value)):
        raise TypeError(f"{name} must be {hint.__name__}, found {value!r}")
    return value
