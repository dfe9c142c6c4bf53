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
# Of guesses at an exit, how often the bonus is among them: near what benchmarks/forecasts.py counts
# for 24 branches over the five exits of chain:4 at T=0.7.
_HIT, _NUM_GUESSES = 0.8, 5


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


def yields_of(record: Mapping[int, float]) -> Yields:
    """What a drafter's chains yield, as recorded (`trial.expected_tokens`) or guessed."""
    lengths = sorted(record) or range(1, _DEEPEST + 1)
    places = [0, *lengths]
    known = [1.0, *[expected_tokens(record, length) for length in lengths]]
    tokens = np.interp(range(min(_DEEPEST, places[-1]) + 1), places, known)
    reach = np.minimum.accumulate(np.minimum(np.diff(tokens), 1.0))
    accepted = reach / np.array([1.0, *reach[:-1]])
    return Yields(tuple(accepted.tolist()), PowerLaw.through(_HIT, _NUM_GUESSES))


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
