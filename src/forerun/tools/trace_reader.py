"""Reads a trace, and asks whether its lines follow from each other: replay rests on it.

Knows files, the values of a trace, and the rule `match`, which judges again from what is recorded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from forerun.composition import compose
from forerun.draft import Draft, Draw, Verdict
from forerun.errors import ForerunError, OptionError
from forerun.models.resolve import cached_snapshot, resolve_model
from forerun.noise import RoundNoise
from forerun.rules.match import Match
from forerun.tools.trace import (
    FORMAT,
    KINDS,
    Header,
    NodeLaw,
    Request,
    Round,
    Summary,
    Trace,
    built,
    summary_of,
)
from forerun.tree import TokenTree

_ROUNDING = 1e-5  # of probabilities and of their sums, float32 in the backend


def read_trace(path: Path) -> Trace:
    """Read a trace, and check that its lines follow from each other as far as they can.

    A last line without its end is left out: the process that wrote it was killed.

    Raises:
        OptionError: no such file, no trace, or lines that contradict each other.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OptionError(f"the trace {path} cannot be read: {error.strerror}") from error
    *lines, cut = content.split(b"\n")
    values = [_value(path, number, line) for number, line in enumerate(lines, start=1)]
    if not values or not isinstance(values[0], Header):
        raise OptionError(f"{path} is no trace: its first line must be a header, see docs/trace.md")
    if values[0].format != FORMAT:
        raise OptionError(
            f"{path} has format {values[0].format}, this version reads {FORMAT}: trace it again"
        )
    summary = values[-1] if isinstance(values[-1], Summary) else None
    body = values[1:-1] if summary else values[1:]
    if any(isinstance(one, Header | Summary) for one in body) or (summary and cut):
        raise OptionError(f"{path} has lines of another trace in it: a trace has one header")
    trace = Trace(
        values[0],
        tuple(one for one in body if isinstance(one, Request)),
        tuple(one for one in body if isinstance(one, Round)),
        summary,
    )
    if summary and _digest(lines[:-1]) != summary.sha256:
        raise OptionError(f"{path} was changed after it was written: trace it again")
    check(trace, str(path))
    return trace


def local_model(name: str) -> Path | None:
    """The directory of a traced model if it is on this machine; nothing is downloaded.

    Raises:
        ModelError: a name that no model can have.
    """
    if Path(name).is_dir():
        return Path(name)
    return cached_snapshot(name) if name.count("/") == 1 else resolve_model(name)


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def _value(path: Path, number: int, line: bytes) -> Header | Request | Round | Summary:
    try:
        record = json.loads(line)
        kind = KINDS[record.pop("kind")]
        value: Header | Request | Round | Summary = built(kind, record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{path}:{number} is no line of a trace ({type(error).__name__}: {error});"
            " see docs/trace.md"
        ) from error
    return value


def check(trace: Trace, name: str) -> None:
    """Refuse a trace whose rounds contradict each other.

    Raises:
        OptionError: the first contradiction, by request and round.
    """
    header = trace.header
    rule = compose(header.drafter, header.shape, header.rule, header.schedule).rule
    texts: dict[int, list[int]] = {}
    counts: dict[int, int] = {}
    for number, request in enumerate(trace.requests):
        _check_request(request, number, header.vocab, name)
        texts[number], counts[number] = list(request.prompt_ids), 0
    for one in trace.rounds:
        where = f"{name}, request {one.request}, round {one.round}"
        if one.request not in texts or one.round != counts[one.request]:
            raise OptionError(f"{where}: it does not follow on the round before: trace it again")
        problem = _problem(one, texts[one.request], header.vocab, rule)
        if problem:
            raise OptionError(f"{where}: {problem}; the file was changed: trace it again")
        texts[one.request] += one.emitted
        counts[one.request] += 1
    summary = trace.summary
    if summary is not None:
        found = summary_of(len(trace.requests), list(trace.rounds), summary.sha256)
        if any(
            getattr(found, count) != getattr(summary, count)
            for count in ("num_requests", "num_rounds", "num_tokens", "num_accepted")
        ):
            raise OptionError(f"{name}: its summary is not that of its rounds: trace it again")


def _check_request(request: Request, number: int, vocab: int, name: str) -> None:
    inside = request.prompt_ids and all(0 <= token < vocab for token in request.prompt_ids)
    if request.request != number or not inside or request.limit <= len(request.prompt_ids):
        raise OptionError(
            f"{name}, request {number}: its prompt or limit cannot be of a model with {vocab}"
            " tokens; the file was changed: trace it again"
        )


def _problem(one: Round, text: list[int], vocab: int, rule: str) -> str | None:
    """What is wrong with a round that began with `text` known, or None."""
    num_nodes = len(one.tokens)
    try:
        draft = draft_of(one)
    except (ForerunError, ValueError) as error:
        return str(error)
    figures = (one.margins, one.ranks, one.scores, one.choices)
    if any(row is not None and len(row) != num_nodes for row in figures):
        return "a figure is missing for one of its nodes"
    if not all(0 <= token < vocab for token in one.tokens) or not -1 <= one.bonus < vocab:
        return f"a token is outside the vocabulary [0, {vocab})"
    if one.known != len(text) or one.tokens[0] != text[-1]:
        return "its pending token is not the last known one"
    if not _is_path(one) or not _ends_well(one):
        return "its verdict is no path in its tree"
    if rule == "match":
        return _judged_again(one, draft)
    if one.choices is not None or one.target_laws is None:
        return f"rule {rule} reads laws, and it has none"
    laws = (*one.target_laws, *(one.draft_laws or ()))
    return None if all(_is_law(law) for law in laws) else "a law is none: see its probabilities"


def draft_of(one: Round) -> Draft:
    """The draft of a round, without its laws.

    Raises:
        DrafterError: it is no tree.
        ValueError: no way to draw is called so.
    """
    tree = TokenTree(np.array(one.tokens, np.int32), np.array(one.parents, np.int32))
    return Draft(tree, Draw(one.draw))


def _is_path(one: Round) -> bool:
    inside = all(0 <= node < len(one.tokens) for node in one.path)
    pairs = zip(one.path, one.path[1:], strict=False)
    return (
        inside and one.path[:1] == (0,) and all(one.parents[child] == node for node, child in pairs)
    )


def _ends_well(one: Round) -> bool:
    if one.bonus < 0:
        return one.finish_reason == "error" and one.kept == 0
    is_whole = one.kept == len(one.path)
    return is_whole or (0 < one.kept < len(one.path) and one.finish_reason is not None)


def _judged_again(one: Round, draft: Draft) -> str | None:
    if one.choices is None:
        return "rule match reads choices, and it has none"
    verdict = Match().judge(draft, np.array(one.choices, np.int32), RoundNoise(0, 0, 0))
    if verdict != Verdict(one.path, one.bonus):
        return "its verdict does not follow from the target's choices"
    return None


def _is_law(law: NodeLaw) -> bool:
    known = dict((*law.top, *law.children, *((law.kept,) if law.kept else ())))
    return (
        all(0.0 <= one <= 1.0 + _ROUNDING for one in known.values())
        and sum(known.values()) <= 1.0 + _ROUNDING
    )
