"""What a round and a request cost and yield; the only place that measures time.

Seconds are wall time. `engine_s` is what is left of a round outside backend calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from types import TracebackType


class Span:
    """Seconds spent inside `with span:`, summed over uses."""

    __slots__ = ("_started", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> Span:
        self._started = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds += perf_counter() - self._started


def timed(call: Callable[[], object]) -> float:
    """Seconds that one call took."""
    span = Span()
    with span:
        call()
    return span.seconds


@dataclass(frozen=True, slots=True)
class RoundStats:
    """One round of all its rows: counts of tokens, and where its time went.

    `draft_s` is the whole of proposing, `verify_s` the target's calls, `engine_s` the round
    outside backend calls of target and drafter. `num_draft_passes`: forward passes of a small model
    that drafting took, for all rows together.
    """

    num_rows: int
    num_drafted: int
    num_accepted: int
    round_s: float
    draft_s: float
    verify_s: float
    engine_s: float
    num_draft_passes: int = 0


class RoundMeter:
    """The spans and counts of one round; `model` are the drafter's own backend calls."""

    __slots__ = (
        "draft", "model", "num_accepted", "num_draft_passes", "num_drafted", "round", "verify",
    )  # fmt: skip

    def __init__(self) -> None:
        self.round = Span()
        self.draft = Span()
        self.verify = Span()
        self.model = Span()
        self.num_drafted = 0
        self.num_accepted = 0
        self.num_draft_passes = 0

    def restart(self) -> None:
        """Begin the next round at zero."""
        self.round.seconds = self.draft.seconds = 0.0
        self.verify.seconds = self.model.seconds = 0.0
        self.num_drafted = self.num_accepted = self.num_draft_passes = 0

    def stats(self, num_rows: int) -> RoundStats:
        """What the round that just ended cost."""
        backend_s = self.verify.seconds + self.model.seconds
        return RoundStats(
            num_rows,
            self.num_drafted,
            self.num_accepted,
            self.round.seconds,
            self.draft.seconds,
            self.verify.seconds,
            self.round.seconds - backend_s,
            self.num_draft_passes,
        )


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """One request. Accepted tokens do not count the bonus; times are those of the rounds it was in.

    `tokens_per_s` is generated tokens per second of decoding (prefill apart). `num_failures`
    counts proposals that were thrown away because the drafter broke its contract.
    """

    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_failures: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens_per_s: float = 0.0
    draft_s: float = 0.0
    verify_s: float = 0.0
    engine_s: float = 0.0
    rounds: tuple[RoundStats, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, float]:
        """Every figure but the single rounds, for JSON."""
        names = [name for name in self.__slots__ if name != "rounds"]
        return {name: getattr(self, name) for name in names}


@dataclass(slots=True, eq=False)
class Tally:
    """A running request's figures; `rounds` holds every round it took part in."""

    prefill_s: float = 0.0
    num_drafted: int = 0
    num_accepted: int = 0
    num_failures: int = 0
    rounds: list[RoundStats] = field(default_factory=list)

    def freeze(self, num_generated: int) -> GenerationStats:
        """The figures of a finished request."""
        decode_s = sum(one.round_s for one in self.rounds)
        return GenerationStats(
            num_rounds=len(self.rounds),
            num_drafted=self.num_drafted,
            num_accepted=self.num_accepted,
            num_failures=self.num_failures,
            prefill_s=self.prefill_s,
            decode_s=decode_s,
            tokens_per_s=num_generated / decode_s if decode_s > 0 else 0.0,
            draft_s=sum(one.draft_s for one in self.rounds),
            verify_s=sum(one.verify_s for one in self.rounds),
            engine_s=sum(one.engine_s for one in self.rounds),
            rounds=tuple(self.rounds),
        )
