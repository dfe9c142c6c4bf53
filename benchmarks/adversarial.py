"""Many requests that nobody should send, against one live server: does it lose anything?

    python benchmarks/adversarial.py                          # 10,000, the embedded model
    python benchmarks/adversarial.py --requests 400 --seed 3 -- -m DIR --drafter lookup

Between them go good requests, whose answers must stay what they were at the start. It fails if
anything was answered with a 5xx other than 503, if a request was not answered at all that was sent
whole, if a good answer changed, or if at the end the server does not answer, has a request or a
block of K/V memory that nobody holds, more threads or open files than before, or more memory than
`--growth-mib` over what it had then: the embedded model's K/V blocks alone are 384 MiB, taken as
each is first used. What grows slowly is found by `soak.py`. Words behind `--` go to `forerun
serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Any

from hostile import TEXT, Case, case_of, json_of
from watched_server import Held, Served, as_line, started

MAX_ANSWER_S = 600.0  # for one request among many on a busy machine; a sick server takes longer
RAW_S = 1.0  # how long an answer to broken HTTP is waited for
NUM_GOOD = 5  # different good requests
NUM_FIFTHS = 5  # after each of which it is seen what the server holds
LEFT_BYTES, LEFT_S = 4000, 1.0  # a share of so much is read, or waited, before a client leaves
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass(slots=True)
class Findings:
    """How requests were answered, by kind, and what must not have happened."""

    statuses: dict[str, Counter[int | None]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def count(self, kind: str, status: int | None, seconds: float) -> None:
        """One more."""
        self.statuses.setdefault(kind, Counter())[status] += 1
        self.seconds.setdefault(kind, []).append(seconds)


def good_body(at: int) -> dict[str, Any]:
    """A request as people send it; the same number is the same request."""
    prompt = f"def f{at % NUM_GOOD}(x):\n    return "
    return {"prompt": prompt, "max_tokens": 16, "temperature": 0.8, "seed": at % NUM_GOOD}


def good_texts(server: Served) -> list[str]:
    """What the good requests are answered before anything bad happens."""
    return [_text_of(server.ask(TEXT, good_body(at))[1]) for at in range(NUM_GOOD)]


def _text_of(body: bytes) -> str:
    text: str = json.loads(body)["choices"][0]["text"]
    return text


# --- sending -------------------------------------------------------------------------------------


def request_of(case: Case, server: Served) -> bytes:
    """The bytes of a case on a connection of its own."""
    if case.manner == "raw":
        return case.body
    head = (
        f"POST {case.path} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(case.body)}\r\n\r\n"
    )
    sent = case.body[: int(case.share * len(case.body))] if case.manner == "half" else case.body
    return head.encode() + sent


async def exchange(case: Case, server: Served) -> bytes:
    """Send a case as it wants to be sent, and what came back before it was left."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        with suppress(ConnectionError):  # it may be refused before it was sent
            writer.write(request_of(case, server))
            await writer.drain()
        with suppress(ConnectionError):
            return await _READERS[case.manner](case, reader)
        return b""
    finally:
        _leave(writer, abruptly=case.share < 0.5)
        with suppress(ConnectionError):
            await writer.wait_closed()


def _leave(writer: asyncio.StreamWriter, *, abruptly: bool) -> None:
    """Close, with a reset instead of a good-bye where that is wished."""
    if abruptly and (connection := writer.get_extra_info("socket")) is not None:
        with suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()


