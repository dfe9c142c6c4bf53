"""When requests leave: as many at a time as were asked for, or at random times whatever comes back.

Knows nothing of HTTP: `Send` is anything that takes a request's number and when it is due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from time import perf_counter
from typing import TypeAlias

import numpy as np

from forerun.tools.bench_serve_client import Outcome

Send: TypeAlias = Callable[[int, float], Awaitable[Outcome]]


def poisson_times(rate: float, duration_s: float, seed: int) -> tuple[float, ...]:
    """Times of arrivals in [0, duration_s), `rate` a second on average; the same for one seed."""
    generator = np.random.default_rng([seed, round(rate * 1000)])
    gaps = generator.exponential(1.0 / rate, size=max(16, int(rate * duration_s * 2) + 64))
    times = np.cumsum(gaps)
    return tuple(float(time) for time in times[times < duration_s])


async def closed_loop(
    send: Send,
    concurrency: int,
    duration_s: float,
    *,
    num_requests: int | None = None,
    now_s: Callable[[], float] = perf_counter,
) -> list[Outcome]:
    """Keep `concurrency` requests under way for a time, or until so many left; then let them end.

    A request leaves when another one ended, so a slow server is asked less.
    """
    numbers = iter(count() if num_requests is None else range(num_requests))
    until_s = now_s() + duration_s
    outcomes: list[Outcome] = []

    async def work() -> None:
        for number in numbers:  # shared: each takes the next one
            if now_s() >= until_s:
                return
            outcomes.append(await send(number, now_s()))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return outcomes


async def open_loop(
    send: Send, times_s: Sequence[float], now_s: Callable[[], float] = perf_counter
) -> list[Outcome]:
    """Let requests leave at these times from now on, whether or not others ended; hear them all.

    One that leaves late is still counted from when it was due.
    """
    began_s = now_s()
    tasks = []
    for number, time_s in enumerate(times_s):
        due_s = began_s + time_s
        await asyncio.sleep(max(0.0, due_s - now_s()))
        tasks.append(asyncio.ensure_future(send(number, due_s)))
    return list(await asyncio.gather(*tasks))
