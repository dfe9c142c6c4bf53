"""How near does `shape=auto` come to the best length under load? A closed loop, simulated.

    python benchmarks/pace_simulator.py --machine cpu --rows 1,2,4,8,16,32 --rounds 3000
    python benchmarks/pace_simulator.py --machine flat --rounds 100 --before 1,2,4

So many rows at a time, each with a chance of its own that a drafted token is kept; who ends is
followed by another, whose prompt is read beside a round. Rounds cost what the machine's curves
say, and the pace is told that with noise: most of it from round to round, some that lasts, stalls
now and then. Everything is drawn from seeds, and a row keeps the same tokens whatever drafts for
it, so that ways differ in nothing but lengths. Tokens/s are by the seconds without the noise.
"""

from __future__ import annotations

import argparse
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from forerun.control.pace import Kept, Paces
from forerun.stats import RoundStats

LONGEST = 8
ANSWER_LEN = 64
NOISE = 0.15  # of a time, from round to round
_PROMPT_LEN = (10, 40)  # unread tokens: most prompts share a beginning with others
_READ_BESIDE = 128  # prompt tokens that are read beside a round
_MOST_UNREAD = 32  # tokens of a text that a draft reads itself
_MOST_READ = 256  # tokens of all texts that are read for one draft
_STALL, _STALL_CHANCE = 3.0, 0.01


@dataclass(frozen=True, slots=True)
class Machine:
    """Seconds of a verification of so many nodes, of a drafter's pass of so many rows, of reading a
    token for the drafter, and of the rest of a round for each row."""

    verify_s: Callable[[float], float]
    pass_s: Callable[[float], float]
    read_s: float = 0.00012
    row_s: float = 0.00003

    def round_s(self, num_rows: int, lengths: Sequence[int]) -> float:
        """Seconds of a round without anything to read."""
        num_drafting = sum(length > 0 for length in lengths)
        draft_s = max(lengths, default=0) * self.pass_s(num_drafting) if num_drafting else 0.0
        return self.verify_s(num_rows + sum(lengths)) + draft_s + self.row_s * num_rows


def line(*knots: tuple[float, float]) -> Callable[[float], float]:
    """Straight lines through `(size, milliseconds)`, and beyond the last."""
    sizes = [size for size, _ in knots]

    def seconds(size: float) -> float:
        at = min(max(bisect_left(sizes, size), 1), len(knots) - 1)
        (few, low), (many, high) = knots[at - 1 : at + 1]
        return 1e-3 * max(low + (high - low) * (size - few) / (many - few), 0.1)

    return seconds


def stepped(step: int, curve: Callable[[float], float]) -> Callable[[float], float]:
    """A curve of a kernel that computes so many nodes at a time: those not used cost as much."""
    return lambda size: curve(size if size <= 2 else step * math.ceil(size / step))


# Two cores, 260M parameters and a drafter of a twentieth, by benchmarks/results/serve-260M.json;
# others that drafting pays a lot on, a little, and nowhere.
_CPU = line((1, 11.5), (2, 12.0), (4, 13.5), (6, 16.5), (8, 21), (16, 35), (32, 59), (160, 250))
_CPU_PASS = line((1, 0.8), (2, 0.95), (4, 1.4), (8, 2.3), (16, 4.0), (32, 7.5))
MACHINES = {
    "cpu": Machine(_CPU, _CPU_PASS),
    "steps": Machine(stepped(6, _CPU), _CPU_PASS),
    "flat": Machine(line((1, 18.8), (32, 22.2), (160, 50)), line((1, 0.5), (32, 1.0))),
    "dear": Machine(line((1, 10), (16, 32), (160, 320)), line((1, 4), (32, 20))),
}
CHANCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MATCHED = (0.6, 0.75, 0.85, 0.9, 0.95)


