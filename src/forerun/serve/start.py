"""From the options of `forerun serve` to a running server; says what is missing if it is.

Imports the libraries of the extra `serve` when it runs, and turns their absence into a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forerun.engine.service import ServiceLimits
from forerun.errors import BackendError
from forerun.serve.keys import read_keys
from forerun.serve.settings import ServeSettings, host_of

if TYPE_CHECKING:
    from forerun.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Operation:
    """The options of the command, as they were written."""

    host: str
    port: int
    api_key_file: Path | None
    name: str | None
    max_waiting: int
    max_waiting_tokens: int
    max_rows: int
    overcommit: float
    max_compositions: int
    request_s: float
    drain_s: float
    allows_faults: bool = False

    def settings(self, model: str) -> ServeSettings:
        """What they say, checked.

        Raises:
            OptionError: a value outside its range, no host, keys that cannot be read.
        """
        return ServeSettings(
            name=self.name or served_name(model),
            host=host_of(self.host),
            port=self.port,
            key_hashes=read_keys(self.api_key_file) if self.api_key_file is not None else (),
            request_s=self.request_s,
            drain_s=self.drain_s,
            allows_faults=self.allows_faults,
        )


def served_name(model: str) -> str:
    """What a model is called if nobody says: never where its files are."""
    path = Path(model)
    return path.resolve().name if path.exists() else model


def run(
    operation: Operation,
    model: str,
    open_engine: Callable[[], Engine],
    write: Callable[[str], None],
    *,
    as_json: bool,
) -> int:
    """Serve until told to stop.

    Raises:
        BackendError: the extra `serve` is not installed.
        ForerunError: options, a model or an address that cannot be used.
    """
    settings = operation.settings(model)
    limits = ServiceLimits(
        max_waiting=operation.max_waiting,
        max_waiting_tokens=operation.max_waiting_tokens,
        max_rows=operation.max_rows,
        max_compositions=operation.max_compositions,
        overcommit=operation.overcommit,
    )
    try:
        from forerun.serve.command import run as serve
    except ModuleNotFoundError as error:
        raise BackendError(
            f"the server needs {error.name}: pip install 'forerun[serve]'"
        ) from error

    def announce(address: str) -> None:
        known = {"address": address, "base_url": f"{address}/v1", "model": settings.name}
        text = (
            f"{settings.name} is served at {address}/v1, to be looked at in a browser at {address}/"
        )
        write(json.dumps(known) if as_json else text)

    return serve(open_engine, settings, limits, announce)
