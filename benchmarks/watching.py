"""What it costs a request to be watched: tokens a second with its rounds told and without.

    python benchmarks/watching.py                       # the embedded model, two minutes
    python benchmarks/watching.py --model build/260M-matched --out watching.json

For each composition a server of its own, asked for the same answers in four ways, one after
another: as it is; with the three likeliest tokens (`logprobs`); with its rounds told
(`forerun.trace`); with both, as the page asks. The order turns with each seed, so that a slow
minute of the machine meets all of them. A figure is the median over seeds of one way's tokens a
second ÷ those of the same answer as it is, over HTTP and a stream; 1 is free. Exit status 1 if a
watched text is another one than that which nobody watched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table
from watched_server import Served, started

from forerun.tools import machine

PROMPT = "def quicksort(items):\n"
COMPOSITIONS = (
    ("none", "chain:4"), ("lookup", "chain:4"), ("lm", "chain:4"), ("lm", "tree:8"),
)  # fmt: skip
_TRACED = {"forerun": {"trace": True}}
WAYS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "as it is": {},
        "logprobs": {"logprobs": 3},
        "trace": _TRACED,
        "both": _TRACED | {"logprobs": 3},
    }
)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show and keep; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=None, help="name or directory; absent: the embedded one")
    parser.add_argument("--num-seeds", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, help="a file for all of it, as JSON")
    args = parser.parse_args(words)
    rows = [_measured(args, drafter, shape) for drafter, shape in COMPOSITIONS]
    Console().print(_table(rows))
    report = {"machine": machine.machine_name(), "date": str(date.today()), "rows": rows}
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any(row["num_differing"] for row in rows))


def _measured(args: argparse.Namespace, drafter: str, shape: str) -> dict[str, Any]:
    """One server, every seed, every way."""
    options = ["--drafter", drafter, "--threads", "1"]
    options += [] if drafter == "none" else ["--shape", shape]
    options += [] if args.model is None else ["--model", args.model]
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    num_differing = 0
    with started(options) as (served, _):
        for seed in range(args.num_seeds + 1):
            names = list(WAYS)[seed % len(WAYS) :] + list(WAYS)[: seed % len(WAYS)]
            found = {name: _answered(served, args.max_tokens, seed, WAYS[name]) for name in names}
            num_differing += len({text for _, text in found.values()}) > 1
            for name in WAYS if seed else ():  # the first answers warm it up
                taken[name].append(found[name][0])
    rates = {name: args.max_tokens / median(seconds) for name, seconds in taken.items()}
    own = taken["as it is"]
    ratios = {
        name: median(a / b for a, b in zip(own, seconds, strict=True))
        for name, seconds in taken.items()
    }
    composition = drafter if drafter == "none" else f"{drafter} + {shape}"
    return {
        "composition": composition, "tokens_per_s": rates, "ratio": ratios,
        "num_differing": num_differing,
    }  # fmt: skip


def _answered(
    served: Served, max_tokens: int, seed: int, way: Mapping[str, Any]
) -> tuple[float, str]:
    """Seconds from the question to the last byte, and the text."""
    body = {
        "prompt": PROMPT, "max_tokens": max_tokens, "temperature": 0.7, "seed": seed,
        "stream": True, "ignore_eos": True, **way,
    }  # fmt: skip
    began_s = perf_counter()
    status, data = served.ask("/v1/completions", body)
    took_s = perf_counter() - began_s
    lines = [line for line in data.decode().split("\n\n") if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    if status != 200 or any("error" in one for one in events):
        raise RuntimeError(f"the server answered {status}: {data[:300]!r}")
    return took_s, "".join(choice["text"] for one in events for choice in one["choices"])


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("composition", "tokens/s", *list(WAYS)[1:], "texts that differ")
    for row in rows:
        ratios = [f"{row['ratio'][name]:.2f}" for name in list(WAYS)[1:]]
        rate = f"{row['tokens_per_s']['as it is']:.0f}"
        table.add_row(row["composition"], rate, *ratios, str(row["num_differing"]))
    return table


if __name__ == "__main__":
    sys.exit(main())