class Chooser(Protocol):
    """Who says how much is drafted: the pace under trial, or who knows better."""

    @property
    def is_drafting(self) -> bool: ...
    def lengths_for(self, row_ids: Sequence[int], num_rows: int) -> list[int]: ...
    def learn(self, stats: RoundStats, kept: Sequence[Kept], *, is_steady: bool = True) -> None: ...
    def forget(self, row_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every row drafts so many."""

    length: int

    @property
    def is_drafting(self) -> bool:
        """Whether prompts are read for the drafter."""
        return self.length > 0

    def lengths_for(self, row_ids: Sequence[int], num_rows: int) -> list[int]:  # noqa: ARG002
        """The same for all."""
        return [self.length] * len(row_ids)

    def learn(self, stats: RoundStats, kept: Sequence[Kept], *, is_steady: bool = True) -> None:
        """Nothing is learned."""

    def forget(self, row_id: int) -> None:
        """Nothing is known."""


@dataclass(slots=True)
class Oracle:
    """Knows what rounds cost and each row's chance; of all nodes it takes the likeliest."""

    machine: Machine
    chance_of: Callable[[int], float]
    is_drafting: bool = True
    _plans: dict[tuple[float, ...], list[int]] = field(default_factory=dict)

    def lengths_for(self, row_ids: Sequence[int], num_rows: int) -> list[int]:
        """The lengths with the most expected tokens a second."""
        chances = tuple(self.chance_of(row) for row in row_ids)
        if chances not in self._plans:
            self._plans[chances] = self._best(chances, num_rows)
        self.is_drafting = any(self._plans[chances])
        return self._plans[chances]

    def learn(self, stats: RoundStats, kept: Sequence[Kept], *, is_steady: bool = True) -> None:
        """Nothing is learned."""

    def forget(self, row_id: int) -> None:
        """Nothing is kept of a row."""

    def _best(self, chances: Sequence[float], num_rows: int) -> list[int]:
        best, best_rate = [0] * len(chances), num_rows / self.machine.round_s(num_rows, [0])
        for longest in range(1, LONGEST + 1):
            steps = sorted(
                (-(chance**depth), depth, at)
                for at, chance in enumerate(chances)
                for depth in range(1, longest + 1)
            )
            lengths, tokens = [0] * len(chances), float(num_rows)
            for value, depth, at in steps:
                lengths[at], tokens = depth, tokens - value
                rate = tokens / self.machine.round_s(num_rows, lengths)
                if rate > best_rate:
                    best, best_rate = list(lengths), rate
        return best


@dataclass(slots=True, eq=False)
class _Row:
    """One answer; `unread` are tokens that the drafter has not read."""

    id: int
    prompt_len: int
    kept: list[bool]  # whether a token that is drafted for this place is kept
    num_tokens: int = 0
    unread: int = 0

    def num_kept(self, num_drafted: int) -> int:
        """How many of so many drafted tokens are kept."""
        own = self.kept[self.num_tokens : self.num_tokens + num_drafted]
        return next((at for at, is_kept in enumerate(own) if not is_kept), num_drafted)


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a run; `planning_s` is real, and no part of `seconds`."""

    num_tokens: int
    seconds: float
    num_rounds: int
    num_drafted: int
    planning_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of the machine."""
        return self.num_tokens / self.seconds


class Loop:
    """A closed loop of rows on a machine, as long as it is played."""

    def __init__(
        self,
        machine: Machine,
        chances: Sequence[float] = CHANCES,
        noise: float = NOISE,
        seed: int = 0,
    ) -> None:
        self._machine, self._chances, self._noise, self._seed = machine, chances, noise, seed
        self._noises = random.Random(seed)
        self._drift, self._num_rows_made, self._unpaid_s = 0.0, 0, 0.0
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []

    def chance_of(self, row_id: int) -> float:
        """The chance that a drafted token of a row is kept."""
        return random.Random(row_id * 7919 + self._seed).choice(self._chances)

    def play(
        self, chooser: Chooser, num_rows: int, num_rounds: int, most_s: float = math.inf
    ) -> Played:
        """So many rounds of so many rows, or as many as end in `most_s`; where there are too many
        rows some end."""
        num_tokens, seconds, num_drafted, planning_s, at = 0, 0.0, 0, 0.0, 0
        while at < num_rounds and seconds < most_s:
            at += 1
            while len(self._running) + len(self._waiting) < num_rows:
                self._waiting.append(self._made())
            began_s = perf_counter()
            num_read, is_steady = self._join(chooser)
            ids = [row.id for row in self._running]
            asked = chooser.lengths_for(ids, len(ids))
            planning_s += perf_counter() - began_s
            round_s, kept, stats = self._round(asked, num_read)
            seconds += round_s
            num_tokens += stats.num_accepted + len(ids)
            num_drafted += stats.num_drafted
            began_s = perf_counter()
            chooser.learn(stats, kept, is_steady=is_steady)
            planning_s += perf_counter() - began_s
            self._leave(chooser, num_rows)
        return Played(num_tokens, seconds, at, num_drafted, planning_s)

    def _made(self) -> _Row:
        self._num_rows_made += 1
        row_id = self._num_rows_made
        rng, chance = random.Random(row_id * 104729 + self._seed), self.chance_of(row_id)
        kept = [rng.random() < chance for _ in range(ANSWER_LEN + LONGEST)]
        return _Row(row_id, rng.randint(*_PROMPT_LEN), kept)

    def _join(self, chooser: Chooser) -> tuple[int, bool]:
        """Let in whose prompts fit beside a round: how many tokens they read, whether none came."""
        num_read, num_drafter = 0, 0
        while self._waiting and num_read + self._waiting[0].prompt_len <= _READ_BESIDE:
            row = self._waiting.popleft()
            self._running.append(row)
            num_read += row.prompt_len
            row.unread = 0 if chooser.is_drafting else row.prompt_len
            num_drafter += row.prompt_len - row.unread
        self._unpaid_s = num_drafter * self._machine.read_s
        return num_read, num_read == 0

    def _round(self, asked: Sequence[int], num_read: int) -> tuple[float, list[Kept], RoundStats]:
        """Its seconds without noise, what each row kept, and what the pace is told."""
        lengths, read_s = self._drafted(asked)
        kept = [(row.id, num, row.num_kept(num))
                for row, num in zip(self._running, lengths, strict=True)]  # fmt: skip
        for row, (_, num, num_kept) in zip(self._running, kept, strict=True):
            row.unread = 0 if num else row.unread + 1
            row.num_tokens += num_kept + 1
        num_rows, num_drafted, machine = len(lengths), sum(lengths), self._machine
        num_drafting, passes = sum(num > 0 for num in lengths), max(lengths, default=0)
        verify_s = machine.verify_s(num_rows + num_drafted + num_read)
        draft_s = read_s + (passes * machine.pass_s(num_drafting) if num_drafting else 0.0)
        rest_s = machine.row_s * num_rows
        told_draft_s, told_verify_s = draft_s * self._factor(), verify_s * self._factor()
        stats = RoundStats(
            num_rows, num_drafted, sum(one[2] for one in kept),
            told_draft_s + told_verify_s + rest_s, told_draft_s, told_verify_s, rest_s, passes,
        )  # fmt: skip
        return verify_s + draft_s + rest_s + self._unpaid_s, kept, stats

    def _drafted(self, asked: Sequence[int]) -> tuple[list[int], float]:
        """How much each row drafts that was asked to, and the seconds of reading before it."""
        room, lengths, read_s = _MOST_READ, [], 0.0
        for row, most in zip(self._running, asked, strict=True):
            length = min(most, ANSWER_LEN - row.num_tokens - 1)
            if length > 0 and row.unread:
                num_now = row.unread
                if row.unread > _MOST_UNREAD:
                    num_now = min(row.unread, room)
                    room -= num_now
                row.unread -= num_now
                read_s += num_now * self._machine.read_s
            lengths.append(length if length > 0 and row.unread <= _MOST_UNREAD else 0)
        return lengths, read_s

    def _factor(self) -> float:
        """What the machine makes of a time."""
        if not self._noise:
            return 1.0
        self._drift = 0.98 * self._drift + 0.1 * self._noise * self._noises.gauss(0.0, 1.0)
        stall = _STALL if self._noises.random() < _STALL_CHANCE else 1.0
        return stall * math.exp(self._drift + self._noises.gauss(0.0, self._noise))

    def _leave(self, chooser: Chooser, num_rows: int) -> None:
        staying = []
        for row in self._running:
            if row.num_tokens >= ANSWER_LEN or len(staying) >= num_rows:
                chooser.forget(row.id)
            else:
                staying.append(row)
        self._running = staying


@dataclass(frozen=True, slots=True)
class Judged:
    """The pace at one load beside every fixed length and who knows all."""

    fixed: tuple[float, ...]  # tokens/s by length, plain first
    oracle: float
    own: Played

    @property
    def of_best(self) -> float:
        """Tokens/s as a part of the best fixed length's."""
        return self.own.tokens_per_s / max(self.fixed)


@dataclass(frozen=True, slots=True)
class Trial:
    """What is played: as many rounds at each load `before`, some that do not count, and those."""

    machine: Machine
    num_rounds: int
    chances: Sequence[float] = CHANCES
    before: Sequence[int] = ()
    num_settling: int = 0
    noise: float = NOISE
    seed: int = 0

    def loop(self) -> Loop:
        """A loop that nobody has played."""
        return Loop(self.machine, self.chances, self.noise, self.seed)

    def played(
        self, chooser: Chooser, num_rows: int, loop: Loop, most_s: float = math.inf
    ) -> Played:
        """The rounds that count; with `most_s` as many as end in it."""
        for load in self.before:
            loop.play(chooser, load, self.num_rounds)
        loop.play(chooser, num_rows, self.num_settling)
        num_rounds = self.num_rounds if most_s == math.inf else 10**9
        return loop.play(chooser, num_rows, num_rounds, most_s)


def judged(trial: Trial, num_rows: int, lengths: Sequence[int] = range(LONGEST + 1)) -> Judged:
    """The pace at so many rows, and fixed lengths played for as long as it took the pace."""
    own = trial.played(Paces(LONGEST), num_rows, trial.loop())
    fixed = tuple(
        trial.played(Fixed(length), num_rows, trial.loop(), own.seconds).tokens_per_s
        for length in lengths
    )
    loop = trial.loop()
    known = trial.played(Oracle(trial.machine, loop.chance_of), num_rows, loop, own.seconds)
    return Judged(fixed, known.tokens_per_s, own)


def main() -> None:
    """Play and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--machine", choices=list(MACHINES), default="cpu")
    parser.add_argument("--rows", default="1,2,4,8,16,32")
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--before", default="", help="loads that went before, by commas")
    parser.add_argument("--settling", type=int, default=0, help="rounds that do not count")
    parser.add_argument("--matched", action="store_true", help="rows that keep nearly all")
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    before = [int(one) for one in arguments.before.split(",") if one]
    heads = ("rows", "plain", "best", "of", "auto", "of best", "of oracle", "drafted", "planning")
    print("{:>4} {:>7} {:>7} {:>2} {:>7} {:>8} {:>10} {:>8} {:>9}".format(*heads))
    for num_rows in map(int, arguments.rows.split(",")):
        for seed in range(arguments.seeds):
            trial = Trial(
                MACHINES[arguments.machine], arguments.rounds,
                MATCHED if arguments.matched else CHANCES, before, arguments.settling,
                arguments.noise, seed,
            )  # fmt: skip
            _print(num_rows, judged(trial, num_rows))


def _print(num_rows: int, one: Judged) -> None:
    best, own = max(one.fixed), one.own
    rate, num_rounds = own.tokens_per_s, own.num_rounds
    print(
        f"{num_rows:4} {one.fixed[0]:7.1f} {best:7.1f} {one.fixed.index(best):2} {rate:7.1f}"
        f" {one.of_best:8.3f} {rate / one.oracle:10.3f}"
        f" {own.num_drafted / num_rounds / num_rows:8.2f}"
        f" {1e3 * own.planning_s / num_rounds:6.2f} ms"
    )


if __name__ == "__main__":
    main()
