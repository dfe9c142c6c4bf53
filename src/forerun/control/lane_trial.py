"""Does a lane of its own pay for a drafter, and how many branches? Timed once, before any request.

Both models run their passes, apart and at once; what that says of schedules is `overlap.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np

from forerun.control.outcomes import PowerLaw
from forerun.control.overlap import LaneCosts, Yields
from forerun.control.trial import chain_of, expected_tokens, least_seconds
from forerun.protocols import Backend
from forerun.stats import timed

_WIDTHS = (1, 2, 4, 8)  # nodes a verification is timed with
_FEW, _MANY = 1, 8  # branches that a pass of the drafter is timed with
_REPEATS = 5
_DEEPEST = 8
_GRID = np.linspace(0.0, 1.0, 1025)  # chances
# Of guesses at an exit, how often the bonus is among them: so shared out, within 0.06 of each share
# that benchmarks/forecasts.py counts for an lm's chains (2 or 4; 8, 16 or 24 branches; T 0 or 0.7).
_HIT, _NUM_GUESSES = 0.85, 5


def measured_lanes(target: Backend, drafter: Backend, hand_over: Callable[[], object]) -> LaneCosts:
    """Seconds of both models' passes on their lanes, which must not share a core, and of
    `hand_over`: giving a lane a job of nothing and taking its result."""
    verify = [partial(target.forward, chain_of(width)) for width in _WIDTHS]
    draft = [partial(drafter.forward, chain_of(width)) for width in (_FEW, _MANY)]
    alone = least_seconds(*verify)
    with looping(draft[1]):
        beside = median(timed(verify[2]) for _ in range(_REPEATS))
    with looping(verify[2]):
        few, many = (median(timed(call) for _ in range(3 * _REPEATS)) for call in draft)
    return LaneCosts(
        verify=tuple(zip(_WIDTHS, alone, strict=True)),
        step_s=few,
        busy=max(1.0, beside / alone[2]),
        branch_s=max(0.0, many - few) / (_MANY - _FEW),
        handover_s=handover_s(hand_over, verify[0]),
    )


def handover_s(hand_over: Callable[[], object], between: Callable[[], object]) -> float:
    """Median seconds of a hand-over, each behind a pass that leaves caches as a round does."""

    def once() -> float:
        between()
        return timed(hand_over)

    once()  # the lane's thread begins
    return median(once() for _ in range(3 * _REPEATS))


def yields_of(record: Mapping[int, float], num_levels: int = _DEEPEST) -> Yields:
    """What a drafter's chains of at most so many tokens yield, as recorded
    (`trial.expected_tokens`) or guessed.

    Between two lengths of the record, and beyond its last, all levels are kept equally often: by
    any other law a recorded length would look better than its neighbours for being recorded.
    """
    accepted: list[float] = []
    reach = tokens = 1.0
    for length in sorted(record) or [1]:
        num, known = length - len(accepted), expected_tokens(record, length)
        chance = _even((known - tokens) / reach, num) if reach else 0.0
        accepted += [chance] * num
        reach, tokens = reach * chance**num, known
    accepted += [accepted[-1]] * (num_levels - len(accepted))
    return Yields(tuple(accepted[:num_levels]), PowerLaw.through(_HIT, _NUM_GUESSES))


def _even(num_kept: float, num_drafted: int) -> float:
    """The chance of each of so many tokens, all before it being kept, by which so many are kept."""
    expected = (_GRID[:, None] ** np.arange(1, num_drafted + 1)).sum(axis=1)
    return float(np.interp(num_kept, expected, _GRID))


@contextmanager
def looping(call: Callable[[], object]) -> Iterator[None]:
    """Run a call over and over beside what happens inside."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            call()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
