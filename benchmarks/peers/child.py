"""A driver process, asked one question at a time; every wait has an end, no process outlives us."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

from environments import PeerError

_GRACE_S = 5.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_READ_BYTES = 1 << 16


class Child:
    """A driver in its own session; use it in a `with` statement, or call `close`."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._pending = b""
        with log.open("wb") as words:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env={**os.environ, **variables},
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    def ask(self, question: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The driver's answer.

        Raises:
            PeerError: it answered with an error, died (its last words are quoted), or was silent
                for `timeout_s`; after the latter two it is closed.
        """
        try:
            self._write(json.dumps(question).encode() + b"\n")
            answer = json.loads(self._line(monotonic() + timeout_s, question["do"], timeout_s))
        except (BrokenPipeError, EOFError):
            self.close()
            raise PeerError(f"its process ended: {self._last_words()}") from None
        except PeerError:
            self.close()
            raise
        if not answer.pop("ok"):
            raise PeerError(str(answer["error"])[:500])
        return dict(answer)

    @property
    def cpu_s(self) -> float:
        """Processor time used so far by the process itself."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    @property
    def resident_bytes(self) -> int:
        """Memory it holds now."""
        return int(self._proc("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End it and all it started; more than once is fine."""
        if self._process.stdin and not self._process.stdin.closed:
            with suppress(BrokenPipeError):  # it ended by itself
                self._process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                break
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        if self._process.stdin is None or self._process.stdin.closed:
            raise EOFError
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _line(self, deadline: float, what: str, timeout_s: float) -> bytes:
        if self._process.stdout is None:
            raise EOFError
        source = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            left = deadline - monotonic()
            if left <= 0 or not select.select([source], [], [], left)[0]:
                raise PeerError(f"no answer to `{what}` within {timeout_s:g} s")
            piece = os.read(source, _READ_BYTES)
            if not piece:
                raise EOFError
            self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {self._process.poll()}"

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self._process.pid}/{name}").read_text(encoding="utf-8")
