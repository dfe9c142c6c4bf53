"""`forerun generate`: continue one text, streaming, or many at once."""

from __future__ import annotations

import secrets
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from forerun.errors import OptionError
from forerun.options import SamplingParams
from forerun.tools.bench_decode import why_scheduled
from forerun.tools.lane_watch import LaneWatch, together
from forerun.tools.machine import forerun_version, machine_name
from forerun.tools.prompt_files import read_prompts
from forerun.tools.terminal import Ink, say, write, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from forerun.engine.engine import Completion, Engine, Piece
    from forerun.engine.patterns import Pattern
    from forerun.engine.witness import Witness
    from forerun.tools.arguments import EngineArguments
    from forerun.tools.trace import Header


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be continued, a text or a file of them, and how; `pattern`: what all texts that
    come must be.

    Raises:
        OptionError: not one of text and file.
    """

    prompt: str | None
    prompts: Path | None
    params: SamplingParams
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompts is None):
            raise OptionError("give either a PROMPT (- reads it from stdin) or --prompts FILE")


def run(
    request: Request, engine: EngineArguments, *, trace: Path | None = None, as_json: bool
) -> int:
    """Generate and report; texts go to stdout, figures to stderr, rounds to `trace`."""
    if trace is not None and request.pattern is not None:
        raise OptionError(
            "--trace does not record what a grammar let follow, so that no replay of it could be"
            " right: leave out one of the two"
        )
    request = replace(request, params=with_seed(request.params))
    if request.prompts is not None:
        return _run_batch(request.prompts, request, engine, trace=trace, as_json=as_json)
    prompt, watch = request.prompt or "", LaneWatch()
    text = sys.stdin.read() if prompt == "-" else _printable(prompt)
    with _opened(engine, trace, watch) as live:
        if engine.lanes is not None:
            say(f"schedule: {live.schedule_reason}")
        if as_json:
            found = live.generate(text, request.params, grammar=request.pattern)
            write_json({**completion_dict(found[0]), **_schedule_dict(live)})
        else:
            _stream(live, text, request, watch)
            # With lanes the reason was said before; its figures take a moment, and come last.
            is_said = engine.lanes is not None
            why = live.schedule_figures() if is_said else why_scheduled(live)
            if why:
                say(Ink.of(sys.stderr).dim(f"schedule: {why}"))
    return 0


@contextmanager
def _opened(
    engine: EngineArguments, trace: Path | None, watch: LaneWatch | None = None
) -> Iterator[Engine]:
    """The engine, its rounds written to `trace` where that is asked for, its lanes watched where
    anything may work ahead."""
    works_ahead = engine.speculation().composition().schedule.kind != "sequential"
    watches: list[Witness] = [watch] if watch is not None and works_ahead else []
    if trace is None:
        with engine.open(witness=together(watches)) as live:
            yield live
        return
    from forerun.tools.trace_writer import TraceWriter

    with (
        TraceWriter(trace) as writer,
        engine.open(witness=together([writer, *watches])) as live,
    ):
        writer.begin(_header(engine, live))
        yield live


def _header(engine: EngineArguments, live: Engine) -> Header:
    """What made a trace; a directory is named in full, so that a replay finds it."""
    from forerun.models.resolve import resolve_model
    from forerun.models.spec import read_spec
    from forerun.tools.trace import FORMAT, Header

    directory = resolve_model(engine.model)
    is_path = Path(engine.model).expanduser().is_dir()
    return Header(
        format=FORMAT,
        version=forerun_version(),
        model=str(directory.resolve()) if is_path else engine.model,
        vocab=read_spec(directory).vocab,
        numerics=live.numerics,
        exactness=live.exactness,
        backend=engine.backend,
        device=engine.device,
        drafter=engine.drafter,
        shape=engine.shape,
        rule=engine.rule,
        schedule=engine.schedule,
        machine=machine_name(),
    )


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters with a seed that can be reported: drawn here if none was given."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(32))


def completion_dict(completion: Completion) -> dict[str, Any]:
    """One completion, with the keys that scripts build on."""
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "numerics": completion.numerics,
        "exactness": completion.exactness,
        "stats": {**completion.stats.as_dict(), **_lane_dict(completion)},
    }


def _schedule_dict(engine: Engine) -> dict[str, Any]:
    """Which schedule it is, asked for or chosen, and why."""
    parts = engine.inside().parts
    kind = "sequential" if parts.composition is None else parts.composition.schedule.kind
    found = {"num_branches": parts.schedule.num_branches, "reason": engine.schedule_reason}
    return {"schedule": {"kind": kind, **found}}


def _lane_dict(completion: Completion) -> dict[str, Any]:
    """What working ahead brought, where anything did."""
    rounds = completion.stats.rounds
    if all(one.lane is None for one in rounds):
        return {}
    from forerun.tools.lane_report import LaneRun, lane_report

    report = lane_report([LaneRun(rounds, (0,) * len(rounds))])
    return {} if report is None else {"lane": report.as_dict()}


def write_pieces(pieces: Iterable[Piece], ink: Ink) -> str:
    """Write text as it comes, accepted drafts marked; returns the plain text."""
    texts: list[str] = []
    for piece in pieces:
        runs = zip(piece.texts, piece.is_drafted, strict=True)
        write("".join(ink.mark_accepted(text) if drafted else text for text, drafted in runs))
        texts.append(piece.text)
    return "".join(texts)


def _stream(engine: Engine, text: str, request: Request, watch: LaneWatch) -> None:
    ink = Ink.of(sys.stdout)
    pieces = engine.stream(text, request.params, grammar=request.pattern)
    if sys.stdout.isatty():
        write(ink.dim(text))
    figures = Figures()
    write_pieces(figures.count(pieces), ink)
    write("\n")
    line = f"{figures.line()}{watch.line()} · seed {request.params.seed} · {engine.numerics}"
    say(Ink.of(sys.stderr).dim(line))
    if why := cut_short(request.pattern, figures.finish_reason, request.params):
        say(why)


def cut_short(pattern: Pattern | None, finish_reason: str | None, params: SamplingParams) -> str:
    """Why a text that a grammar binds is not what it asks for; empty where it is."""
    if pattern is None or finish_reason != "length":
        return ""
    return (
        f"the text was cut and is not whole: {params.max_tokens} tokens were too few; give more"
        " with --max-tokens"
    )


class Figures:
    """Counts pieces as they pass; the first one's time is the prompt's, not decoding's."""

    def __init__(self) -> None:
        self._started = self._first = self._last = perf_counter()
        self._num_tokens = self._num_first = self._num_rounds = 0
        self.finish_reason: str | None = None

    def count(self, pieces: Iterable[Piece]) -> Iterable[Piece]:
        """The same pieces."""
        for piece in pieces:
            self._last = perf_counter()
            if self._num_rounds == 0:
                self._first, self._num_first = self._last, len(piece.token_ids)
            self._num_rounds += 1
            self._num_tokens += len(piece.token_ids)
            self.finish_reason = piece.finish_reason
            yield piece

    def line(self) -> str:
        """What a reader wants to know in one line."""
        decode_s = self._last - self._first
        after_first = self._num_tokens - self._num_first
        speed = f"{after_first / decode_s:.0f} tokens/s" if decode_s > 0 else "one round"
        rounds = max(self._num_rounds, 1)
        return (
            f"{self._num_tokens} tokens · {speed} · {self._num_tokens / rounds:.2f} tokens a round"
            f" · first after {self._first - self._started:.2f} s"
        )


def _run_batch(
    path: Path,
    request: Request,
    engine: EngineArguments,
    *,
    trace: Path | None,
    as_json: bool,
) -> int:
    """All prompts of a file in one call; 1 if a request failed by itself."""
    prompts = read_prompts(path)
    with _opened(engine, trace) as live:
        texts = [prompt.text for prompt in prompts]
        completions = live.generate(texts, request.params, grammar=request.pattern)
        schedule = _schedule_dict(live)
    if as_json:
        write_json({"completions": [completion_dict(one) for one in completions], **schedule})
    else:
        ink = Ink.of(sys.stdout)
        for prompt, completion in zip(prompts, completions, strict=True):
            write(f"{ink.bold(f'── {prompt.name} ──')}\n{completion.text}\n")
    for prompt, completion in zip(prompts, completions, strict=True):
        if completion.error is not None:
            say(f"forerun: {prompt.name}: {completion.error}")
    return int(any(completion.error is not None for completion in completions))


def _printable(argument: str) -> str:
    # An argument that is not UTF-8 comes with its bytes hidden in surrogates.
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
