"""How results reach people and programs: styled text, or one JSON object on stdout.

Progress and logs go to stderr, always. Must not know engines.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

_WORDS = re.compile(r"\S+")
_RESET = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Ink:
    """The escape sequences of a stream; all empty where plain text is wanted.

    An accepted draft is underlined as well as green, so that it shows without colour too; only its
    words are, because an underlined indentation is hard to read.
    """

    accepted: str = ""
    faint: str = ""
    strong: str = ""

    @staticmethod
    def of(stream: TextIO) -> Ink:
        """What the stream can show: nothing if it is no terminal, no colour under NO_COLOR."""
        if not stream.isatty() or os.environ.get("TERM") == "dumb":
            return Ink()
        if os.environ.get("NO_COLOR"):
            return Ink(accepted="\x1b[4m", faint="\x1b[2m", strong="\x1b[1m")
        return Ink(accepted="\x1b[32;4m", faint="\x1b[2m", strong="\x1b[1m")

    def mark_accepted(self, text: str) -> str:
        """`text` as a draft that the target agreed with."""
        if not self.accepted:
            return text
        return _WORDS.sub(lambda match: f"{self.accepted}{match[0]}{_RESET}", text)

    def dim(self, text: str) -> str:
        """`text` as something said before."""
        return f"{self.faint}{text}{_RESET}" if self.faint and text else text

    def bold(self, text: str) -> str:
        """`text` as the figure to look at."""
        return f"{self.strong}{text}{_RESET}" if self.strong and text else text


def say(text: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write(text: str) -> None:
    """Text on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Mapping[str, Any]) -> None:
    """The one object of `--json`."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()
