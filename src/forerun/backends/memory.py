"""How much memory this process may still take: the machine's, or its control group's if less."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Bytes that can be taken without swapping; page cache counts as free."""
    return min([_machine_bytes(), *_group_bytes()])


def _machine_bytes() -> int:
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def own_groups() -> list[Path]:
    """Directories of this process's control group (version 2) and of all above it."""
    try:
        lines = _GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [_ROOT]
    own = [line.split("::", 1)[1].strip().lstrip("/") for line in lines if line.startswith("0::")]
    group = Path(own[0]) if own else Path()
    return [_ROOT / one for one in (group, *group.parents)]


def _group_bytes() -> list[int]:
    """Limit less use, of every control group this process is in."""
    rooms: list[int] = []
    for directory in own_groups():
        limit, used = _number(directory / "memory.max"), _number(directory / "memory.current")
        if limit is not None and used is not None:
            rooms.append(max(0, limit - used))
    return rooms


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
