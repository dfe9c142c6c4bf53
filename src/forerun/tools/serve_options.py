"""The options of `forerun serve` as typer sees them, each written once.

Imported with the command line: must not import anything slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeArguments:
    """Where a server listens, whom it lets in, and how much may wait and run; the fields of
    `serve.start.Operation`."""

    host: Annotated[
        str, typer.Option(help="Where to listen; other machines only with --api-key-file.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="API keys, one a line; without it all comers.", show_default=False),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(help="What the model is called in the API.", show_default=False),
    ] = None
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait for their turn.")] = 256
    max_waiting_tokens: Annotated[
        int, typer.Option(help="Tokens that the prompts of those may have, all together.")
    ] = 1 << 20
    max_rows: Annotated[int, typer.Option(help="Requests that run at a time.")] = 32
    overcommit: Annotated[float, typer.Option(help="Times that K/V memory is promised.")] = 1.0
    max_compositions: Annotated[int, typer.Option(help="Held for requests that name one.")] = 8
    request_s: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0
    drain_s: Annotated[float, typer.Option(help="Seconds for running ones at SIGTERM.")] = 30.0
    allows_faults: Annotated[
        bool, typer.Option("--allow-faults", help="Let the page make the drafter fail.")
    ] = False
