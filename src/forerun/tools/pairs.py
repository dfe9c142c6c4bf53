"""What pairs of runs, plain and speculative, say about speed: pure arithmetic on measurements.

Must not time or run anything itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from forerun.tools.loops import looping

_NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one request: tokens it emitted, and its seconds in all and by part."""

    num_tokens: int
    round_s: float
    draft_s: float
    engine_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One completion: its tokens and the rounds that made them, prefill apart."""

    token_ids: tuple[int, ...]
    rounds: tuple[Round, ...]

    @property
    def decode_s(self) -> float:
        return sum(one.round_s for one in self.rounds)

    @property
    def num_decoded(self) -> int:
        """Tokens that came out of rounds."""
        return sum(one.num_tokens for one in self.rounds)

    def num_without_loops(self) -> int:
        """Tokens outside loops that came out of rounds."""
        marks = looping(self.token_ids)
        decoded = marks[max(len(marks) - self.num_decoded, 0) :]
        return len(decoded) - sum(decoded)

    def seconds_without_loops(self) -> float:
        """Time spent on tokens outside loops: each round counts by its share of them.

        A round that emitted four tokens, one of them looping, counts three quarters of its time.
        """
        marks = looping(self.token_ids)
        start = len(marks) - self.num_decoded
        total = 0.0
        for one in self.rounds:
            inside = marks[max(start, 0) : start + one.num_tokens]
            start += one.num_tokens
            total += one.round_s * (len(inside) - sum(inside)) / max(one.num_tokens, 1)
        return total


@dataclass(frozen=True, slots=True)
class Pair:
    """The same prompt, parameters and seed, with and without speculation, run back to back."""

    plain: Run
    speculative: Run

    @property
    def is_identical(self) -> bool:
        return self.plain.token_ids == self.speculative.token_ids


@dataclass(frozen=True, slots=True)
class Speedup:
    """How much sooner, with its 95 % bootstrap interval over prompts and their pairs."""

    ratio: float
    low: float
    high: float


def speedup(pairs_by_prompt: Sequence[Sequence[Pair]]) -> Speedup:
    """Speculative ÷ plain tokens per second, all prompts together; every prompt has as many pairs.

    A prompt's time is the median over its pairs, so one disturbed run does not move the figure.
    The interval resamples prompts, and pairs within each.
    """
    figures = np.array([[_figures(pair) for pair in group] for group in pairs_by_prompt])
    num_prompts, num_pairs, _ = figures.shape
    generator = np.random.default_rng(0)
    prompts = generator.integers(num_prompts, size=(_NUM_RESAMPLES, num_prompts, 1))
    pairs = generator.integers(num_pairs, size=(_NUM_RESAMPLES, num_prompts, num_pairs))
    low, high = np.quantile(_ratios(figures[prompts, pairs]), (0.025, 0.975))
    return Speedup(float(_ratios(figures[None])[0]), float(low), float(high))


def ratio_without_loops(pairs_by_prompt: Sequence[Sequence[Pair]]) -> float | None:
    """Speculative ÷ plain tokens per second over tokens outside loops; None where there are none.

    None if either side has no such token: the first round is left out, and a speculative one may
    have made all of them. For the same reason the two sides count their own tokens.
    """
    plain = _without_loops([[pair.plain for pair in group] for group in pairs_by_prompt])
    speculative = _without_loops(
        [[pair.speculative for pair in group] for group in pairs_by_prompt]
    )
    return speculative / plain if plain and speculative else None


def num_without_loops(pairs_by_prompt: Sequence[Sequence[Pair]]) -> int:
    """Tokens that `ratio_without_loops` rests on: outside loops, made by speculative rounds."""
    groups = [[pair.speculative.num_without_loops() for pair in group] for group in pairs_by_prompt]
    return round(sum(median(group) for group in groups))


def _without_loops(runs_by_prompt: Sequence[Sequence[Run]]) -> float | None:
    """Tokens per second outside loops, from each prompt's median time; None without tokens."""
    seconds = sum(median(run.seconds_without_loops() for run in runs) for runs in runs_by_prompt)
    tokens = sum(median(run.num_without_loops() for run in runs) for runs in runs_by_prompt)
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def tokens_per_s(runs_by_prompt: Sequence[Sequence[Run]]) -> float:
    """Decoded tokens per second over all prompts, from each prompt's median time."""
    seconds = sum(median(run.decode_s for run in runs) for runs in runs_by_prompt)
    tokens = sum(median(run.num_decoded for run in runs) for runs in runs_by_prompt)
    return tokens / seconds if seconds > 0 else 0.0


def _figures(pair: Pair) -> tuple[float, float, float, float]:
    plain, speculative = pair.plain, pair.speculative
    return plain.decode_s, plain.num_decoded, speculative.decode_s, speculative.num_decoded


def _ratios(figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[S]` ratios of tokens per second, from `figures [S P pairs 4]`; 0 where nothing ran."""
    plain_s, plain, speculative_s, speculative = np.moveaxis(
        np.median(figures, axis=2).sum(axis=1), -1, 0
    )
    slowness = speculative_s * plain
    ratios: NDArray[np.float64] = np.zeros_like(slowness)
    np.divide(speculative * plain_s, slowness, ratios, where=slowness > 0)
    return ratios
