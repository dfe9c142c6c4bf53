"""Events of the engine's thread, on the event loop: one request's jobs from submission to end.

Whatever happens to the request, `close` cancels what is left: nothing outlives its client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from forerun.engine.service import Ended, Event, Handle, Job
from forerun.serve.deadline import Deadline


class Submits(Protocol):
    """The part of a service that requests need."""

    def submit(self, job: Job, listener: Callable[[Event], None]) -> Handle:
        """Begin a job."""


class Feed:
    """The events of several jobs in the order they came; for one event loop."""

    def __init__(
        self,
        service: Submits,
        jobs: tuple[Job, ...],
        deadline: Deadline,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._deadline = deadline
        self._loop = loop
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._num_open = len(jobs)
        self._lock = threading.Lock()
        self._handles: list[Handle] = []
        self._is_closed = False

    def submit(self) -> None:
        """Hand every job to the engine; not for the event loop, it may wait for a lock.

        Raises:
            CapacityError: the queue is full or a job does not fit; none of them runs then.
        """
        try:
            for index, job in enumerate(self._jobs):
                handle = self._service.submit(job, self._listener(index))
                with self._lock:
                    self._handles.append(handle)
                    if self._is_closed:
                        handle.cancel()
        except BaseException:
            self.close()
            raise

    async def events(self, ping_s: float) -> AsyncIterator[tuple[int, Event] | None]:
        """Index and event until every job has ended; None after `ping_s` in which nothing came.

        Raises:
            Refusal: the request took too long; its jobs are cancelled.
        """
        while self._num_open:
            left_s = self._deadline.left_s()
            if not left_s:
                self.close()
                raise self._deadline.refusal()
            try:
                # Not `wait_for`: in Python 3.11 it forgets a cancellation that meets an event.
                async with asyncio.timeout(min(left_s, ping_s)):
                    index, event = await self._events.get()
            except TimeoutError:
                yield None
                continue
            self._num_open -= isinstance(event, Ended)
            yield index, event

    def close(self) -> None:
        """Cancel what has not ended; more than once is fine, and from any thread."""
        with self._lock:
            self._is_closed = True
            handles, self._handles = self._handles, []
        for handle in handles:
            handle.cancel()

    def _listener(self, index: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
            except RuntimeError:  # the loop has ended, and with it whoever would read this
                self.close()

        return hear