async def _all(_case: Case, reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(MAX_ANSWER_S):
        return await reader.read()


async def _some(case: Case, reader: asyncio.StreamReader) -> bytes:
    with suppress(asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(case.share * LEFT_S):
            return await reader.readexactly(int(case.share * LEFT_BYTES))
    return b""


async def _slowly(case: Case, reader: asyncio.StreamReader) -> bytes:
    found = b""
    for _ in range(4):
        await asyncio.sleep(case.share / 4)
        found += await reader.read(64)
    return found


async def _nothing(_case: Case, _reader: asyncio.StreamReader) -> bytes:
    return b""


async def _shortly(_case: Case, reader: asyncio.StreamReader) -> bytes:
    with suppress(TimeoutError):
        async with asyncio.timeout(RAW_S):
            return await reader.read(1 << 16)
    return b""


_READERS = {"whole": _all, "aborted": _some, "slow": _slowly, "half": _nothing, "raw": _shortly}


# --- judging -------------------------------------------------------------------------------------


def fault_of(case: Case, answer: bytes) -> str | None:
    """What is wrong with an answer: one that is missing, or a fault of the server's."""
    found = _STATUS.match(answer)
    if found is None:
        return "no answer" if case.manner == "whole" else None
    status = int(found[1])
    head = answer.partition(b"\r\n\r\n")[0].lower()
    if status == 503:
        return None if b"\r\nretry-after:" in head else "503 does not say when to come again"
    if status >= 500:
        return f"status {status}"
    if case.manner == "whole" and b'"server_error"' in answer:
        return "a stream that failed"
    return None


def losses(before: Held, after: Held, growth_bytes: int) -> list[str]:
    """What a server at rest holds more than it held at first."""
    found = after.more_than(before)
    grown = after.rss_bytes - before.rss_bytes
    if grown > growth_bytes:
        found.append(f"{grown >> 20} MiB more memory than before")
    return found


async def attack(server: Served, numbers: Sequence[int], texts: Sequence[str], plan: Plan) -> None:
    """Send the cases of these numbers, so many at a time, and note what came of them."""
    waiting = iter(numbers)

    async def work() -> None:
        for at in waiting:
            await _send_one(server, at, texts, plan)

    await asyncio.gather(*(work() for _ in range(plan.at_once)))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent, how many at a time, one good request in how many, and where it is noted."""

    seed: int
    at_once: int
    every_good: int = 20
    findings: Findings = field(default_factory=Findings)


async def _send_one(server: Served, at: int, texts: Sequence[str], plan: Plan) -> None:
    turn, is_bad = divmod(at, plan.every_good)
    case = case_of(plan.seed, at) if is_bad else Case("good", TEXT, json_of(good_body(turn)))
    began_s = monotonic()
    try:
        answer = await exchange(case, server)
        fault = fault_of(case, answer)
    except (OSError, TimeoutError) as error:
        answer, fault = b"", f"{type(error).__name__}: {error}"
    status = _STATUS.match(answer)
    number = int(status[1]) if status else None
    plan.findings.count(case.kind, number, monotonic() - began_s)
    if not is_bad and fault is None and status and status[1] == b"200":
        text = _text_of(answer.partition(b"\r\n\r\n")[2])
        fault = None if text == texts[turn % NUM_GOOD] else "a good answer changed"
    if fault is not None:
        plan.findings.faults.append(f"request {at}, {case.kind}: {fault}: {case.body[:200]!r}")


def run(server: Served, num: int, plan: Plan, growth_bytes: int) -> list[Held]:
    """Attack, and what the server held before and after each fifth."""
    texts = good_texts(server)
    held = [server.rested()]
    for fifth in range(NUM_FIFTHS):
        numbers = range(num)[fifth * num // NUM_FIFTHS : (fifth + 1) * num // NUM_FIFTHS]
        asyncio.run(attack(server, numbers, texts, plan))
        held.append(server.rested(num_files=held[0].num_files))
    plan.findings.faults.extend(losses(held[0], held[-1], growth_bytes))
    if good_texts(server) != texts:
        plan.findings.faults.append("good answers at the end are not those of the start")
    return held


def main() -> int:
    """Attack a server, print the table, say what was lost."""
    arguments = _arguments()
    plan = Plan(arguments.seed, arguments.at_once)
    began_s = monotonic()
    with started(arguments.options) as (server, log):
        held = run(server, arguments.requests, plan, arguments.growth_mib << 20)
        if "Traceback" in log.read_text(encoding="utf-8"):
            plan.findings.faults.append("the server's log has a traceback")
            print(log.read_text(encoding="utf-8")[-4000:])
    for kind, counts in sorted(plan.findings.statuses.items()):
        told = ", ".join(f"{status or 'none'}: {num}" for status, num in counts.most_common())
        spent = plan.findings.seconds[kind]
        print(f"{kind:18} {sum(spent) / len(spent):6.2f} s, at most {max(spent):6.2f} s   {told}")
    for fifth, one in enumerate(held):
        print(f"after {fifth} of {NUM_FIFTHS} {as_line(one)}")
    print(f"{arguments.requests} requests, seed {plan.seed}, {monotonic() - began_s:.0f} s")
    for fault in plan.findings.faults[:50]:
        print(f"FAULT {fault}")
    print(f"{len(plan.findings.faults)} faults")
    return 1 if plan.findings.faults else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=Random().randrange(10**6))
    parser.add_argument("--at-once", type=int, default=16, help="connections at a time")
    parser.add_argument("--growth-mib", type=int, default=512, help="memory that may be added")
    parser.add_argument("options", nargs="*", help="of forerun serve, behind --")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
