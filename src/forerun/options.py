"""What a caller may ask for, as frozen values checked where they are built."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from forerun.composition import Composition, compose, read_words
from forerun.errors import OptionError

MAX_LOGPROBS = 20
LEAST_TEMPERATURE = 1e-6  # smaller ones only make scores overflow: ask for 0
LEAST_REPETITION_PENALTY = 1e-6  # scores are divided by it: smaller ones overflow too


def _no_bias() -> Mapping[int, float]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the target's tokens are chosen and when to stop.

    Order of processors: bias and allowed tokens, penalties along the path, temperature, top-k,
    top-p, min-p; lowest id on ties. `temperature=0` is the argmax. `top_k=0`, `top_p=1`, `min_p=0`
    are off. Without a seed one is drawn from the operating system and returned with the result.
    `logprobs=n` returns the raw log-softmax of each chosen token and of the n best.

    Raises:
        OptionError: a value outside its range; the message names the range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=_no_bias)
    allowed_tokens: tuple[int, ...] | None = None
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    choice: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        if 0.0 < self.temperature < LEAST_TEMPERATURE:
            raise OptionError(
                f"temperature must be 0 (greedy) or at least {LEAST_TEMPERATURE}, found"
                f" {self.temperature!r}"
            )
        _within("top_k", self.top_k, 0, 2**31 - 1)
        _within("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, LEAST_REPETITION_PENALTY, 100.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _within("choice", self.choice, 0, 2**16 - 1)
        if self.seed is not None:
            _within("seed", self.seed, 0, 2**64 - 1)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        for token, bias in self.logit_bias.items():
            _within(f"logit_bias[{token}]", bias, -100.0, 100.0)
        if self.allowed_tokens is not None and not self.allowed_tokens:
            raise OptionError(
                "allowed_tokens is empty: give at least one token id, or None for all"
            )
        if isinstance(self.stop, str):
            raise OptionError('stop must be a tuple of strings; write stop=("…",)')
        if any(not text for text in self.stop):
            raise OptionError("stop strings must not be empty")

    @property
    def has_penalties(self) -> bool:
        """Whether the law at a node depends on which tokens came before it."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class Speculation:
    """One answer to each of the four questions, as the strings of the command line.

    `drafter`: `auto`, `none`, `lookup`, `lookup:DIR`, `prediction:FILE`, `lm`, `dflash`,
    `dspark`, `eagle3` (each of these four also with `:DIR`), `exit:LAYER`, `router(D,D,…)`,
    `nested(D,S,R)`. `shape`: `auto`, `chain:K`, `chain:auto`, `tree:N`, `tree:auto`, `tree:3x2x1`,
    `tree:FILE.json`. `rule`: `auto`, `match`, `rejection`, `block`, `traversal`, `kseq`.
    `schedule`: `auto`, `sequential`, `parallel`, `ahead`, `ahead:B`, `ahead:B:C`.

    Raises:
        OptionError: a name that is unknown.
        IncompatibleSpeculation: parts that would not be exact, or not possible, together.
    """

    drafter: str = "auto"
    shape: str = "auto"
    rule: str = "auto"
    schedule: str = "auto"

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, str) or not value:
                raise OptionError(f"{item.name} must be a non-empty string, found {value!r}")
        self.composition()

    @staticmethod
    def parse(text: str) -> Speculation:
        """`lm + tree:8 + match`: the names of some axes in any order; the others are `auto`.

        Raises:
            OptionError: as for the four strings, or a word that is none of them.
        """
        return Speculation(**read_words(text))

    def composition(self) -> Composition:
        """What the four strings say."""
        return compose(self.drafter, self.shape, self.rule, self.schedule)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Where and how a model runs.

    `backend`: `auto`, `native`, `torch`. `device`: `cpu`, or what torch calls its device. `dtype`
    (torch only): `auto`, `float32`, `float64`, `bfloat16`. `isa` (native only): an instruction
    path to force; `float32-portable` is another arithmetic (docs/arithmetic.md).
    `target_cores`/`draft_cores`: cores of each model's lane, None for all; `threads` instead takes
    the first so many cores for both. `kv_positions`: K/V positions kept for all requests together;
    None takes what a quarter of the free memory holds, within reason.

    Raises:
        OptionError: a value outside its range; the message names the range.
    """

    backend: str = "auto"
    device: str = "cpu"
    dtype: str = "auto"
    isa: str = "auto"
    target_cores: tuple[int, ...] | None = None
    draft_cores: tuple[int, ...] | None = None
    threads: int | None = None
    kv_positions: int | None = None

    def __post_init__(self) -> None:
        _one_of("backend", self.backend, ("auto", "native", "torch"))
        _one_of("dtype", self.dtype, ("auto", "float32", "float64", "bfloat16"))
        if self.threads is not None:
            _within("threads", self.threads, 1, 1024)
        if self.kv_positions is not None:
            _within("kv_positions", self.kv_positions, 1, 2**31 - 1)
        for name in ("target_cores", "draft_cores"):
            cores = getattr(self, name)
            if cores is not None and (not cores or len(set(cores)) != len(cores)):
                raise OptionError(f"{name} must be distinct core numbers, found {cores!r}")

    def cores_of(self, lane: str) -> tuple[int, ...] | None:
        """Cores of the lane `target` or `draft`; None for all that this process may use."""
        cores = self.target_cores if lane == "target" else self.draft_cores
        if cores is not None or self.threads is None:
            return cores
        allowed = sorted(os.sched_getaffinity(0))
        if self.threads > len(allowed):
            raise OptionError(f"threads={self.threads}, this process may use {len(allowed)} cores")
        return tuple(allowed[: self.threads])

    @property
    def has_lanes(self) -> bool:
        """Whether each model has cores of its own."""
        target, draft = self.target_cores, self.draft_cores
        return target is not None and draft is not None and not set(target) & set(draft)

    def lanes_apart(self) -> EngineOptions:
        """The same, with the last core as the drafter's own lane where nobody said otherwise."""
        if self.target_cores is not None or self.draft_cores is not None:
            return self
        allowed = self.cores_of("target") or tuple(sorted(os.sched_getaffinity(0)))
        if len(allowed) < 2:
            return self
        return replace(self, target_cores=allowed[:-1], draft_cores=allowed[-1:])


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{name} must be one of {', '.join(known)}, found {value!r}")


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(low, int):
        is_number = is_number and isinstance(value, int)
    inside = is_number and not math.isnan(value) and low <= value <= high
    if inside and not (open_low and value == low):
        return
    kind = "an integer" if isinstance(low, int) else "a number"
    bracket = "(" if open_low else "["
    raise OptionError(f"{name} must be {kind} in {bracket}{low}, {high}], found {value!r}")
