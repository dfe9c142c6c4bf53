"""What the outcomes of many requests say: latencies, throughput, goodput, errors, sameness.

Pure arithmetic on measured times. Must not send or time anything.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from forerun.tools.bench_serve_client import Outcome

LATE_S = 0.005  # a request that leaves later than this after it was due is counted as late
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Slo:
    """What makes a request good: seconds to its first text, and a token on average after that.

    None asks for nothing. A request that failed is never good.
    """

    ttft_s: float | None = None
    itl_s: float | None = None

    def is_met(self, outcome: Outcome) -> bool:
        """Whether a request was good."""
        if not outcome.is_ok:
            return False
        first_s, token_s = time_to_first(outcome), token_time(outcome)
        is_soon = self.ttft_s is None or (first_s is not None and first_s <= self.ttft_s)
        return is_soon and (self.itl_s is None or token_s is None or token_s <= self.itl_s)


@dataclass(frozen=True, slots=True)
class Window:
    """The time over which throughput is counted, by the clock of the outcomes."""

    began_s: float
    ended_s: float

    @property
    def length_s(self) -> float:
        return self.ended_s - self.began_s

    def has(self, at_s: float) -> bool:
        return self.began_s <= at_s < self.ended_s


def time_to_first(outcome: Outcome) -> float | None:
    """Seconds from when a request was due to its first text; None without text."""
    return outcome.arrivals_s[0] - outcome.due_s if outcome.arrivals_s else None


def token_time(outcome: Outcome) -> float | None:
    """Seconds a token after the first piece of text, on average; None with less than two pieces.

    Pieces are taken to have as many tokens each: no protocol says how many there are in one.
    """
    num_pieces = len(outcome.arrivals_s)
    if num_pieces < 2:
        return None
    num_after = max(outcome.num_tokens, num_pieces) * (num_pieces - 1) / num_pieces
    return (outcome.arrivals_s[-1] - outcome.arrivals_s[0]) / num_after


def gaps(outcome: Outcome) -> list[float]:
    """Seconds between pieces of text, as a reader sees them."""
    return [later - sooner for sooner, later in pairwise(outcome.arrivals_s)]


def spread_of(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean and percentiles of what there is; None if there is nothing."""
    there = np.array([value for value in values if value is not None], dtype=np.float64)
    if not there.size:
        return None
    found = {f"p{p}": float(np.percentile(there, p)) for p in _PERCENTILES}
    return {"mean": float(there.mean()), **found}


def tokens_in(window: Window, outcomes: Iterable[Outcome]) -> float:
    """Tokens that came inside the window, also of requests that ended later or failed later."""
    total = 0.0
    for one in outcomes:
        if one.arrivals_s:
            inside = sum(window.has(at_s) for at_s in one.arrivals_s)
            total += one.num_tokens * inside / len(one.arrivals_s)
    return total


def row_of(outcomes: Sequence[Outcome], window: Window, slo: Slo) -> dict[str, Any]:
    """The figures of one point of load, with the keys scripts build on.

    Latencies are of requests that ended well. Rates count what came, or ended, in the window;
    `goodput.share` is of all requests that left.
    """
    ok = [one for one in outcomes if one.is_ok]
    ended = [one for one in ok if window.has(one.ended_s)]
    lateness_s = [one.left_s - one.due_s for one in outcomes]
    return {
        "num_requests": len(outcomes),
        "num_ok": len(ok),
        "num_late": sum(late_s > LATE_S for late_s in lateness_s),
        "latest_s": max(lateness_s, default=0.0),
        "errors": dict(sorted(Counter(one.error for one in outcomes if one.error).items())),
        "num_prompt_tokens": sum(one.num_prompt_tokens for one in ok),
        "num_tokens": sum(one.num_tokens for one in ok),
        "duration_s": window.length_s,
        "tokens_per_s": _rate(tokens_in(window, outcomes), window),
        "requests_per_s": _rate(len(ended), window),
        "goodput": {
            "requests_per_s": _rate(sum(slo.is_met(one) for one in ended), window),
            "share": sum(slo.is_met(one) for one in ok) / len(outcomes) if outcomes else None,
        },
        "ttft_s": spread_of(time_to_first(one) for one in ok),
        "itl_s": spread_of(chain.from_iterable(gaps(one) for one in ok)),
        "token_s": spread_of(token_time(one) for one in ok),
        "request_s": spread_of(one.ended_s - one.due_s for one in ok),
    }


def first_errors(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """A sentence for each kind of error, of the first of its kind."""
    found: dict[str, str] = {}
    for one in outcomes:
        if one.error:
            found.setdefault(one.error, one.detail)
    return found


def sameness(points: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """Whether each prompt had one text, in every company, at every point of load.

    Only whole answers are compared. `num_everywhere` prompts were answered at every point; with
    none that was answered twice nothing is proven, and `identical` is false.
    """
    texts: dict[int, dict[str, str]] = defaultdict(dict)  # of a prompt: where each text was first
    where: dict[int, set[str]] = defaultdict(set)
    answers: Counter[int] = Counter()
    for name, outcomes in points.items():
        for one in outcomes:
            if one.is_ok:
                texts[one.prompt].setdefault(one.text, name)
                where[one.prompt].add(name)
                answers[one.prompt] += 1
    different = sorted(prompt for prompt, found in texts.items() if len(found) > 1)
    num_compared = sum(times > 1 for times in answers.values())
    return {
        "identical": not different and num_compared > 0,
        "num_compared": num_compared,
        "num_everywhere": sum(len(names) == len(points) for names in where.values()),
        "different": [_difference(prompt, texts[prompt]) for prompt in different],
    }


def _difference(prompt: int, texts: Mapping[str, str]) -> dict[str, Any]:
    (one, at_one), (other, at_other), *_ = texts.items()
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    at = min(len(one), len(other)) if same is None else same
    return {
        "prompt": prompt,
        "points": [at_one, at_other],
        "at_char": at,
        "texts": [one[at : at + 40], other[at : at + 40]],
    }


def _rate(number: float, window: Window) -> float:
    return number / window.length_s if window.length_s > 0 else 0.0
