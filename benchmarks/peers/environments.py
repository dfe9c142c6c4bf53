"""Where each engine's packages live, and how they get there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from catalogue import Peer

from forerun.errors import ForerunError

DEFAULT = Path.home() / ".cache" / "forerun-peers"
_TIMEOUT_S = 3600.0


class PeerError(ForerunError):
    """Another engine could not be installed, started or asked; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Environments:
    """One virtual environment an engine, below `root`, with what was made for it and its logs."""

    root: Path

    def python(self, peer: Peer) -> Path:
        """The interpreter that runs the peer's driver.

        Raises:
            PeerError: it was not installed.
        """
        if peer.name == "forerun":
            return Path(sys.executable)
        python = self._folder(peer) / "bin" / "python"
        if not (self._folder(peer) / "installed").exists():
            raise PeerError(
                f"not installed: run `python benchmarks/peers install --peers {peer.name}`"
            )
        return python

    def workspace(self, name: str) -> Path:
        """A folder for files in an engine's own format, made if need be."""
        folder = self.root / "made" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        """Where a child's words go."""
        folder = self.root / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.log"

    def install(self, peer: Peer) -> None:
        """Make the peer's environment from nothing; nothing to do for one that shares another's.

        Raises:
            PeerError: a step failed; the log has its words.
        """
        if peer.shares is not None:
            return
        folder, log = self._folder(peer), self.log(f"install-{peer.name}")
        venv.create(folder, clear=True, with_pip=True, symlinks=True)
        python = str(folder / "bin" / "python")
        commands = [[python, "-m", "pip", *step] for step in peer.steps]
        commands.append([python, "-c", f"import {', '.join(peer.imports)}"])
        with log.open("wb") as words:
            for command in commands:
                _run(command, peer, words)
        (folder / "installed").touch()

    def _folder(self, peer: Peer) -> Path:
        return self.root / (peer.shares or peer.name)


def _run(command: list[str], peer: Peer, words: BinaryIO) -> None:
    variables = {**os.environ, **peer.build}
    what = " ".join(command[1:])
    try:
        done = subprocess.run(
            command, stdout=words, stderr=words, env=variables, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"`{what}` took over {_TIMEOUT_S:.0f} s: see {words.name}") from None
    if done.returncode != 0:
        raise PeerError(f"`{what}` failed with status {done.returncode}: see {words.name}")
