"""`forerun bench serve` as typer sees it: its options, each written once, and what they mean.

Imported with the command line: must not import anything slow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from forerun.errors import OptionError

_LOAD, _REQUESTS = "Load", "Requests"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which server is asked what, how often, and what is written about it."""

    url: Annotated[
        str, typer.Option(help="The API, with its version.", rich_help_panel=_REQUESTS)
    ] = "http://127.0.0.1:8000/v1"
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The server's first if not given.", rich_help_panel=_REQUESTS,
            show_default=False,
        ),
    ] = None  # fmt: skip
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="A file with the key.", rich_help_panel=_REQUESTS, show_default=False),
    ] = None
    endpoint: Annotated[
        str, typer.Option(help="completions or chat.", rich_help_panel=_REQUESTS)
    ] = "completions"
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSONL file, one object with a `prompt` key a line.", rich_help_panel=_REQUESTS,
            show_default=False,
        ),
    ] = None  # fmt: skip
    suite: Annotated[
        str,
        typer.Option(
            metavar="CATEGORY,...", help="Of the prompt suite, without --prompts.",
            rich_help_panel=_REQUESTS,
        ),
    ] = "all"  # fmt: skip
    limit: Annotated[
        int, typer.Option(help="Prompts, spread over them; 0 is all.", rich_help_panel=_REQUESTS)
    ] = 48
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="At most so many.", rich_help_panel=_REQUESTS)
    ] = 64
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="0 is greedy.", rich_help_panel=_REQUESTS)
    ] = 0.0
    seed: Annotated[
        int, typer.Option(help="Of texts, order and arrivals.", rich_help_panel=_REQUESTS)
    ] = 0
    extra_body: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help='More fields: \'{"ignore_eos": true}\'.',
            rich_help_panel=_REQUESTS, show_default=False,
        ),
    ] = None  # fmt: skip
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,...", help="So many at a time, one after another. Or 1,2,4,8,16,32.",
            rich_help_panel=_LOAD, show_default=False,
        ),
    ] = None  # fmt: skip
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R,...", help="So many a second, at random times (Poisson).",
            rich_help_panel=_LOAD, show_default=False,
        ),
    ] = None  # fmt: skip
    duration_s: Annotated[
        float, typer.Option(help="Seconds at each load.", rich_help_panel=_LOAD)
    ] = 15.0
    timeout_s: Annotated[
        float, typer.Option(help="Seconds that a request may take.", rich_help_panel=_LOAD)
    ] = 120.0
    ttft_slo: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="A good request begins within.", rich_help_panel=_LOAD,
            show_default=False,
        ),
    ] = None  # fmt: skip
    itl_slo: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="And takes a token, on average.", rich_help_panel=_LOAD,
            show_default=False,
        ),
    ] = None  # fmt: skip
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Answer every prompt at every concurrency, and compare the texts.",
            rich_help_panel=_LOAD,
        ),
    ] = False  # fmt: skip
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw latency and tokens/s over load (matplotlib).",
            rich_help_panel=_LOAD, show_default=False,
        ),
    ] = None  # fmt: skip

    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")
    ] = False

    def points(self) -> tuple[Point, ...]:
        """The loads, in the order they were written; 1 to 32 at a time if none was.

        Raises:
            OptionError: both kinds, or a number outside its range.
        """
        if self.rate is not None and self.concurrency is not None:
            raise OptionError("--rate and --concurrency were both given: run once with each")
        if self.rate is not None:
            return tuple(Point("rate", one) for one in _numbers("--rate", self.rate, 0.001))
        asked = _numbers("--concurrency", self.concurrency or "1,2,4,8,16,32", 1.0)
        if any(one != int(one) for one in asked):
            raise OptionError(f"--concurrency {self.concurrency} must be whole numbers")
        return tuple(Point("concurrency", one) for one in asked)

    def fields(self) -> dict[str, Any]:
        """What all requests share but the model's name.

        Raises:
            OptionError: values no server could honour.
        """
        if not math.isfinite(self.temperature) or self.temperature < 0 or self.max_tokens < 1:
            raise OptionError("--temperature must be at least 0, --max-tokens at least 1")
        known = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return known | dict(_object("--extra-body", self.extra_body or "{}"))

    def check_numbers(self) -> None:
        """Raise OptionError for times that cannot be."""
        for name in ("duration_s", "timeout_s", "ttft_slo", "itl_slo"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 86400:
                option = name.replace("_", "-")
                raise OptionError(f"--{option} must be in (0, 86400] seconds, found {value}")
        if self.endpoint not in ("completions", "chat"):
            raise OptionError(f"--endpoint must be completions or chat, found {self.endpoint!r}")
        if self.limit < 0:
            raise OptionError(f"--limit must be at least 0, found {self.limit}")
        if self.check and self.rate is not None:
            raise OptionError("--check compares concurrencies: leave out --rate")


@dataclass(frozen=True, slots=True)
class Point:
    """A load: so many at a time, or so many a second."""

    kind: Literal["concurrency", "rate"]
    value: float

    @property
    def name(self) -> str:
        """As a table calls it."""
        return f"{self.value:g}" if self.kind == "concurrency" else f"{self.value:g}/s"


def bench_serve(*, load: LoadOptions) -> int:
    """Load any OpenAI-compatible server: latency, throughput, errors, and drafts that were kept.

    So many requests at a time, or at random times whatever comes back. Exits 1 if nothing was
    answered, or --check found that a text depends on the load.

    \b
    Examples
      forerun bench serve --concurrency 1,2,4,8,16,32 --check
      forerun bench serve --url http://127.0.0.1:8080/v1 --rate 2,4,8 --ttft-slo 0.5
      forerun bench serve --endpoint chat -t 0.7 --duration-s 60 --picture load.png --json
    """
    from forerun.tools.bench_serve import run

    return run(load)


def _numbers(option: str, text: str, least: float) -> tuple[float, ...]:
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} {text!r} must be numbers separated by commas") from error
    if not all(least <= one <= 1e5 for one in found):
        raise OptionError(f"{option} {text!r} must be numbers in [{least:g}, 100000]")
    return found


def _object(option: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise OptionError(f"{option} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise OptionError(f'{option} must be an object, like {{"ignore_eos": true}}')
    return value
