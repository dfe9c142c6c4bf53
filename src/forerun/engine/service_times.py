"""How long a service's requests waited, read and wrote, and how large they and its rounds were.

Pure: times are given, all of one clock. Must not know who asked, nor what for.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from forerun.engine.queue import Gain, Step
from forerun.engine.sequence import Sequence

_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
_TOKEN_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
_TOKENS = tuple(float(one * 10**power) for power in range(6) for one in (1, 2, 5))
_ROUND_TOKENS = (1.0, *(float(2**power) for power in range(3, 15)))


@dataclass(frozen=True, slots=True)
class Spread:
    """How values lie: `counts[i]` are at most `bounds[i]` and above the one before.

    The last count is of those above all bounds; `total` is the sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Spreads:
    """Of requests that came to their end by themselves, and of rounds.

    `queue_s` from arrival to K/V memory, `prefill_s` from there to the first token, `decode_s` from
    there to the last, `inference_s` both, `token_s` seconds a token after those of the first round.
    `round_tokens` are generated in a round, and of prompts those read for what begins with it.
    """

    queue_s: Spread
    prefill_s: Spread
    decode_s: Spread
    inference_s: Spread
    token_s: Spread
    prompt_tokens: Spread
    generated_tokens: Spread
    round_tokens: Spread


class _Counted:
    """A spread that grows."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def freeze(self) -> Spread:
        return Spread(self.bounds, tuple(self.counts), self.total)


@dataclass(slots=True)
class _Times:
    """When a request that has not ended came, got memory and said something first."""

    arrived_s: float
    began_s: float = 0.0
    first_s: float | None = None
    num_first: int = 0  # tokens of its first round


class Times:
    """Follows every request of a service from its arrival to its end."""

    def __init__(self) -> None:
        self._of_row: dict[int, _Times] = {}
        self._queue, self._prefill = _Counted(_SECONDS), _Counted(_SECONDS)
        self._decode, self._inference = _Counted(_SECONDS), _Counted(_SECONDS)
        self._token = _Counted(_TOKEN_SECONDS)
        self._prompt, self._generated = _Counted(_TOKENS), _Counted(_TOKENS)
        self._round = _Counted(_ROUND_TOKENS)

    def arrive(self, row: Sequence, now_s: float) -> None:
        """Note a request that was submitted."""
        self._of_row[row.id] = _Times(now_s)

    def begin(self, row: Sequence, now_s: float) -> None:
        """Note that a request got its K/V memory."""
        if (times := self._of_row.get(row.id)) is not None:
            times.began_s = now_s

    def learn(self, step: Step, now_s: float) -> None:
        """Note what a step that ended now brought."""
        if step.gains:
            self._round.add(sum(self._learn_gain(gain, now_s) for gain in step.gains))
        for row in step.ended:
            times = self._of_row.pop(row.id, None)
            if times is not None and row.finish_reason in ("stop", "length"):
                self._learn_ended(row, times, now_s)

    def forget(self, row: Sequence) -> None:
        """Drop a request that was cancelled or failed; an ended one is gone already."""
        self._of_row.pop(row.id, None)

    def freeze(self) -> Spreads:
        """All of now."""
        return Spreads(
            queue_s=self._queue.freeze(),
            prefill_s=self._prefill.freeze(),
            decode_s=self._decode.freeze(),
            inference_s=self._inference.freeze(),
            token_s=self._token.freeze(),
            prompt_tokens=self._prompt.freeze(),
            generated_tokens=self._generated.freeze(),
            round_tokens=self._round.freeze(),
        )

    def _learn_gain(self, gain: Gain, now_s: float) -> int:
        """How many tokens of the round are a row's."""
        row, num = gain.row, len(gain.piece.token_ids)
        times = self._of_row.get(row.id)
        if times is None or times.first_s is not None or not num:
            return num
        times.first_s, times.num_first = now_s, num
        return num + row.prompt_len - row.num_cached

    def _learn_ended(self, row: Sequence, times: _Times, now_s: float) -> None:
        first_s = now_s if times.first_s is None else times.first_s
        num_after = row.num_generated - times.num_first
        self._queue.add(times.began_s - times.arrived_s)
        self._prefill.add(first_s - times.began_s)
        self._decode.add(now_s - first_s)
        self._inference.add(now_s - times.began_s)
        if num_after:
            self._token.add((now_s - first_s) / num_after)
        self._prompt.add(row.prompt_len)
        self._generated.add(row.num_generated)
