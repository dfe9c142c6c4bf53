"""A server under mixed load for a long time: does anything grow?

    python benchmarks/soak.py --minutes 30 --out soak.jsonl
    python benchmarks/soak.py --minutes 2 -- -m DIR --drafter lookup

Good requests, hostile ones (hostile.py) and clients that leave, at a rate that changes; every
`--every-s` seconds it is left alone, comes to rest, and is sampled: memory, threads, open files,
slots. Before the first sample every block of K/V memory is used once: it is taken as it is first
needed, and that is no growth. In each period one proposal of the drafter is made to fail; in the
last quarter three in a row, which switch it off. It fails on every fault that adversarial.py names,
on a sample that is not at rest or holds more files or threads than at first, and on memory that
grew: the median of the last third of samples over that of the second by more than `--growth-mib`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic

from adversarial import Plan, attack, good_texts
from watched_server import Held, Served, as_line, started

from forerun.errors import OptionError
from forerun.protocols import BLOCK_LEN

EVERY_GOOD = 2  # one request in so many is good
NUM_AT_A_TIME = 40  # requests between two looks at the clock
LOADS = (1, 4, 16, 32)  # connections at a time, one after the other
NUM_LEAST = 7  # samples, whatever they take
FILLING_IDS = (32, 127)  # tokens that any vocabulary has
FAILURE = "/page/drafter-failure"


def soak(
    server: Served, plan: Plan, longest_s: float, every_s: float, out: Path | None = None
) -> list[Held]:
    """Load the server so long; a sample at rest after each period, the first before any, when all
    K/V memory has been used once. The drafter is broken in the last quarter."""
    texts = good_texts(server)
    fill(server)
    samples, numbers, began_s = [server.rested()], count(), monotonic()
    is_disabled = False
    # On a slow machine it lasts longer: until there is enough to judge by, and a drafter is off.
    while (spent_s := monotonic() - began_s) < longest_s or not (
        is_disabled and len(samples) >= NUM_LEAST
    ):
        wants_end = spent_s >= 0.75 * longest_s
        if not is_disabled:
            server.ask(FAILURE, {"num": 3 if wants_end else 1})
            is_disabled = wants_end
        at_once = LOADS[len(samples) % len(LOADS)]
        _one_period(server, replace(plan, at_once=at_once), every_s, numbers, texts)
        samples.append(server.rested(num_files=samples[0].num_files))
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(as_line(samples[-1]) + "\n")
    return samples


def fill(server: Served) -> None:
    """Have every block of K/V memory used once, by prompts that have nothing in common."""
    longest = json.loads(server.ask("/v1/models")[1])["data"][0]["max_model_len"] - 1
    random = Random(0)
    for _ in range(server.held().num_blocks * BLOCK_LEN // longest + 1):
        prompt = [random.randrange(*FILLING_IDS) for _ in range(longest)]
        status, answer = server.ask("/v1/completions", {"prompt": prompt, "max_tokens": 1})
        if status != 200:
            raise OptionError(f"a prompt of {longest} tokens was refused: {answer[:200]!r}")


def _one_period(
    server: Served, plan: Plan, every_s: float, numbers: count[int], texts: Sequence[str]
) -> None:
    ends_s = monotonic() + every_s
    while monotonic() < ends_s:
        some = [next(numbers) for _ in range(NUM_AT_A_TIME)]
        asyncio.run(attack(server, some, texts, plan))


def growth(samples: Sequence[Held], growth_bytes: int) -> list[str]:
    """What grew over samples taken at rest, the first of them before any load."""
    first, found = samples[0], []
    for at, one in enumerate(samples):
        found += [f"sample {at}: {what}" for what in one.more_than(first)]
    third = len(samples) // 3
    if third == 0:
        return [*found, f"{len(samples)} samples are too few to judge memory by"]
    middle = median(one.rss_bytes for one in samples[third : 2 * third])
    last = median(one.rss_bytes for one in samples[-third:])
    if last > middle + growth_bytes:
        found.append(f"memory grew by {(last - middle) / 2**20:.1f} MiB from third to third")
    return found


def main() -> int:
    """Soak a server, print its samples, say what grew."""
    arguments = _arguments()
    plan = Plan(arguments.seed, 1, EVERY_GOOD)
    with started(["--allow-faults", *arguments.options]) as (server, log):
        samples = soak(server, plan, 60 * arguments.minutes, arguments.every_s, arguments.out)
        faults = [*plan.findings.faults, *growth(samples, arguments.growth_mib << 20)]
        if "Traceback" in log.read_text(encoding="utf-8"):
            faults.append("the server's log has a traceback")
    for one in samples[:: max(len(samples) // 30, 1)]:
        print(as_line(one))
    num = sum(counts.total() for counts in plan.findings.statuses.values())
    print(f"{num} requests in {arguments.minutes} minutes, {len(samples)} samples")
    for fault in faults[:50]:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults")
    return 1 if faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every-s", type=float, default=15.0, help="between two samples")
    parser.add_argument("--growth-mib", type=int, default=16, help="memory that may be added")
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6))
    parser.add_argument("--out", type=Path, help="samples, a line of JSON each")
    parser.add_argument("options", nargs="*", help="of forerun serve, behind --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
