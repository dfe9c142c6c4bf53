"""Another engine's server beside ours: started by a command or found at an address, and asked the
same by the same client. Between its turns a server that we started is stopped, so that it takes no
time from whoever is measured.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from forerun.errors import BackendError
from forerun.tools.bench_serve import first_model
from forerun.tools.bench_serve_wire import Address

_LOOK_S = 1.0  # between two looks whether it answers
_GRACE_S = 20.0


def command_of(text: str, model: Path, port: int) -> list[str]:
    """The words of a command in which {model} and {port} stand for a directory and a number."""
    return [word.format(model=model, port=port) for word in shlex.split(text)]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Peer:
    """A server of another engine at a base URL; `process` leads a session of its own, if ours."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.url = url
        self._process = process

    @property
    def process_id(self) -> int | None:
        """The process that answers; None where it is not ours."""
        return None if self._process is None else self._process.pid

    def rest(self) -> None:
        """Stop it until `wake`."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


@contextmanager
def started(command: Sequence[str], port: int, longest_s: float, log: Path) -> Iterator[Peer]:
    """A peer that answers, until the block ends; its words go into a file.

    Raises:
        SystemExit: it ended, or did not answer in time.
    """
    url = f"http://127.0.0.1:{port}/v1"
    with log.open("wb") as words:
        process = subprocess.Popen(
            list(command), stdout=words, stderr=subprocess.STDOUT, start_new_session=True
        )
    peer = Peer(url, process)
    try:
        _await(url, process, longest_s, log)
        yield peer
    finally:
        peer.wake()
        _end(process)


def _await(url: str, process: subprocess.Popen[bytes], longest_s: float, log: Path) -> None:
    until_s = monotonic() + longest_s
    while True:
        try:
            asyncio.run(first_model(Address.parse(url), None))
        except BackendError:
            if process.poll() is not None:
                raise SystemExit(f"the peer's server ended: see {log}") from None
            if monotonic() > until_s:
                raise SystemExit(
                    f"the peer's server did not answer within {longest_s:g} s: see {log}, or give"
                    " it more by --peer-start-s"
                ) from None
            sleep(_LOOK_S)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            return
