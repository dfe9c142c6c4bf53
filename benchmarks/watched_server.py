"""A live server and what it holds: slots, blocks, memory, threads, files. For runs that last."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ENDING_S = 60.0
NUM_POOL_THREADS = 40  # of the server's own pool, which grows to this and stays
_GAUGES = {
    "num_running": "vllm:num_requests_running",
    "num_waiting": "vllm:num_requests_waiting",
    "num_free_blocks": "forerun:kv_blocks_free",
    "num_blocks": "forerun:kv_blocks",
}


@dataclass(frozen=True, slots=True)
class Held:
    """What a server holds at a moment; `num_files` are open descriptors, sockets among them."""

    at_s: float
    rss_bytes: int
    num_threads: int
    num_files: int
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int

    @property
    def is_at_rest(self) -> bool:
        """Whether no request is in it, and every block of K/V memory is free."""
        return self.num_running == self.num_waiting == 0 and self.num_free_blocks == self.num_blocks

    def more_than(self, first: Held) -> list[str]:
        """What it holds at rest that it did not hold at `first`, in sentences; memory apart."""
        found = []
        if not self.is_at_rest:
            found.append(f"it is not at rest: {as_line(self)}")
        if self.num_files > first.num_files:
            found.append(f"{self.num_files} open files, {first.num_files} at first")
        if self.num_threads > first.num_threads + NUM_POOL_THREADS:
            found.append(f"{self.num_threads} threads, {first.num_threads} at first")
        return found


@dataclass(frozen=True, slots=True)
class Served:
    """Where it listens, and its process."""

    host: str
    port: int
    process: int

    @property
    def address(self) -> str:
        """The base of its routes."""
        return f"http://{self.host}:{self.port}"

    def ask(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of one request: GET without a body, else POST of JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=ENDING_S)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                kind = {"Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(body), kind)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def held(self) -> Held:
        """What it holds now; its own socket for this question is not counted."""
        status, text = self.ask("/metrics")
        if status != 200:
            raise RuntimeError(f"/metrics answered {status}: is the server still there?")
        gauges = {name: _gauge(text.decode(), metric) for name, metric in _GAUGES.items()}
        about = Path(f"/proc/{self.process}")
        rss = re.search(r"VmRSS:\s+(\d+) kB", (about / "status").read_text(encoding="utf-8"))
        return Held(
            at_s=time.monotonic(),
            rss_bytes=int(rss[1]) * 1024 if rss else 0,
            num_threads=len(list((about / "task").iterdir())),
            num_files=len(list((about / "fd").iterdir())),
            **gauges,
        )

    def rested(self, longest_s: float = ENDING_S, num_files: int | None = None) -> Held:
        """What it holds once it is at rest, with at most so many files open; or after so long."""
        ends_s = time.monotonic() + longest_s
        while True:
            held = self.held()
            is_closed = num_files is None or held.num_files <= num_files
            if (held.is_at_rest and is_closed) or time.monotonic() > ends_s:
                return held
            time.sleep(0.1)


def _gauge(text: str, name: str) -> int:
    found = re.search(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/metrics has no {name}: is this forerun?")
    return int(float(found[1]))


def as_line(held: Held) -> str:
    """One sample as a line of JSON."""
    return json.dumps(asdict(held) | {"at_s": round(held.at_s, 1)})


@contextmanager
def started(options: Sequence[str]) -> Iterator[tuple[Served, Path]]:
    """`forerun serve` with these options in a process of its own, and the file of what it logs.

    It is told to end with the block, and must.
    """
    command = [sys.executable, "-m", "forerun.cli", "serve", "--port", "0", "--json", *options]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        with (
            log.open("w", encoding="utf-8") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            try:
                yield _announced(process, log), log
                process.send_signal(signal.SIGTERM)
                process.wait(ENDING_S)
            finally:
                process.kill()


def _announced(process: subprocess.Popen[str], log: Path) -> Served:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the server did not start: {log.read_text(encoding='utf-8')[-2000:]}")
    host, _, port = json.loads(line)["address"].removeprefix("http://").rpartition(":")
    return Served(host, int(port), process.pid)


def here(address: str) -> Served:
    """A server in this very process."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return Served(host, int(port), os.getpid())
