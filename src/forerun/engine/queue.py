"""From waiting requests to finished ones, one round of all running rows at a time.

Knows when a request may begin and when it has ended; rounds themselves are `round.py`, the reading
of prompts is `reading.py`.

    waiting  →  reading  →  running  →  ended        a request; from `reading` on it owns K/V blocks
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from forerun.backends.prefill import CHUNK
from forerun.backends.prefixes import Prefixes
from forerun.draft import Commit
from forerun.drafters.guard import Guard
from forerun.drafters.mixed import Share
from forerun.engine.grouping import learn, run_groups
from forerun.engine.isolation import own_error, rounds_apart
from forerun.engine.parts import Parts
from forerun.engine.reading import Reader
from forerun.engine.results import Piece
from forerun.engine.round import run_round
from forerun.engine.sequence import Sequence, Status, TokenLogprobs
from forerun.engine.witness import Seen, Watch
from forerun.errors import CapacityError
from forerun.protocols import BLOCK_LEN
from forerun.stats import RoundMeter

MAX_ROWS = 16  # rows of one round: beyond, a pass is no longer bound by reading the weights
LONGEST_TAIL = 128  # prompt tokens, of all new rows, that a round reads beside its drafts
SHARED_CHUNK = 128  # prompt tokens read for a round that somebody else waits for, tails included


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """What a round brought to one row: its piece, the entries of its log-probabilities, how many
    tokens were drafted for it and kept, and how all that came about if the row is watched."""

    row: Sequence
    piece: Piece
    logprobs: tuple[TokenLogprobs, ...]
    num_drafted: int
    num_accepted: int
    seen: Seen | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one step brought: what rows gained, rows that ended, how many prompt tokens were read
    apart from the round, and how many rows gave their memory back for now."""

    gains: list[Gain]
    ended: list[Sequence]
    num_read: int
    num_preempted: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened: all blocks are held by others."""
        return not (self.gains or self.ended or self.num_read)


class Queue:
    """Requests that share rounds; more may be added while it runs. For one thread at a time.

    `isolates`: an error while computing ends the row it belongs to, and waiting for memory that
    others hold is no error; else either is raised. `prefixes`: where texts are kept, if they are.
    `overcommit`: how many times the K/V memory may be promised (`room.py`).
    """

    def __init__(  # noqa: PLR0913  options by name
        self,
        sequences: Iterable[Sequence],
        parts: Parts,
        meter: RoundMeter,
        *,
        max_rows: int = MAX_ROWS,
        isolates: bool = False,
        prefixes: Prefixes | None = None,
        overcommit: float = 1.0,
    ) -> None:
        self._waiting = deque(sequences)
        self._reading: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._parts = parts
        self._meter = meter
        self._max_rows = max_rows
        self._isolates = isolates
        self._reader = Reader(parts, prefixes, overcommit)

    @property
    def is_done(self) -> bool:
        """Whether every request has ended."""
        return not self._waiting and not self._reading and not self._running

    @property
    def num_waiting(self) -> int:
        """Requests that own no K/V blocks yet."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of those."""
        return sum(row.prompt_len for row in self._waiting)

    @property
    def num_active(self) -> int:
        """Requests that own K/V blocks."""
        return len(self._reading) + len(self._running)

    def add(self, row: Sequence) -> None:
        """Let a request wait for its turn."""
        self._waiting.append(row)

    def cancel(self, row: Sequence) -> None:
        """End a request, wherever it is; one that has ended stays as it is."""
        if row.status is Status.FINISHED:
            return
        row.finish("cancelled")
        if row in self._waiting:
            self._waiting.remove(row)
            return
        if row in self._reading:
            self._reading.remove(row)
        else:
            self._running.remove(row)
        self._reader.end(row)

    def admit(self) -> list[Sequence]:
        """Begin as many waiting requests as have room, in order: those that had not begun before.

        Raises:
            CapacityError: nothing runs, and others hold the blocks that the first one needs.
        """
        fresh: list[Sequence] = []
        while self._waiting and self.num_active < self._max_rows:
            if not self._reader.begin(self._waiting[0]):
                break
            row = self._waiting.popleft()
            self._reading.append(row)
            if not row.num_preempted:
                fresh.append(row)
        if self._waiting and not self.num_active and not self._isolates:
            raise CapacityError(
                f"{self._waiting[0].limit} positions of K/V are needed, other requests of this"
                f" engine leave {self._parts.slots.num_free * BLOCK_LEN} free: finish those first"
            )
        return fresh

    def step(self) -> list[Piece]:
        """Let in who fits, then run one round: what every row gained; nothing while all that runs
        still reads its prompt.

        Raises:
            CapacityError: nothing runs, and others hold the blocks that the first one needs.
        """
        if self._waiting:
            self.admit()
        return [gain.piece for gain in self.advance().gains]

    def advance(self) -> Step:
        """Read some of the prompts, then run one round of all rows that have read theirs."""
        ended: list[Sequence] = []
        num_before = len(self._running)
        num_read = self._read(ended) if self._reading else 0
        is_steady, gains = num_before == len(self._running), []
        num_preempted = self._make_room()
        if self._running:
            gains = self._round(is_steady=is_steady)
            ended += [gain.row for gain in gains if gain.row.finish_reason is not None]
            self._running = [row for row in self._running if row.finish_reason is None]
        for row in ended:
            self._reader.end(row)
        return Step(gains, ended, num_read, num_preempted)

    def release(self) -> None:
        """Give back what unfinished requests hold."""
        for row in self._owners():
            self._reader.end(row)
        self._reading.clear()
        self._running = []
        self._waiting.clear()

    def _make_room(self) -> int:
        """Give every running row what its next round may need; where that is too little, the
        youngest give way, so the oldest goes on. How many did."""
        num_preempted = 0
        if not self._reader.is_overcommitted:
            return num_preempted
        for row in sorted(self._running, key=_age):
            while row.status is Status.RUNNING and not self._reader.extend(row):
                self._preempt(max(filter(self._reader.may_leave, self._owners()), key=_age))
                num_preempted += 1
        return num_preempted

    def _owners(self) -> list[Sequence]:
        return [*self._reading, *self._running]

    def _preempt(self, row: Sequence) -> None:
        """Take a row's memory: it waits before all others, and nothing of it is lost."""
        self._reader.leave(row)
        (self._reading if row in self._reading else self._running).remove(row)
        row.status, row.committed_len = Status.WAITING, 0
        row.num_preempted += 1
        self._waiting.appendleft(row)

    def _round(self, *, is_steady: bool) -> list[Gain]:
        """One round of all running rows; a steady one, without new rows, is learned from."""
        rows, meter, parts = self._running, self._meter, self._parts
        watch = Watch(parts) if any(row.is_watched for row in rows) else None
        parts = parts if watch is None else replace(parts, witness=watch)
        before = [
            (row.tally.num_drafted, row.tally.num_accepted, len(row.logprobs)) for row in rows
        ]
        shares: dict[Guard, Share] = {}
        meter.restart()
        with meter.round:
            run = rounds_apart if self._isolates else run_round
            commits = run_groups(run, rows, parts, meter, shares)
            pieces = [_settle(row, commit) for row, commit in zip(rows, commits, strict=True)]
        for row, commit in zip(rows, commits, strict=True):
            if commit is not None:
                self._reader.note(row, commit)
        stats = meter.stats(len(rows))
        if parts.witness is not None:
            parts.witness.settled(stats)
        kept = [
            (row.id, row.tally.num_drafted - num_drafted, row.tally.num_accepted - num_accepted)
            for row, (num_drafted, num_accepted, _) in zip(rows, before, strict=True)
        ]
        learn(rows, parts, stats, kept, shares, is_steady=is_steady)
        gains = []
        for row, piece, (num_drafted, num_accepted, start) in zip(
            rows, pieces, before, strict=True
        ):
            tally = row.tally
            tally.rounds.append(stats)
            tally.num_failures += (row.parts or parts).drafter.failed(row.id)
            logprobs = tuple(row.logprobs[start : row.num_generated])
            drafted, accepted = tally.num_drafted - num_drafted, tally.num_accepted - num_accepted
            tally.most_drafted = max(tally.most_drafted, drafted)
            seen = None if watch is None else watch.seen(row, len(piece.token_ids), stats)
            gains.append(Gain(row, piece, logprobs, drafted, accepted, seen))
        return gains

    def _read(self, ended: list[Sequence]) -> int:
        """Let rows with little to read join the round, and read some of the others, in turn."""
        room = self._join(LONGEST_TAIL)
        left = SHARED_CHUNK - (LONGEST_TAIL - room) if self._running else CHUNK
        left = max(left, BLOCK_LEN)  # however many short prompts come, long ones are read on
        num_read = 0
        for _ in range(len(self._reading)):
            if num_read >= left:
                break
            row = self._reading.popleft()
            try:
                num_read += self._reader.read(row, left - num_read)
                self._reading.append(row)
            except Exception as error:
                if not self._isolates:
                    self._reading.appendleft(row)
                    raise
                row.fail(own_error(error))
                ended.append(row)
        ended += self._only_read()
        self._join(room)
        return num_read

    def _only_read(self) -> list[Sequence]:
        """End rows of which nothing is wanted but what their prompts are like."""
        done = [
            row
            for row in self._reading
            if row.limit <= row.prompt_len and self._reader.num_unread(row) is not None
        ]
        for row in done:
            self._reading.remove(row)
            row.finish("length")
        return done

    def _join(self, room: int) -> int:
        """Let rows run whose unread tokens fit into `room`; how much of it is left."""
        for row in list(self._reading):
            unread = self._reader.num_unread(row)
            if unread is not None and unread <= room and row.limit > row.prompt_len:
                room -= unread
                self._reading.remove(row)
                self._running.append(row)
                row.status = Status.RUNNING
                self._reader.join(row)
        return room


def _age(row: Sequence) -> int:
    return row.id


def _settle(row: Sequence, commit: Commit | None) -> Piece:
    """Turn a round's tokens into text; end the row at its first stop, dropping what came after."""
    if commit is None:
        return Piece((), (), (), row.index, row.finish_reason)
    tokens, detokenizer = commit.tokens, row.detokenizer
    texts: list[str] = []
    for token in tokens:
        texts.append(detokenizer.push(token))
        if token in row.stop_ids or detokenizer.is_stopped:
            row.finish("stop")
            break
    if len(texts) < len(tokens):
        del row.tokens[len(texts) - len(tokens) :]
        row.tally.num_accepted -= len(tokens) - len(texts) - 1  # the bonus is among them
    elif row.finish_reason is None and len(row.tokens) >= row.limit:
        row.finish("length")
    if row.finish_reason is not None:
        texts[-1] += detokenizer.finish()
    row.text += "".join(texts)
    is_drafted = (True,) * (len(tokens) - 1) + (False,)
    num = len(texts)
    return Piece(tokens[:num], tuple(texts), is_drafted[:num], row.index, row.finish_reason)
