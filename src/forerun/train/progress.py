"""The bar that a long act shows on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(
    minutes: float, what: str = "training"
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives what is to be called with each record: `elapsed_s`, and a step's or a batch's own."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=60 * minutes, state="")

        def report(record: dict[str, Any]) -> None:
            progress.update(task, completed=record["elapsed_s"], state=_state(record))

        yield report


def _state(record: dict[str, Any]) -> str:
    if "loss" not in record:
        return f"{record['rows']} rows"
    state = f"step {record['step']}  {record['num_tokens'] / 1e6:.2f}M tokens  {record['loss']:.3f}"
    latest = record.get("tokens_per_round")  # of the last examination, where there was one
    return state if latest is None else f"{state}  {latest:.2f} tokens a round"
