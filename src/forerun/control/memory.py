"""What reading two models from one memory costs on this machine, on one core, on all, side by side.

Reads buffers of their sizes, no weights: the bound of models that the memory bounds. What follows
for schedules is `overlap.OneMemory`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from forerun.control.lane_trial import looping
from forerun.control.overlap import OneMemory

_MOST_BYTES = 96 << 20  # more than caches hold; of larger models so much is read

Reader: TypeAlias = Callable[[int], float]  # reads a buffer of so many bytes; bytes a second


@runtime_checkable
class Streams(Protocol):
    """A backend on cores that can be read with."""

    @property
    def weight_bytes(self) -> int: ...

    @property
    def cores(self) -> tuple[int, ...]: ...

    def reader(self, cores: Sequence[int]) -> Reader:
        """Reads with these cores, all at once."""


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Bytes a second of reading two models' sizes: `one` core, `all` that the model runs on, and
    for the target `beside`, on one core while another reads the drafter over and over."""

    target_bytes: int
    draft_bytes: int
    one: float
    all: float
    beside: float
    draft_one: float
    draft_all: float

    def share(self, num_passes: int) -> float:
        """Seconds of so many passes of the drafter in units of one of the target, on one core."""
        return num_passes * (self.draft_bytes / self.draft_one) / (self.target_bytes / self.one)

    def memory(self, num_passes: int) -> OneMemory:
        """The same as the formulas take it."""
        return OneMemory(
            self.share(num_passes),
            max(1.0, self.all / self.one),
            busy=max(1.0, self.one / self.beside),
            draft_scaling=max(1.0, self.draft_all / self.draft_one),
        )

    def line(self, num_passes: int) -> str:
        """The inequality in a line: a round on all cores against one on a core each, at best."""
        memory = self.memory(num_passes)
        sign = ">" if memory.ahead >= memory.sequential else "<"
        return (
            f"of a verification on one core ({_gb(self.one)}; all cores {_gb(self.all)}, beside the"
            f" drafter {_gb(self.beside)}), drafting {num_passes} takes s = {memory.draft:.2f}: a"
            f" round ahead on a core each at least {memory.ahead:.2f} {sign} sequential on all"
            f" {memory.sequential:.2f}"
        )


def measured_bandwidths(target: Streams, drafter: Streams) -> Bandwidths | None:
    """Takes a fifth of a second; None where there is but one core."""
    if len(target.cores) < 2:
        return None
    alone, other = (target.reader(target.cores[at : at + 1]) for at in (0, 1))
    size, draft_size = (min(one.weight_bytes, _MOST_BYTES) for one in (target, drafter))
    one, draft_one = alone(size), alone(draft_size)
    alone(size)
    with looping(lambda: other(draft_size)):
        beside = alone(size)
    return Bandwidths(
        target.weight_bytes,
        drafter.weight_bytes,
        one,
        target.reader(target.cores)(size),
        min(one, beside),
        draft_one,
        target.reader(drafter.cores)(draft_size),
    )


def _gb(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f} GB/s"
