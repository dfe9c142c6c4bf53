"""The engine: a model, a way to speculate, and requests.

The one place that builds everything; the loop itself is `round.py`, admission is `admission.py`,
and who runs when is `queue.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, cast

import numpy as np

from forerun.backends.sharing import OpenModels
from forerun.composition import Composition
from forerun.engine.admission import Admission
from forerun.engine.drafting import Openers
from forerun.engine.kept_grammars import Grammars
from forerun.engine.parts import Parts, build_beside, build_parts
from forerun.engine.patterns import Pattern
from forerun.engine.queue import Queue
from forerun.engine.results import Completion, Piece
from forerun.engine.sequence import Sequence
from forerun.engine.witness import Witness
from forerun.errors import EngineClosed, OptionError
from forerun.models.drafter_files import open_drafter
from forerun.models.drafter_match import refuse_mismatch
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.tokenizer import Tokenizer, load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.options import EngineOptions, SamplingParams, Speculation
from forerun.protocols import BLOCK_LEN, Backend, FeatureBackend, Reads
from forerun.stats import RoundMeter

__all__ = ["Completion", "Engine", "Pattern", "Piece", "Prompt"]

Prompt: TypeAlias = str | Rows[int]  # a text, or its token ids


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """What a service is built from; `lock` is held by whoever uses parts or meter. `beside` makes
    parts for requests that want others, without it."""

    parts: Parts
    meter: RoundMeter
    admission: Admission
    lock: threading.Lock
    is_closed: Callable[[], bool]
    completion_of: Callable[[Sequence], Completion]
    beside: Callable[[Composition], Parts]
    grammars: Grammars

    def refuse_closed(self) -> None:
        """Raise EngineClosed once the engine is closed."""
        if self.is_closed():
            raise EngineClosed("this engine was closed; build a new one")


class Engine:
    """Generates text from one model; use it in a `with` statement, or call `close`.

    `Engine(model)` alone chooses the backend and the drafter; results never depend on either.
    Options are those of `EngineOptions`. One engine may be used from several threads; their
    rounds take turns. A `witness` is shown every round and changes none.

    Raises:
        OptionError: an option outside its range, or a part of `speculate` that is not built.
        ModelError: a model or drafter that cannot be used.
        BackendError: the machine or the installation lacks what the backend needs.
    """

    def __init__(  # noqa: PLR0913  one keyword an option, as users write them
        self,
        model: str | Path = EMBEDDED_NAME,
        *,
        speculate: Speculation = Speculation(),  # noqa: B008  a frozen value
        backend: str = "auto",
        device: str = "cpu",
        dtype: str = "auto",
        isa: str = "auto",
        target_cores: tuple[int, ...] | None = None,
        draft_cores: tuple[int, ...] | None = None,
        threads: int | None = None,
        kv_positions: int | None = None,
        witness: Witness | None = None,
    ) -> None:
        options = EngineOptions(
            backend=backend,
            device=device,
            dtype=dtype,
            isa=isa,
            target_cores=target_cores,
            draft_cores=draft_cores,
            threads=threads,
            kv_positions=kv_positions,
        )
        if speculate.composition().schedule.kind in ("parallel", "ahead"):
            options = options.lanes_apart()
        directory = resolve_model(str(model))
        checkpoint = open_checkpoint(directory)
        self._tokenizer = load_tokenizer(directory, checkpoint.spec)
        self._meter = RoundMeter()
        self._options, self._directory, self._models = options, directory, OpenModels()
        target = self._models.model(checkpoint, options, options.cores_of("target"))
        try:
            opens = _openers(self._models, options, directory)
            parts = build_parts(speculate, target, directory, self._tokenizer, opens, self._meter)
            self._parts = replace(parts, witness=witness)
        except BaseException:
            target.close()
            raise
        self._admission = Admission(self._parts, self._tokenizer)
        end_ids = frozenset({*target.spec.eos_ids, *self._tokenizer.eos_ids})
        self._grammars = Grammars(self._tokenizer, target.spec.vocab, end_ids)
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def numerics(self) -> str:
        """Name of the arithmetic that results come from."""
        return self._parts.target.numerics

    @property
    def exactness(self) -> str:
        """What holds between any two ways of computing a result: `bits`, `tokens` or `law`."""
        return "law" if self._parts.rule.reads is Reads.LAWS else self._parts.target.exactness

    @property
    def schedule_reason(self) -> str:
        """Why rounds are scheduled as they are, in a line."""
        return self._parts.schedule_reason

    def schedule_figures(self) -> str:
        """What one memory says of drafting ahead here, in a line: measured for a moment, while
        nothing is generated; empty where there is nothing to say."""
        with self._lock:
            return "" if self._is_closed else self._parts.schedule_figures()

    @property
    def drafter_is_disabled(self) -> bool:
        """Whether the drafter failed so often that decoding goes on without it."""
        return self._parts.drafter.is_disabled

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory for the weights of the target and of all that draft; those of one model
        count once, however many compositions draft with it."""
        return self._models.weight_bytes

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        grammar: Pattern | None = None,
    ) -> Iterator[Piece]:
        """Generate one completion, a piece a round.

        Prompt and grammar are checked at once; work begins with the first piece that is asked for.

        Raises:
            CapacityError: the prompt does not fit the model or the K/V memory.
            OptionError: token ids, biases or masks outside the vocabulary.
            GrammarError: the grammar cannot be used, or the extra `grammar` is not installed.
            EngineClosed: after `close`.
        """
        self._refuse_closed()
        return self._stream(self._sequence(0, prompt, params or SamplingParams(), grammar))

    def generate(
        self,
        prompts: Prompt | Rows[Prompt],
        params: SamplingParams | Rows[SamplingParams] | None = None,
        *,
        grammar: Pattern | Rows[Pattern | None] | None = None,
    ) -> list[Completion]:
        """Complete one prompt or several, as many at a time as fit; results in their order.

        `params` and `grammar` are one value for all, or one a prompt. A text that a grammar binds
        is what plain decoding under its masks gives; it ends where the grammar does, with `stop`,
        and is not whole where `finish_reason` is `length`, or a stop string cut it. A request that
        fails while others run ends with `finish_reason="error"`; alone, it raises.

        Raises:
            CapacityError: a prompt does not fit the model or the K/V memory; nothing was run.
            OptionError: token ids, biases or masks outside the vocabulary; nothing was run.
            GrammarError: a grammar cannot be used, or the extra `grammar` is not installed;
                nothing was run. One that grows too complex on the way fails its own request.
            EngineClosed: after `close`.
        """
        self._refuse_closed()
        requests = _requests(prompts, params, grammar)
        sequences = [self._sequence(index, *request) for index, request in enumerate(requests)]
        for _ in self._pieces(sequences):
            pass
        if len(sequences) == 1 and sequences[0].error is not None:
            raise sequences[0].error
        return [self._completion(sequence) for sequence in sequences]

    def inside(self) -> Inside:
        """What a service of this engine is built from.

        Raises:
            EngineClosed: after `close`.
        """
        self._refuse_closed()
        return Inside(
            self._parts,
            self._meter,
            self._admission,
            self._lock,
            lambda: self._is_closed,
            self._completion,
            self._beside,
            self._grammars,
        )

    def _beside(self, wanted: Composition) -> Parts:
        """Parts of another composition, whose models have K/V for no more text than the target: who
        asks for them must not take what memory there is."""
        num_positions = self._parts.slots.num_blocks * BLOCK_LEN
        options = replace(self._options, kv_positions=num_positions)
        opens = _openers(self._models, options, self._directory)
        place = self._directory, self._tokenizer, opens, self._meter
        return build_beside(self._parts, wanted, *place)

    def close(self) -> None:
        """Give back threads and memory; more than once is fine."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._parts.drafter.close()
            self._parts.target.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _sequence(
        self, index: int, prompt: Prompt, params: SamplingParams, pattern: Pattern | None
    ) -> Sequence:
        """A request that is known to fit, bound by its grammar."""
        sequence = self._admission.sequence(index, prompt, params)
        if pattern is None:
            return sequence
        if params.ignore_eos:
            raise OptionError(
                "ignore_eos goes on behind the end of a text, and a text that a grammar binds ends"
                " where the grammar does: leave out one of the two"
            )
        sequence.bind(self._grammars.of(pattern))
        return sequence

    def _stream(self, sequence: Sequence) -> Iterator[Piece]:
        yield from self._pieces([sequence])
        if sequence.error is not None:
            raise sequence.error

    def _pieces(self, sequences: list[Sequence]) -> Iterator[Piece]:
        """Run requests to their end; what was taken for them is given back in any case."""
        queue = Queue(sequences, self._parts, self._meter)
        try:
            while not queue.is_done:
                with self._lock:
                    self._refuse_closed()
                    pieces = queue.step()
                yield from pieces
        finally:
            with self._lock:
                if not self._is_closed:
                    queue.release()

    def _completion(self, sequence: Sequence) -> Completion:
        wanted, num = sequence.params.logprobs is not None, sequence.num_generated
        parts, expected = sequence.parts or self._parts, sequence.expected
        return Completion(
            text=sequence.text,
            token_ids=tuple(sequence.tokens[sequence.prompt_len :]),
            finish_reason=sequence.finish_reason or "cancelled",
            seed=sequence.seed,
            numerics=self.numerics,
            exactness="law" if parts.rule.reads is Reads.LAWS else self._parts.target.exactness,
            stats=sequence.tally.freeze(num),
            logprobs=tuple(sequence.logprobs[:num]) if wanted else None,
            error=sequence.error,
            prediction=None if expected is None else expected.brought(num),
            drafter_state=parts.drafter.state,
        )

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise EngineClosed("this engine was closed; build a new one")


def _openers(models: OpenModels, options: EngineOptions, target_dir: Path) -> Openers:
    """How drafters' models are opened beside the target of that directory."""
    cores = options.cores_of("draft")

    def model(path: Path) -> Backend:
        return models.model(open_checkpoint(path), options, cores)

    def features(path: Path, target: Backend) -> FeatureBackend:
        drafter = open_drafter(path, target.spec)
        refuse_mismatch(drafter, target.spec, target_dir)
        return models.features(drafter, target, options, cores)

    return Openers(model, features, options.has_lanes)


def _requests(
    prompts: Prompt | Rows[Prompt],
    params: SamplingParams | Rows[SamplingParams] | None,
    grammar: Pattern | Rows[Pattern | None] | None,
) -> list[tuple[Prompt, SamplingParams, Pattern | None]]:
    is_single = isinstance(prompts, str) or (
        len(prompts) > 0 and isinstance(prompts[0], int | np.integer)
    )
    batch = cast("Rows[Prompt]", [prompts] if is_single else prompts)
    if params is None or isinstance(params, SamplingParams):
        params = [params or SamplingParams()] * len(batch)
    if not isinstance(grammar, list | tuple):
        grammar = [cast("Pattern | None", grammar)] * len(batch)
    for name, given in (("params", params), ("grammars", grammar)):
        if len(given) != len(batch):
            raise OptionError(f"{len(batch)} prompts, {len(given)} {name}: give one, or one each")
    return list(zip(batch, params, grammar, strict=True))
