"""From waiting requests to finished ones, one round of all running rows at a time.

Knows when a request may begin and when it has ended; rounds themselves are `round.py`.
"""

from __future__ import annotations

from collections import deque

from forerun.backends.prefill import CHUNK, prefill
from forerun.backends.slots import blocks_for
from forerun.draft import Commit
from forerun.engine.parts import Parts
from forerun.engine.results import Piece
from forerun.engine.round import run_round
from forerun.engine.sequence import Sequence, Status
from forerun.errors import CapacityError
from forerun.protocols import BLOCK_LEN
from forerun.stats import RoundMeter, Span

MAX_ROWS = 16  # rows of one round: beyond, a pass is no longer bound by reading the weights
LONGEST_TAIL = 128  # prompt tokens, of all new rows, that the first round reads beside its drafts


class Queue:
    """The requests of one call."""

    def __init__(self, sequences: list[Sequence], parts: Parts, meter: RoundMeter) -> None:
        self._waiting = deque(sequences)
        self._running: list[Sequence] = []
        self._parts = parts
        self._meter = meter

    @property
    def is_done(self) -> bool:
        """Whether every request has ended."""
        return not self._waiting and not self._running

    def step(self) -> list[Piece]:
        """Let in who fits, then run one round: what every row gained."""
        is_steady = not self._waiting  # else this round also reads prompts
        if self._waiting:
            self._admit()
        rows, meter = self._running, self._meter
        meter.restart()
        with meter.round:
            commits = run_round(rows, self._parts, meter)
            pieces = [_settle(row, commit) for row, commit in zip(rows, commits, strict=True)]
        stats = meter.stats(len(rows))
        if self._parts.witness is not None:
            self._parts.witness.settled(stats)
        if is_steady and self._parts.pace is not None:
            self._parts.pace.learn(stats)
        if is_steady and self._parts.prices is not None:
            self._parts.prices.learn(stats)
        if is_steady and self._parts.patience is not None:
            self._parts.patience.learn_round(stats.num_accepted + len(rows), stats.round_s)
        for row in rows:
            row.tally.rounds.append(stats)
            row.tally.num_failures += self._parts.drafter.failed(row.id)
            if row.finish_reason is not None:
                self._give_back(row)
        self._running = [row for row in rows if row.finish_reason is None]
        return pieces

    def release(self) -> None:
        """Give back what unfinished requests hold."""
        for row in self._running:
            self._give_back(row)
        self._running = []
        self._waiting.clear()

    def _admit(self) -> None:
        """Begin as many waiting requests as have room for their longest outcome, in order."""
        slots, fresh = self._parts.slots, []
        while self._waiting and len(self._running) < MAX_ROWS:
            # The last token of a request is never read, so it needs no place.
            needed = self._waiting[0].limit - 1
            if blocks_for(needed) > slots.num_free:
                break
            row = self._waiting.popleft()
            self._running.append(row)
            fresh.append(row)
            slots.reserve(row.id, needed)
        if not self._running:
            raise CapacityError(
                f"{self._waiting[0].limit} positions of K/V are needed, other requests of this"
                f" engine leave {slots.num_free * BLOCK_LEN} free: finish those first"
            )
        for row in fresh:
            self._begin(row, max(1, LONGEST_TAIL // len(fresh)))

    def _begin(self, row: Sequence, longest_tail: int) -> None:
        """Read the prompt but for a tail, which costs nothing beside the first round's drafts."""
        span, drafter = Span(), self._parts.drafter
        with span:
            drafter.admit(row.id, row.tokens)
            while len(row.tokens) - row.committed_len > longest_tail:
                start = row.committed_len
                end = min(start + CHUNK, len(row.tokens) - 1)
                table = self._parts.slots.table([row.id])
                target, tokens = self._parts.target, row.tokens[start:end]
                features = prefill(target, table, tokens, start, drafter.tap_layers)
                if features is not None:
                    drafter.absorb(row.id, features)
                row.committed_len = end
        row.tally.prefill_s += span.seconds
        row.status = Status.RUNNING

    def _give_back(self, row: Sequence) -> None:
        self._parts.drafter.release(row.id)
        self._parts.slots.release(row.id)


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
