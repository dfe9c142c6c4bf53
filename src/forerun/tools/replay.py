"""`forerun trace replay`: what would another drafter, shape or rule have given for the same text?

Exactly, where the trace says it or the drafter can be run again; else between two ends, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from forerun.composition import LONGEST, POINT_DRAFTERS, Composition, ShapeName
from forerun.draft import Draw
from forerun.errors import ForerunError, OptionError
from forerun.options import Speculation
from forerun.tools.recording import Rerun, rerun
from forerun.tools.replay_bounds import (
    UNKNOWN,
    Acceptance,
    Bounds,
    chain_bounds,
    coupled_acceptance,
    sampled_acceptance,
)
from forerun.tools.terminal import write, write_json
from forerun.tools.trace import Round, Trace
from forerun.tools.trace_reader import local_model, read_trace

# Their token at a position depends on the text before it and the noise of that position only.
_POSITIONAL = ("lm", "exit", "nested")
_Read: TypeAlias = Callable[[list[Round]], list[Acceptance]]
_OTHER_TEXT = "; of this text: a run under that rule would write another"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a replay found: a line of bounds each request.

    `method`: `traced` (it is the trace itself), `rerun` (the drafter was run again over the text),
    `determined` (what was drafted says it), `expected` (so, over the noise of a sampled rule) or
    `bounded` (nothing more is known). `same_text`: whether a run as asked for would write this very
    text.
    """

    method: str
    requests: tuple[Bounds, ...]
    why: str
    same_text: bool
    agrees: bool | None = None  # of the traced parts, run again: whether each round is the same

    @property
    def total(self) -> Bounds:
        """All requests together."""
        return Bounds.total(self.requests)


@dataclass(frozen=True, slots=True)
class Question:
    """A trace, what it was made with once `auto` was decided, and what is asked instead."""

    trace: Trace
    traced: Speculation
    asked: Speculation
    may_rerun: bool = True

    @property
    def is_same(self) -> bool:
        """Whether the trace was made as asked."""
        return self.traced.composition() == self.asked.composition()


def run(
    path: Path,
    asked: tuple[str | None, str | None, str | None],
    *,
    may_rerun: bool,
    as_json: bool,
) -> int:
    """Replay and report; 1 if the traced composition, run again, gives other rounds."""
    trace = read_trace(path)
    if not trace.begun:
        raise OptionError(f"{path} has no round in it: nothing was generated, or it was cut early")
    question = ask(trace, *asked, may_rerun=may_rerun)
    found = report(question, answer(question))
    if as_json:
        write_json({"trace": str(path), **found})
    else:
        write(_told(found))
    return int(found["agrees"] is False)


def ask(
    trace: Trace,
    drafter: str | None = None,
    shape: str | None = None,
    rule: str | None = None,
    *,
    may_rerun: bool = True,
) -> Question:
    """The question that these names put; None is what the trace was made with.

    Raises:
        OptionError: a name that is none, or `auto` where the trace cannot say what it became.
    """
    header = trace.header
    used = Speculation(_used_drafter(trace, drafter), header.shape, header.rule, header.schedule)
    asked = Speculation(
        drafter or used.drafter, shape or header.shape, rule or header.rule, header.schedule
    )
    if asked.drafter == "auto":
        raise OptionError("drafter auto is decided by a timing: name one, as --drafter lookup")
    if asked.composition().shape.kind == "auto" and asked.drafter != "none":
        raise OptionError(
            "the lengths of shape auto follow the clock, which a trace cannot run again: name a"
            " shape, as --shape chain:4"
        )
    return Question(trace, used, asked, may_rerun)


def _used_drafter(trace: Trace, asked: str | None) -> str:
    """What `auto` became: it drafts coupled with a small model, and points with lookup."""
    name = trace.header.drafter
    if name != "auto":
        return name
    draws = {one.draw for one in trace.rounds if one.num_drafted}
    if draws:
        return "lm" if Draw.COUPLED.value in draws else "lookup"
    if asked is None:
        raise OptionError(
            "the trace has no draft in it that would say which drafter auto became: name one, as"
            " --drafter lookup"
        )
    return name


def answer(question: Question) -> Answer:
    """The best that can be said: by running again, else by what was drafted, else by bounds."""
    traced, asked = question.traced.composition(), question.asked.composition()
    same_text = traced.rule == asked.rule == "match" or question.is_same
    note, doubt = "" if same_text else _OTHER_TEXT, ""
    if _may_run(question, traced, asked):
        speculation = Speculation(question.asked.drafter, _run_shape(question.asked), "match")
        try:
            again = rerun(question.trace, speculation, _directory(question.trace))
        except ForerunError as error:
            doubt = f"{asked.drafter.name} cannot be run again here: {error}"
        else:
            doubt = again.doubt or ""
            if not doubt:
                why = f"{question.asked.drafter} was run again over the emitted tokens"
                agrees = _agrees(question.trace, again) if question.is_same else None
                return Answer("rerun", again.requests, why + note, same_text, agrees)
    if question.is_same:
        return _as_traced(question, doubt)
    read, why = _reader(traced, asked)
    why = "; ".join(part for part in (doubt, why) if part) + note
    bounds = _bounds(question.trace, read, _depth(asked.shape))
    method = _METHODS[read]
    return Answer(method, bounds, why, same_text)


