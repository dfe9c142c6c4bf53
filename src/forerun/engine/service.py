"""Requests from anywhere, one thread that serves them all.

Knows who asked and who listens; rounds belong to `queue.py`. Everything but `submit`, `cancel`,
`load`, `drain` and `close` happens on the service's own thread:

    submit → inbox → queue (waiting, reading, running) → events to the request's listener
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType, TracebackType

from forerun.backends.prefixes import Prefixes
from forerun.drafters.expected import Expected
from forerun.engine.engine import Engine
from forerun.engine.isolation import own_error
from forerun.engine.queue import Queue, Step
from forerun.engine.scoring import has_scores
from forerun.engine.sequence import Sequence
from forerun.engine.service_times import Spreads, Times
from forerun.engine.service_totals import Totals
from forerun.engine.service_values import (
    Began,
    Ended,
    Event,
    Gained,
    Job,
    Load,
    Scored,
    ServiceLimits,
)
from forerun.engine.ways import Ways, refuse_unjudged
from forerun.errors import BackendError, EngineClosed, ForerunError, QueueFull

__all__ = [
    "Began", "Ended", "Event", "Gained", "Handle", "Job", "Load", "Scored", "Service",
    "ServiceLimits",
]  # fmt: skip

_BLOCKED_S = 0.005  # between two looks whether others gave back K/V memory
_CLOSING_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Request:
    """A request that has not ended, and who listens; nobody once a listener raised."""

    row: Sequence
    listener: Callable[[Event], None] | None
    has_scores: bool = False  # whether it was told those of its prompt


class Handle:
    """A request that was submitted; `id` is its own among all of the engine."""

    __slots__ = ("_cancel", "id")

    def __init__(self, request_id: int, cancel: Callable[[int], None]) -> None:
        self.id = request_id
        self._cancel = cancel

    def cancel(self) -> None:
        """End it within a round, wherever it is; from any thread, more than once, ended or not."""
        self._cancel(self.id)


class Service:
    """Serves an engine's requests together, each as if it were alone.

    The engine stays its owner's: close the service first. `generate` and `stream` of the engine
    may be used meanwhile; their rounds and the service's take turns. `now_s` counts from anywhere.

    Raises:
        EngineClosed: the engine was closed.
    """

    def __init__(
        self,
        engine: Engine,
        limits: ServiceLimits = ServiceLimits(),  # noqa: B008  a frozen value
        now_s: Callable[[], float] = perf_counter,
    ) -> None:
        self._inside = engine.inside()
        self._now_s = now_s
        self._limits = limits
        parts = self._inside.parts
        # Where two ways of computing a token may differ, none may depend on what others asked.
        self._prefixes = None if parts.target.exactness == "law" else Prefixes(parts.slots)
        self._queue = Queue(
            (), parts, self._inside.meter, max_rows=limits.max_rows, isolates=True,
            prefixes=self._prefixes, overcommit=limits.overcommit,
        )  # fmt: skip
        self._ways = Ways(parts, self._inside.beside, limits.max_compositions)
        self._totals, self._times = Totals(), Times()
        self._wake = threading.Condition()  # guards all below
        self._inbox: deque[Sequence] = deque()
        self._to_cancel: set[int] = set()
        self._requests: dict[int, _Request] = {}
        self._load = (0, 0, 0)  # waiting, running, waiting tokens, as of the last step
        self._is_draining = self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="forerun-service", daemon=True)
        self._thread.start()

    def submit(self, job: Job, listener: Callable[[Event], None]) -> Handle:
        """Have a request served; `listener` is told what becomes of it.

        It is called on the service's thread and must not block: all requests wait for it. If it
        raises, its request is cancelled and it is not called again.

        Raises:
            QueueFull: too much waits already; `retry_after_s` says when to come again.
            CapacityError: the prompt does not fit the model's context or the K/V memory.
            OptionError: no prompt, ids outside the vocabulary, or a way of speculation that a
                request may not ask for.
            EngineClosed: the service drains or was closed.
        """
        self._refuse_ending()
        row = self._row_of(job)
        try:
            with self._wake:
                self._refuse_ending()
                self._refuse_full(row)
                self._requests[row.id] = _Request(row, listener)
                self._times.arrive(row, self._now_s())
                self._inbox.append(row)
                self._wake.notify_all()
        except BaseException:
            self._ways.give_back(row.parts)
            raise
        return Handle(row.id, self._ask_to_cancel)

    def load(self) -> Load:
        """What is held now, and what was done since the service began."""
        totals, slots = self._totals, self._inside.parts.slots
        with self._wake:
            num_waiting, num_running, num_waiting_tokens = self._load
            return Load(
                num_waiting=num_waiting + len(self._inbox),
                num_running=num_running,
                num_waiting_tokens=num_waiting_tokens + sum(row.prompt_len for row in self._inbox),
                num_free_blocks=slots.num_free,
                num_blocks=slots.num_blocks,
                drafter=self._inside.parts.drafter.state,
                num_requests=MappingProxyType(dict(totals.num_requests)),
                num_prompt_tokens=totals.num_prompt_tokens,
                num_cached_tokens=totals.num_cached_tokens,
                num_generated_tokens=totals.num_generated_tokens,
                num_rounds=totals.num_rounds,
                num_drafts=totals.num_drafts,
                num_draft_tokens=totals.num_draft_tokens,
                num_accepted_tokens=totals.num_accepted_tokens,
                num_accepted_by_position=tuple(totals.accepted_by_position),
                num_preemptions=totals.num_preemptions,
                num_compositions=self._ways.num_built,
            )

    def spreads(self) -> Spreads:
        """How long requests took and how large they were, since the service began."""
        with self._wake:
            return self._times.freeze()

    def drain(self, longest_s: float) -> bool:
        """Refuse new requests and let those that came end; whether all did within `longest_s`."""
        with self._wake:
            self._is_draining = True
            return self._wake.wait_for(lambda: not self._requests, longest_s)

    def close(self) -> None:
        """Cancel what has not ended, and end the thread; more than once is fine."""
        with self._wake:
            self._is_draining = self._is_closing = True
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSING_S)

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- on any thread ---------------------------------------------------------------------------

    def _row_of(self, job: Job) -> Sequence:
        """A job as a row; what it wants built is built now, while rounds go on."""
        row = self._inside.admission.sequence(0, job.prompt, job.params)
        row.speculates = job.speculates and job.generates
        row.partition = job.partition
        row.is_watched = job.is_watched
        row.scores_prompt = job.scores_prompt
        row.limit = row.limit if job.generates else row.prompt_len
        if job.grammar is not None:
            row.bind(job.grammar)
        if row.speculates and job.expected is not None:
            refuse_unjudged(job.speculation, self._inside.parts)
            row.expected = Expected(job.expected, row.tokens)
        if row.speculates and job.speculation is not None:
            row.parts = self._ways.take(job.speculation)
        return row

    def _ask_to_cancel(self, request_id: int) -> None:
        with self._wake:
            if request_id in self._requests:
                self._to_cancel.add(request_id)
                self._wake.notify_all()

    def _refuse_ending(self) -> None:
        if self._is_draining:
            raise EngineClosed("this service takes no more requests: it is about to end")

    def _refuse_full(self, row: Sequence) -> None:
        limits = self._limits
        num = self._load[0] + len(self._inbox)
        num_tokens = self._load[2] + sum(one.prompt_len for one in self._inbox)
        if num >= limits.max_waiting:
            what = f"{num} requests wait already, the limit is {limits.max_waiting}"
        elif num and num_tokens + row.prompt_len > limits.max_waiting_tokens:
            what = (
                f"{num_tokens} prompt tokens wait already, with these {row.prompt_len} the limit of"
                f" {limits.max_waiting_tokens} is passed"
            )
        else:
            return
        mean = self._totals.mean_generated
        work = num_tokens / num + (row.params.max_tokens if mean is None else mean)
        raise QueueFull(f"{what}: come again later", self._totals.seconds_for(work))

    # --- on the service's thread -----------------------------------------------------------------

    def _run(self) -> None:
        reason: ForerunError | None = None
        try:
            while self._take_in():
                self._advance()
        except BaseException as error:  # noqa: BLE001  whoever waits must hear of it
            _log.exception("the service ends")
            reason = own_error(error) if isinstance(error, Exception) else BackendError(repr(error))
        self._end_all(reason)

    def _take_in(self) -> bool:
        """Sleep until there is something to do, and take it in; False once the service closes."""
        with self._wake:
            while not (self._inbox or self._to_cancel or self._is_closing or self._has_work):
                self._wake.wait()
            rows = [self._requests[at].row for at in self._to_cancel if at in self._requests]
            inbox = list(self._inbox)
            self._inbox.clear()
            self._to_cancel.clear()
            for row in inbox:
                self._queue.add(row)
            self._note_load()
            is_closing = self._is_closing
        if rows:
            with self._inside.lock:
                for row in rows:
                    self._queue.cancel(row)
            for row in rows:
                self._end(row)
        return not is_closing

    @property
    def _has_work(self) -> bool:
        return not self._queue.is_done

    def _advance(self) -> None:
        if self._queue.is_done:
            return
        with self._inside.lock:
            self._inside.refuse_closed()
            began_s = self._now_s()
            self._begin(began_s)
            step = self._queue.advance()
            ended_s = self._now_s()
        if step.is_empty:
            with self._wake:
                self._wake.wait(_BLOCKED_S)
            return
        with self._wake:
            self._totals.learn(step, ended_s - began_s)
            self._times.learn(step, ended_s)
            self._note_load()
        self._tell(step)

    def _begin(self, now_s: float) -> None:
        """Let in who has room, and tell them before anything is computed."""
        began = self._queue.admit()
        with self._wake:
            for row in began:
                self._totals.learn_begun(row)
                self._times.begin(row, now_s)
            self._note_load()
        for row in began:
            self._say(row, Began(row.num_cached))

    def _tell(self, step: Step) -> None:
        for row in (*(gain.row for gain in step.gains), *step.ended):
            self._say_scores(row)
        for gain in step.gains:
            if gain.piece.token_ids:
                self._say(gain.row, Gained(gain.piece, gain.logprobs, gain.seen))
        for row in step.ended:
            self._end(row)

    def _say_scores(self, row: Sequence) -> None:
        """Tell a prompt's log-probabilities, once, as soon as all are known."""
        request = self._requests.get(row.id)
        is_due = row.scores_prompt and row.error is None and has_scores(row)
        if request is not None and is_due and not request.has_scores:
            request.has_scores = True
            self._say(row, Scored(tuple(row.prompt_logprobs)))

    def _say(self, row: Sequence, event: Event) -> None:
        """Tell a listener; one that raises is not told more, and its request is cancelled."""
        request = self._requests.get(row.id)
        if request is None or request.listener is None:
            return
        try:
            request.listener(event)
        except Exception:  # noqa: BLE001  a listener may raise anything
            _log.exception("a listener failed: its request %d is cancelled", row.id)
            request.listener = None
            self._ask_to_cancel(row.id)

    def _end(self, row: Sequence) -> None:
        """The last event of a request that has ended."""
        self._say(row, Ended(self._inside.completion_of(row)))
        self._ways.give_back(row.parts)
        with self._wake:
            self._requests.pop(row.id, None)
            self._times.forget(row)
            self._totals.num_requests[row.finish_reason or "cancelled"] += 1
            self._note_load()
            self._wake.notify_all()

    def _end_all(self, reason: ForerunError | None) -> None:
        """Cancel whoever is left, or fail them for a reason."""
        with self._wake:
            self._is_draining = self._is_closing = True
            rows = [request.row for request in self._requests.values()]
            self._inbox.clear()
        with self._inside.lock:
            if not self._inside.is_closed():
                self._queue.release()
            if self._prefixes is not None:
                self._prefixes.close()
        for row in rows:
            if reason is None:
                row.finish("cancelled")
            else:
                row.fail(reason)
            self._end(row)
        self._ways.close()

    def _note_load(self) -> None:
        queue = self._queue
        self._load = (queue.num_waiting, queue.num_active, queue.num_waiting_tokens)
