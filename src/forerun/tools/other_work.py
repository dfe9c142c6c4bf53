"""How busy other processes keep the cores that are measured on: what spoils a comparison of lanes.

Reads /proc/stat. Must not judge.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from time import perf_counter

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # fields that count idling and waiting for disks; guests' time is in user's already
_NUM_FIELDS = 8


class OtherWork:
    """Counts from when it is made."""

    def __init__(self, cores: Collection[int], stat: Path = _STAT) -> None:
        self._cores, self._stat = frozenset(cores), stat
        self._began = self._now()

    def num_cores(self) -> float:
        """Cores that others kept busy on average since then; 0 where the system does not say."""
        busy_s, own_s, at_s = (
            now - began for now, began in zip(self._now(), self._began, strict=True)
        )
        return max(0.0, busy_s - own_s) / at_s if at_s > 0 else 0.0

    def _now(self) -> tuple[float, float, float]:
        times = os.times()
        busy_s = busy_seconds(self._read(), self._cores)
        return busy_s, times.user + times.system, perf_counter()

    def _read(self) -> str:
        try:
            return self._stat.read_text(encoding="utf-8")
        except OSError:
            return ""


def busy_seconds(stat: str, cores: Collection[int]) -> float:
    """Seconds that these cores were busy since the machine began, out of the text of /proc/stat."""
    ticks = 0
    for line in stat.splitlines():
        name, *counts = line.split()
        if name.removeprefix("cpu").isdecimal() and int(name[3:]) in cores:
            own = [int(count) for count in counts[:_NUM_FIELDS]]
            ticks += sum(count for at, count in enumerate(own) if at not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