def _may_run(question: Question, traced: Composition, asked: Composition) -> bool:
    """Whether the drafter's own tokens decide which of them are kept, given the text."""
    names = {leaf.name for leaf in asked.drafter.leaves()}
    if names <= set(POINT_DRAFTERS):
        # A point draft is kept iff it is the emitted token, under either rule.
        is_chain = asked.shape.kind == "chain" or names == {"none"}
        return asked.rule == "match" or (asked.rule == "rejection" and is_chain)
    both_match = traced.rule == asked.rule == "match"
    return question.may_rerun and both_match and "exit" not in names


def _run_shape(asked: Speculation) -> str:
    return "chain:1" if asked.drafter == "none" else asked.shape


def _directory(trace: Trace) -> Path | None:
    try:
        return local_model(trace.header.model)
    except ForerunError:
        return None


def _as_traced(question: Question, doubt: str) -> Answer:
    why = "the trace was made so: these are its own rounds" + (f"; {doubt}" if doubt else "")
    return Answer("traced", traced_bounds(question.trace), why, same_text=True)


def _agrees(trace: Trace, again: Rerun) -> bool:
    """Whether the same trees were verified at the same places."""
    rounds = tuple(
        tuple((one.known, one.tokens, one.parents) for one in trace.rounds_of(request.request))
        for request in trace.begun
    )
    return again.rounds == rounds


def traced_bounds(trace: Trace) -> tuple[Bounds, ...]:
    """What each request took."""
    rounds = [trace.rounds_of(request.request) for request in trace.begun]
    return tuple(
        Bounds.exactly(sum(one.kept for one in row), len(row), sum(one.num_accepted for one in row))
        for row in rounds
    )


def _nothing(rounds: list[Round]) -> list[Acceptance]:
    return [UNKNOWN] * sum(one.kept for one in rounds)


_METHODS: Mapping[_Read, str] = {
    _nothing: "bounded",
    coupled_acceptance: "determined",
    sampled_acceptance: "expected",
}


def _bounds(trace: Trace, read: _Read, longest: int) -> tuple[Bounds, ...]:
    bounds = []
    for request in trace.begun:
        room = request.limit - len(request.prompt_ids)
        bounds.append(chain_bounds(read(trace.rounds_of(request.request)), longest, room))
    return tuple(bounds)


def _reader(traced: Composition, asked: Composition) -> tuple[_Read, str]:
    """How acceptance is read off the traced drafts, and why so."""
    same = traced.drafter == asked.drafter and asked.drafter.name in _POSITIONAL
    if not same:
        return _nothing, "the trace holds drafts of another drafter: only bounds are known"
    if asked.shape.kind != "chain":
        return _nothing, "how a tree would have grown is not in the trace: only bounds are known"
    if traced.rule == asked.rule == "match":
        return coupled_acceptance, (
            "the drafter's token at a position depends on the text before it only: known wherever"
            " the trace drafted below the kept path, unknown behind a draft that was kept whole"
        )
    if asked.rule == "rejection" and traced.rule != "match":
        return sampled_acceptance, (
            "expected over the rule's noise, by both laws of each position; unknown where the"
            " drafter's law was not taken"
        )
    return _nothing, (
        f"a trace made with rule {traced.rule} does not hold what rule {asked.rule} would have"
        " read: only bounds are known"
    )


def _depth(shape: ShapeName) -> int:
    """The most drafts that one round of a shape can keep."""
    return len(shape.widths) or shape.size or LONGEST


def report(question: Question, found: Answer) -> dict[str, Any]:
    """The object of `--json`; `agrees` where the traced composition itself was run again."""
    traced = Bounds.total(traced_bounds(question.trace))
    return {
        **_names(question.asked),
        "method": found.method,
        "is_exact": found.total.is_exact and found.method != "expected",
        "same_text": found.same_text,
        "why": found.why,
        **_figures(found.total),
        "traced": {**_names(question.traced), **_figures(traced)},
        "agrees": found.agrees,
        "is_cut": question.trace.summary is None,
        "requests": [_figures(one) for one in found.requests],
    }


def _names(speculation: Speculation) -> dict[str, str]:
    return {name: getattr(speculation, name) for name in ("drafter", "shape", "rule")}


def _figures(bounds: Bounds) -> dict[str, Any]:
    return {
        "num_tokens": bounds.num_tokens,
        "num_rounds": list(bounds.num_rounds),
        "num_accepted": list(bounds.num_accepted),
        "tokens_per_round": list(bounds.tokens_per_round),
    }


def _told(found: dict[str, Any]) -> str:
    lines = []
    for label, one in (("traced", found["traced"]), ("asked", found)):
        names = f"{one['drafter']}, {one['shape']}, {one['rule']}"
        lines.append(
            f"{label:<7} {names}: {_range(one['tokens_per_round'], 2)} tokens a round,"
            f" {_range(one['num_rounds'])} rounds, {_range(one['num_accepted'])} accepted of"
            f" {one['num_tokens']} tokens"
        )
    lines.append(
        f"{'exact' if found['is_exact'] else 'interval'} ({found['method']}): {found['why']}"
    )
    if found["agrees"] is not None:
        lines.append(
            "agrees with the trace" if found["agrees"] else "DOES NOT agree with the trace"
        )
    return "\n".join(lines) + "\n"


def _range(ends: list[float], digits: int = 0) -> str:
    """One number, or an interval; counts that are expected have a fraction."""
    low, high = (f"{end:.{digits if digits or float(end).is_integer() else 1}f}" for end in ends)
    return f"exact {low}" if ends[0] == ends[1] else f"interval [{low}, {high}]"
