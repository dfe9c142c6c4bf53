"""How long choices of requests took, as histograms with vLLM's names; the server's clock.

Must not know what requests say.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram

from forerun.engine.service import Ended, Event, Gained

_FIRST_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
_WHOLE_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Clock:
    """Measures requests into a registry; `now_s` counts from anywhere, `date_s` from 1970."""

    def __init__(
        self,
        registry: CollectorRegistry,
        model_name: str,
        now_s: Callable[[], float] = time.monotonic,
        date_s: Callable[[], float] = time.time,
    ) -> None:
        self._now_s = now_s
        self._date_s = date_s

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(
                f"vllm:{name}_seconds", text, ["model_name"], registry=registry, buckets=buckets
            )
            return made.labels(model_name)

        self.first = histogram("time_to_first_token", "From arrival to the first text.", _FIRST_S)
        self.token = histogram("inter_token_latency", "Between tokens, over a round.", _TOKEN_S)
        self.whole = histogram("e2e_request_latency", "From arrival to the end.", _WHOLE_S)

    def created(self) -> int:
        """The date of now, as OpenAI writes it."""
        return int(self._date_s())

    def now_s(self) -> float:
        """Seconds on a clock that never goes back."""
        return self._now_s()

    def request(self) -> RequestClock:
        """Begin to measure a request."""
        return RequestClock(self)


class RequestClock:
    """The times of one request; each of its choices has its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s = clock.now_s()
        self._last_s: dict[int, float] = {}  # when a choice that has begun last gained

    def hear(self, index: int, event: Event) -> None:
        """Note when an event of a choice came."""
        now_s = self._clock.now_s()
        if isinstance(event, Gained) and event.piece.token_ids:
            last_s = self._last_s.get(index)
            if last_s is None:
                self._clock.first.observe(now_s - self._began_s)
            else:
                self._clock.token.observe((now_s - last_s) / len(event.piece.token_ids))
            self._last_s[index] = now_s
        elif isinstance(event, Ended):
            self._clock.whole.observe(now_s - self._began_s)
