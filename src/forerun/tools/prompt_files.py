"""Prompts from files: JSONL with a `prompt` key, and the set that comes with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from forerun.errors import OptionError

BUILT_IN = Path(__file__).resolve().parent / "prompts" / "code.jsonl"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue and what to call it in a report."""

    name: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file, named by their `name` key or their line.

    Raises:
        OptionError: no such file, a line that is no object with a text `prompt`, or no line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--prompts {path} cannot be read: {error}") from error
    prompts = [_prompt(path, n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise OptionError(f"--prompts {path} has no prompts in it")
    return prompts


def _prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{path}:{number} is not JSON: {error}") from error
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise OptionError(f'{path}:{number} must be an object with a text "prompt"')
    return Prompt(str(value.get("name", number)), text)
