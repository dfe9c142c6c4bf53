"""A lane's thread: the only one that touches a drafter, so that nobody waits for it by accident.

Jobs run one at a time in the order they were posted. Who posts one holds a ticket, and may look at
it, wait for it for so long, or forget it. A thread that died is replaced by the next job.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from forerun.errors import DrafterError

_Result = TypeVar("_Result")


class Clock(Protocol):
    """What a lane knows of time: how late it is, and how long a wait has lasted."""

    def now_s(self) -> float: ...

    def wait(self, done: threading.Event, longest_s: float | None) -> bool: ...


class WallClock:
    """The machine's own time, by `perf_counter`."""

    def now_s(self) -> float:
        """Seconds of which only differences mean anything."""
        return perf_counter()

    def wait(self, done: threading.Event, longest_s: float | None) -> bool:
        """Wait at most so long, or for ever; whether it is done."""
        return done.wait(longest_s)


class Ticket(Generic[_Result]):
    """A job's result, once it is there; `posted_s`, `began_s` and `ended_s` by the lane's clock."""

    __slots__ = ("_clock", "_done", "_error", "_job", "_result", "began_s", "ended_s", "posted_s")

    def __init__(self, job: Callable[[], _Result], clock: Clock) -> None:
        self._job = job
        self._clock = clock
        self._done = threading.Event()
        self._result: _Result | None = None
        self._error: BaseException | None = None
        self.posted_s = clock.now_s()
        self.began_s = self.ended_s = 0.0

    @property
    def is_done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self._done.is_set()

    def elapsed_s(self) -> float:
        """Seconds since the job was posted."""
        return self._clock.now_s() - self.posted_s

    def wait(self, longest_s: float | None = None) -> bool:
        """Wait at most so long; whether the job has ended."""
        return self._clock.wait(self._done, longest_s)

    def result(self) -> _Result:
        """What the job returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def run(self) -> None:
        """Do the job, on the lane's thread; raises only what ends that thread."""
        self.began_s = self._clock.now_s()
        try:
            self._result = self._job()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.ended_s = self._clock.now_s()

    def finish(self) -> None:
        """Let everybody see how the job ended."""
        self._done.set()

    def abandon(self) -> None:
        """End a job that will never run."""
        self._error = DrafterError("the drafter's lane ended before this job")
        self.finish()


class DraftLane:
    """One daemon thread and its jobs, waited for by `clock`: the machine's, if none is given."""

    def __init__(self, name: str, clock: Clock | None = None) -> None:
        self._name = name
        self._clock = clock or WallClock()
        self._jobs: SimpleQueue[Ticket[object] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._posting = threading.Lock()  # a job goes to a thread that lives, or to a new one
        self.num_starts = 0

    @property
    def is_alive(self) -> bool:
        """Whether a thread serves jobs."""
        return self._thread is not None and self._thread.is_alive()

    def post(self, job: Callable[[], _Result]) -> Ticket[_Result]:
        """Have a job done; returns at once."""
        ticket = Ticket(job, self._clock)
        with self._posting:
            if not self.is_alive:
                self.num_starts += 1
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
            self._jobs.put(ticket)  # type: ignore[arg-type]
        return ticket

    def close(self, longest_s: float) -> bool:
        """End the thread behind its last job; False if it did not end in time and was left."""
        thread = self._thread
        if thread is None:
            return True
        self._jobs.put(None)
        thread.join(longest_s)
        return not thread.is_alive()

    def _serve(self) -> None:
        while (ticket := self._jobs.get()) is not None:
            try:
                ticket.run()
            except BaseException:  # noqa: BLE001  its ticket has it; this thread is over
                self._drop()
                return
            finally:
                ticket.finish()  # behind `_drop`: who sees the end may post anew

    def _drop(self) -> None:
        """What waited behind a job that killed the thread fails with it."""
        with self._posting:
            self._thread = None
            while not self._jobs.empty():
                ticket = self._jobs.get()
                if ticket is not None:
                    ticket.abandon()
