"""Until when a request may take, wherever it is: in its body, on a thread, waiting, or answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from forerun.serve.refusals import Refusal, expired


@dataclass(frozen=True, slots=True)
class Deadline:
    """`longest_s` from `arrived_s` on, by the clock `now_s`, which counts from anywhere."""

    arrived_s: float
    longest_s: float
    now_s: Callable[[], float]

    def left_s(self) -> float:
        """Seconds until then; none are below zero."""
        return max(self.arrived_s + self.longest_s - self.now_s(), 0.0)

    def refusal(self) -> Refusal:
        """What a client is told whose request has passed it."""
        return expired(self.longest_s)
