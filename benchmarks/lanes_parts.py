"""What two simulated lanes are made of: places that work, drafts, and what may come of a round."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]


class Lane:
    """A place where one thing runs at a time, slower while the other lane works too."""

    def __init__(self, environment: simpy.Environment) -> None:
        self.free = simpy.Resource(environment)
        self.other: Lane = self
        self.busy_s = self.beside_s = 0.0
        self._environment = environment
        self._works = False
        self._changed = environment.event()

    def work(self, seconds: float, busy: float) -> Steps:
        """Work that takes so long alone and `busy` times as long beside the other lane's."""
        with self.free.request() as turn:
            yield turn
            self._turn(works=True)
            while seconds > 0:
                is_beside = self.other._works
                speed = 1.0 / busy if is_beside else 1.0
                start = self._environment.now
                done = self._environment.timeout(seconds / speed)
                yield done | self.other._changed
                passed = self._environment.now - start
                self.busy_s += passed
                self.beside_s += passed * is_beside
                seconds = 0.0 if done.processed else seconds - passed * speed
            self._turn(works=False)

    def _turn(self, *, works: bool) -> None:
        self._works = works
        changed, self._changed = self._changed, self._environment.event()
        changed.succeed()


@dataclass(slots=True)
class Forecast:
    """A drafting under way: levels done, how many there may be, when no further one may begin."""

    most: int
    num_levels: int = 0
    stop_s: float = math.inf
    began_s: float = 0.0
    ended_s: float = 0.0


class Source(Enum):
    """Where a draft comes from, by the name that whoever decides about waiting knows it by."""

    HIT, ANEW, SPARE = "hit", "redraft", "near"


@dataclass(frozen=True, slots=True)
class Row:
    """The draft that a row has now: how long it is, and where it comes from."""

    length: int
    source: Source = Source.HIT


class Outcome(Enum):
    """What is prepared for what came: it, another bonus at its exit, or nothing; or the text ends
    with the next token (`LAST`), or has ended and another one begins (`NEW`)."""

    GUESSED, NEAR, FAR, LAST, NEW = range(5)


MISSED = (Outcome.NEAR, Outcome.FAR, Outcome.NEW)


@dataclass(slots=True)
class Counts:
    tokens: int = 0
    hit: int = 0
    wrong: int = 0
    late: int = 0
    partial: int = 0
    branches: int = 0
