"""A traced text as a target: the engine's own loop runs over it with any drafter.

Under `match` the target's choice depends on the text before it only, so a recording knows it at
every node of the text's own path, and nowhere else is it asked for.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, cast

import numpy as np

from forerun.backends import open_backend
from forerun.backends.slots import Slots, blocks_for
from forerun.draft import Draft, Verdict
from forerun.engine.detokenize import Detokenizer
from forerun.engine.drafting import Openers
from forerun.engine.parts import Parts, build_parts
from forerun.engine.queue import Queue
from forerun.engine.sequence import Sequence, Status
from forerun.errors import BackendError, ModelError, OptionError
from forerun.models.spec import ModelSpec, read_spec
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.options import EngineOptions, SamplingParams, Speculation
from forerun.protocols import Backend, ForwardBatch, ForwardOutput, Selection
from forerun.stats import RoundMeter, RoundStats
from forerun.tools.replay_bounds import Bounds
from forerun.tools.trace import Header, Request, Trace
from forerun.tree import Tokens


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is known of a model that is not here."""

    vocab: int


class Recording:
    """A backend without weights, which chooses as it once did."""

    def __init__(self, header: Header, spec: ModelSpec | Vocabulary, num_blocks: int) -> None:
        self.spec = spec
        self.numerics = header.numerics
        self.exactness = header.exactness
        self.num_blocks = num_blocks
        self._slots = Slots(0)
        self._sequences: list[Sequence] = []
        self._texts: dict[int, list[int | None]] = {}

    def watch(self, slots: Slots, sequences: list[Sequence], texts: list[list[int | None]]) -> None:
        """The requests that come next, and all their tokens: None where there was no choice."""
        self._slots, self._sequences = slots, sequences
        self._texts = {row.id: text for row, text in zip(sequences, texts, strict=True)}

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """The choices `[R]` at the wanted nodes, in place of logits."""
        if not len(batch.logit_nodes):
            return ForwardOutput(np.zeros(0, np.int32))
        texts = self._texts_of(batch)
        other = min(set(range(len(batch.token_ids) + 1)) - set(batch.token_ids.tolist()))
        choices: list[int] = []
        for row, text in enumerate(texts):
            start, end = batch.row_starts[row : row + 2].tolist()
            tokens, parents = (
                values[start:end].tolist() for values in (batch.token_ids, batch.parents)
            )
            choices += _choices(tokens, parents, int(batch.committed[row]), text, other)
        return ForwardOutput(np.array(choices, np.int32)[batch.logit_nodes])

    def _texts_of(self, batch: ForwardBatch) -> list[list[int | None]]:
        """The rows' texts; a row is known by its first block."""
        running = [row for row in self._sequences if row.status is Status.RUNNING]
        owners = {int(self._slots.table([row.id])[0, 0]): row.id for row in running}
        return [self._texts[owners[first]] for first in batch.block_table[:, 0].tolist()]

    def commit(self, batch: ForwardBatch, paths: Rows[Rows[int]]) -> None:
        """Nothing is kept."""

    def select(self, logits: Any, selection: Selection) -> Tokens:  # noqa: ARG002
        """The choices themselves."""
        return cast("Tokens", logits)

    def __getattr__(self, name: str) -> NoReturn:
        raise BackendError(f"a recording has no weights to answer `{name}` with")

    def close(self) -> None:
        """Nothing to give back."""


def _choices(
    tokens: list[int], parents: list[int], committed: int, text: list[int | None], end: int
) -> list[int]:
    """The next token of the text at nodes on its path, -1 elsewhere; `end` behind the text."""
    choices: list[int] = []
    places: list[int | None] = []  # a node's position in the text, None off its path
    for token, parent in zip(tokens, parents, strict=True):
        above = committed - 1 if parent < 0 else places[parent]
        place = None if above is None else above + 1
        if place is not None and (place >= len(text) or text[place] != token):
            place = None
        places.append(place)
        if place is None:
            choices.append(-1)
        else:
            after = text[place + 1] if place + 1 < len(text) else end
            choices.append(-1 if after is None else after)
    return choices


class _Counter:
    """A detokenizer that stops a request where it stopped before."""

    def __init__(self, num_tokens: int) -> None:
        self._left = num_tokens

    @property
    def is_stopped(self) -> bool:
        return self._left <= 0

    def push(self, token: int) -> str:  # noqa: ARG002
        self._left -= 1
        return ""

    def finish(self) -> str:
        return ""


Played: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]


