"""What this machine and this installation can do, in a few lines.

Tries the parts one by one and says what is missing and what to install; loads no model.
"""

from __future__ import annotations

import os
import sys
from importlib import util
from typing import Any

from forerun.errors import ForerunError
from forerun.models.resolve import EMBEDDED_NAME, cache_root, resolve_model
from forerun.tools import machine
from forerun.tools.terminal import write, write_json


def run(*, as_json: bool) -> int:
    """Print the report; 1 if the native backend cannot be used."""
    report = inspect_machine()
    if as_json:
        write_json(report)
    else:
        write("".join(f"{name.replace('_', ' '):16} {_text(report[name])}\n" for name in report))
    return 0 if report["native"]["available"] else 1


def inspect_machine() -> dict[str, Any]:
    """Everything `doctor` knows, as plain data."""
    return {
        "version": machine.forerun_version(),
        "python": sys.version.split()[0],
        "machine": machine.machine_name(),
        "cores": machine.num_cores(),
        "quota_cores": machine.quota_cores(),
        "memory_bytes": machine.memory_bytes(),
        "cpu_flags": machine.cpu_flags(),
        "native": _native(),
        "extras": {name: util.find_spec(name) is not None for name in ("torch", "huggingface_hub")},
        "embedded_model": _embedded(),
        "model_cache": str(cache_root()),
    }


def _native() -> dict[str, Any]:
    try:
        from forerun import _native as core
        from forerun.backends.native import default_cores
    except (ImportError, ForerunError) as error:
        return {"available": False, "reason": str(error)}
    paths = list(core.available_paths())
    report = {"available": True, "path": paths[0], "paths": paths, "threads": len(default_cores())}
    if core.amx_errno():
        report["amx_refused"] = os.strerror(core.amx_errno())
    return report


def _embedded() -> str:
    try:
        return str(resolve_model(EMBEDDED_NAME))
    except ForerunError as error:
        return str(error)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return " > ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "no limit" if value is None else str(value)
