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

    __slots__ = ("began_s", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.began_s = 0.0  # of the last use

    def __enter__(self) -> Span:
        self.began_s = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds += perf_counter() - self.began_s


def timed(call: Callable[[], object]) -> float:
    """Seconds that one call took."""
    span = Span()
    with span:
        call()
    return span.seconds


@dataclass(frozen=True, slots=True)
class LaneStats:
    """What working ahead brought to a round, summed over its rows, and what it took.

    Of rows that could draft: `num_hits` began with a draft prepared for the very outcome that came,
    `num_wrong` met an outcome that was not prepared, `num_short` one that was, with nothing below
    it yet, `num_late` waited in vain, `num_cold` had no forecast at all (a first round, a resting
    drafter). `num_redrafted` of those that missed were drafted for while nothing was verified.
    `num_branches` outcomes and `num_prepared` nodes were prepared in the job collected at this
    round's beginning, of which `num_taken` nodes were used; it took `busy_s` seconds of the lane
    from `began_s` on and `num_passes` passes. The verifier waited `wait_s` for it, and `redraft_s`
    for drafts made while nothing was verified.
    """

    num_hits: int = 0
    num_wrong: int = 0
    num_short: int = 0
    num_late: int = 0
    num_cold: int = 0
    num_redrafted: int = 0
    num_branches: int = 0
    num_prepared: int = 0
    num_taken: int = 0
    num_passes: int = 0
    began_s: float = 0.0
    busy_s: float = 0.0
    wait_s: float = 0.0
    redraft_s: float = 0.0


class LaneMeter:
    """The counts and spans of one round that was drafted for ahead."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin the next round at zero."""
        self.num_hits = self.num_wrong = self.num_short = self.num_late = self.num_cold = 0
        self.num_redrafted = self.num_branches = self.num_prepared = self.num_taken = 0
        self.num_passes = 0
        self.began_s = self.busy_s = 0.0
        self.waiting, self.redrafting = Span(), Span()

    def add_job(self, began_s: float, ended_s: float, num_passes: int) -> None:
        """Count a forecast that was collected."""
        self.began_s = began_s
        self.busy_s += ended_s - began_s
        self.num_passes += num_passes

    def stats(self) -> LaneStats:
        """What was counted since the round began."""
        counts = {name: getattr(self, name) for name in _COUNTED}
        return LaneStats(**counts, wait_s=self.waiting.seconds, redraft_s=self.redrafting.seconds)


_COUNTED = tuple(name for name in LaneStats.__slots__ if name not in ("wait_s", "redraft_s"))


@dataclass(frozen=True, slots=True)
class RoundStats:
    """One round of all its rows: counts of tokens, and where its time went.

    `draft_s` is the whole of proposing, `verify_s` the target's calls, `engine_s` the round
    outside backend calls of target and drafter. `num_draft_passes`: forward passes of a small model
    that drafting took, for all rows together. `lane`: what working ahead brought, where it did;
    `began_s` is when the round began, by the clock of `LaneStats`.
    """

    num_rows: int
    num_drafted: int
    num_accepted: int
    round_s: float
    draft_s: float
    verify_s: float
    engine_s: float
    num_draft_passes: int = 0
    began_s: float = 0.0
    lane: LaneStats | None = None


class RoundMeter:
    """The spans and counts of one round; `model` are the drafter's own backend calls."""

    __slots__ = (
        "draft", "lane", "model", "num_accepted", "num_draft_passes", "num_drafted", "round",
        "verify",
    )  # fmt: skip

    def __init__(self) -> None:
        self.round = Span()
        self.draft = Span()
        self.verify = Span()
        self.model = Span()
        self.num_drafted = 0
        self.num_accepted = 0
        self.num_draft_passes = 0
        self.lane: LaneMeter | None = None  # set where something works ahead

    def restart(self) -> None:
        """Begin the next round at zero."""
        self.round.seconds = self.draft.seconds = 0.0
        self.verify.seconds = self.model.seconds = 0.0
        self.num_drafted = self.num_accepted = self.num_draft_passes = 0
        if self.lane is not None:
            self.lane.restart()

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
            self.round.began_s,
            None if self.lane is None else self.lane.stats(),
        )


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """One request. Accepted tokens do not count the bonus; times are those of the rounds it was in.

    `tokens_per_s` is generated tokens per second of decoding (prefill apart). `num_failures`
    counts proposals that were thrown away because the drafter broke its contract, `most_drafted`
    the tokens of the largest draft that was verified.
    """

    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_failures: int = 0
    most_drafted: int = 0
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
    most_drafted: int = 0
    rounds: list[RoundStats] = field(default_factory=list)

    def freeze(self, num_generated: int) -> GenerationStats:
        """The figures of a finished request."""
        decode_s = sum(one.round_s for one in self.rounds)
        return GenerationStats(
            num_rounds=len(self.rounds),
            num_drafted=self.num_drafted,
            num_accepted=self.num_accepted,
            num_failures=self.num_failures,
            most_drafted=self.most_drafted,
            prefill_s=self.prefill_s,
            decode_s=decode_s,
            tokens_per_s=num_generated / decode_s if decode_s > 0 else 0.0,
            draft_s=sum(one.draft_s for one in self.rounds),
            verify_s=sum(one.verify_s for one in self.rounds),
            engine_s=sum(one.engine_s for one in self.rounds),
            rounds=tuple(self.rounds),
        )
