"""What a service is asked, what it answers, and what it says of itself: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from forerun.drafters.prediction import RunIndex
from forerun.engine.constraints import Grammar
from forerun.engine.results import Completion, Piece
from forerun.engine.sequence import TokenLogprobs
from forerun.engine.witness import Seen
from forerun.errors import OptionError
from forerun.options import SamplingParams, Speculation


@dataclass(frozen=True, slots=True)
class Job:
    """One request: token ids of a prompt, and how it is continued.

    `speculates=False` decodes it plainly. `partition`: whose kept prefixes it may begin with, and
    whose it leaves behind. `is_watched`: its events tell how each round came about. `grammar`: what
    its text must be; it ends where that ends. `speculation`: how it is drafted for, None for as the
    engine does. `expected`: text that it may come to; it is proposed while it agrees.
    `scores_prompt`: the log-probabilities of its prompt are wanted too, as many a token as of what
    is generated. `generates=False`: nothing is, the prompt is all.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    speculates: bool = True
    partition: str = ""
    is_watched: bool = False
    grammar: Grammar | None = None
    speculation: Speculation | None = None
    expected: RunIndex | None = None
    scores_prompt: bool = False
    generates: bool = True


@dataclass(frozen=True, slots=True)
class Began:
    """It has its K/V memory; `num_cached` tokens of its prompt need not be read."""

    num_cached: int


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities of its prompt, of all tokens but the first; before anything is gained."""

    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Gained:
    """What a round brought; `logprobs` has an entry a token where they were asked for, `seen` is
    how it came about where that was."""

    piece: Piece
    logprobs: tuple[TokenLogprobs, ...] = ()
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a request; `finish_reason` is stop, length, cancelled or error."""

    completion: Completion


Event: TypeAlias = Began | Scored | Gained | Ended


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """How much may wait, in requests and in prompt tokens, how many rows share a round, and how
    many compositions requests may have built beside the engine's own; none may be.

    `overcommit`: how many times the K/V memory may be promised to requests that run. At 1 the
    longest outcome of each is owned from its beginning on; above, the youngest gives way when
    memory is short, and reads its text again later, to the same tokens.

    Raises:
        OptionError: another limit below one.
    """

    max_waiting: int = 256
    max_waiting_tokens: int = 1 << 20
    max_rows: int = 32
    max_compositions: int = 8
    overcommit: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_waiting", "max_waiting_tokens", "max_rows", "overcommit"):
            if not getattr(self, name) >= 1:
                raise OptionError(f"{name} must be at least 1, found {getattr(self, name)!r}")
        if self.max_compositions < 0:
            raise OptionError(f"max_compositions must not be negative: {self.max_compositions!r}")


@dataclass(frozen=True, slots=True)
class Load:
    """What a service holds now, and what it did since it began.

    `drafter` is `healthy`, `resting` (it failed and is left alone for a while) or `disabled`.
    `num_requests` counts ended ones by finish reason. `num_prompt_tokens` are those of requests
    that began, `num_cached_tokens` of them were not read again. `num_compositions` are held beside
    the engine's own. A draft is one row's of one round;
    `num_accepted_by_position[i]` counts drafts of which more than i tokens were kept.
    `num_preemptions`: how often a row gave its K/V memory back before its end.
    """

    num_waiting: int
    num_running: int
    num_waiting_tokens: int
    num_free_blocks: int
    num_blocks: int
    drafter: str
    num_requests: Mapping[str, int]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_rounds: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    num_accepted_by_position: tuple[int, ...]
    num_compositions: int = 0
    num_preemptions: int = 0
