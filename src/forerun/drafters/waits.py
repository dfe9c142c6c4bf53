"""What waiting for a lane is worth, and what may be had without: who `overlapped.py` asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from forerun.protocols import Drafter


class Waiting(Protocol):
    """How deep to let a forecast go, and how long to wait for it."""

    @property
    def num_levels(self) -> int: ...

    @property
    def longest_s(self) -> float: ...


class Waits(Protocol):
    """What waiting is worth; learned elsewhere (`control/patience.py`)."""

    def learn_forecast(self, num_passes: int, seconds: float) -> None: ...
    def learn_redraft(self, seconds: float) -> None: ...
    def learn_outcome(self, *, is_hit: bool) -> None: ...
    def learn_yield(self, source: str, num_accepted: int) -> None: ...
    def wait_for(self, num_levels: int, elapsed_s: float, num_rows: int) -> Waiting: ...
    def prefers_redraft(self, other: str, num_missed: int) -> bool: ...
    def longest_redraft_s(self) -> float: ...
    def reach(self) -> list[float]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Spares:
    """What a row that missed may do without the lane: `drafter`, asked on the verifier's thread, or
    None where only the drafter's own draws will do (`is_exacting`)."""

    drafter: Drafter | None

    @property
    def is_exacting(self) -> bool:
        return self.drafter is None