class _Notes:
    """A witness that writes down what was verified, by request."""

    def __init__(self) -> None:
        self.played: dict[int, list[Played]] = {}

    def saw(
        self,
        rows: Rows[Sequence],
        drafts: Rows[Draft],
        said: Any,  # noqa: ARG002
        starts: Rows[int],  # noqa: ARG002
        verdicts: Rows[Verdict],  # noqa: ARG002
    ) -> None:
        for row, draft in zip(rows, drafts, strict=True):
            tokens, parents = draft.tree.tokens.tolist(), draft.tree.parents.tolist()
            played = self.played.setdefault(row.id, [])
            played.append((len(row.tokens), tuple(tokens), tuple(parents)))

    def settled(self, stats: RoundStats) -> None:
        """Times are not those of a run."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """What each request took; its rounds as `(known, tokens, parents)`; and `doubt`: why it may
    not be what a run takes, or None."""

    requests: tuple[Bounds, ...]
    rounds: tuple[tuple[Played, ...], ...]
    doubt: str | None


def rerun(trace: Trace, speculation: Speculation, directory: Path | None) -> Rerun:
    """Run the engine's loop over the traced text with another drafter and shape.

    Raises:
        OptionError: a shape whose sizes follow the clock.
        ForerunError: a drafter that cannot be built here.
    """
    header, meter, opened = trace.header, RoundMeter(), list[Backend]()
    calls = _calls(trace)
    num_blocks = max(sum(blocks_for(one.limit) for one in call) for call in calls)
    spec = read_spec(directory) if directory else Vocabulary(header.vocab)
    tokenizer = _tokenizer(directory, speculation)
    recording = Recording(header, spec, num_blocks)
    options = EngineOptions(backend=header.backend, device=header.device)

    def open_drafter(path: Path) -> Backend:
        opened.append(open_backend(open_checkpoint(path), options, None))
        return opened[-1]

    def open_features(path: Path, target: Backend) -> NoReturn:
        raise OptionError(
            f"the drafter {path} reads hidden states of the target, which a trace does not hold:"
            f" generate with it instead (the target is {target.numerics})"
        )

    target, place = cast("Backend", recording), directory or Path(header.model)
    opens = Openers(open_drafter, open_features)
    parts = build_parts(speculation, target, place, tokenizer, opens, meter)
    notes = _Notes()
    parts = replace(parts, witness=notes)
    try:
        if parts.pace is not None:
            raise OptionError(
                f"the sizes of shape {speculation.shape} follow the clock, which a trace cannot run"
                " again: name a size, as --shape chain:4"
            )
        counts = [one for call in calls for one in _run_call(trace, call, recording, parts, meter)]
        rounds = tuple(tuple(notes.played[one.request]) for one in trace.begun)
        return Rerun(tuple(counts), rounds, _doubt(header, opened, parts))
    finally:
        parts.drafter.close()


def _tokenizer(directory: Path | None, speculation: Speculation) -> Tokenizer:
    """The target's; without the model, only drafters that ask for none can be built."""
    if directory is not None:
        return load_tokenizer(directory, read_spec(directory))
    if speculation.drafter not in ("none", "lookup"):
        raise ModelError("the traced model is not on this machine")
    return cast("Tokenizer", None)


def _doubt(header: Header, opened: list[Backend], parts: Parts) -> str | None:
    for backend in opened:
        if backend.numerics != header.numerics or backend.exactness != "bits":
            return (
                f"the drafter computes in {backend.numerics} here ({backend.exactness}), the trace"
                f" was made in {header.numerics}: near-ties may fall otherwise"
            )
    if parts.drafter.num_failures:
        return f"the drafter failed {parts.drafter.num_failures} times when it was run again"
    return None


def _calls(trace: Trace) -> list[list[Request]]:
    """Requests that were asked for together: those whose rounds overlap, in order."""
    calls: list[list[Request]] = []
    last = -1
    for request in trace.begun:
        steps = [one.step for one in trace.rounds_of(request.request)]
        if not calls or steps[0] > last:
            calls.append([])
        calls[-1].append(request)
        last = max([last, *steps])
    return calls


def _run_call(
    trace: Trace, call: list[Request], recording: Recording, parts: Parts, meter: RoundMeter
) -> list[Bounds]:
    sequences, texts = [], []
    for request in call:
        emitted = trace.emitted(request.request)
        rounds = trace.rounds_of(request.request)
        failed = rounds[-1].finish_reason == "error"
        sequences.append(_sequence(request, len(emitted) + failed))
        texts.append([*request.prompt_ids, *emitted, *([None] if failed else [])])
    recording.watch(parts.slots, sequences, texts)
    queue = Queue(sequences, parts, meter)
    try:
        while not queue.is_done:
            queue.step()
    finally:
        queue.release()
    return [
        Bounds.exactly(row.num_generated, len(row.tally.rounds), row.tally.num_accepted)
        for row in sequences
    ]


def _sequence(request: Request, num_tokens: int) -> Sequence:
    return Sequence(
        id=request.request,
        index=request.request,
        tokens=list(request.prompt_ids),
        prompt_len=len(request.prompt_ids),
        limit=request.limit,
        params=read_params(request),
        seed=request.seed,
        stop_ids=frozenset(),
        detokenizer=cast("Detokenizer", _Counter(num_tokens)),
    )


def read_params(request: Request) -> SamplingParams:
    """How the request's tokens were chosen; log-probabilities are not asked for again.

    Raises:
        OptionError: parameters that no request can have had.
    """
    values = dict(request.params) | {"logprobs": None, "seed": request.seed}
    try:
        values["logit_bias"] = {int(token): bias for token, bias in values["logit_bias"].items()}
        for name in ("stop", "stop_token_ids", "allowed_tokens"):
            values[name] = None if values[name] is None else tuple(values[name])
        return SamplingParams(**values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise OptionError(
            f"request {request.request} has no readable params ({error}): trace it again"
        ) from error
