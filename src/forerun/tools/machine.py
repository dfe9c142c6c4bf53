"""What the machine and the installation are: names for reports, facts for `doctor`.

Reads /proc and the control groups. Must not load a model.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from forerun.backends.memory import own_groups

_WANTED_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "amx_bf16")
_CPU_INFO = Path("/proc/cpuinfo")


def forerun_version() -> str:
    """The installed version, or `unknown` in a tree that was never installed."""
    try:
        return metadata.version("forerun")
    except metadata.PackageNotFoundError:
        return "unknown"


def machine_name() -> str:
    """Processor and number of usable cores, for the head of a table."""
    cores = num_cores()
    return f"{_cpu_field('model name') or platform.machine()}, {cores} core{'s' * (cores != 1)}"


def num_cores() -> int:
    """Cores this process may run on; a quota may allow less time on them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_flags() -> dict[str, bool]:
    """The instruction sets that matter here, as the operating system reports them."""
    present = set(_cpu_field("flags").split())
    return {flag: flag in present for flag in _WANTED_FLAGS}


def quota_cores() -> float | None:
    """Cores' worth of time that the control groups allow, or None where there is no limit."""
    limits = [_quota(group / "cpu.max") for group in own_groups()]
    finite = [limit for limit in limits if limit is not None]
    return min(finite) if finite else None


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _quota(path: Path) -> float | None:
    try:
        allowed, period = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if allowed == "max" else int(allowed) / int(period)


def _cpu_field(name: str) -> str:
    try:
        text = _CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
