"""Prompts from files: JSONL with a `prompt` key, the built-in set, and the suite by category."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forerun.errors import OptionError

BUILT_IN = Path(__file__).resolve().parent / "prompts" / "code.jsonl"
SUITE = Path(__file__).resolve().parent / "suite"
ALL = "all"
# What the suite promises of a context, as least and most tokens of the embedded tokenizer; with
# the longest, 256 tokens more still fit the 4096 positions of the embedded model.
CONTEXT_LENS = {"64": (40, 96), "1k": (768, 1100), "4k": (3300, 3840)}
TIERS = ("low", "mid", "high")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue and what to call it in a report; labels are empty outside the suite."""

    name: str
    text: str
    category: str = ""
    context: str = ""
    entropy: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file, named by their `name` key or their line.

    Raises:
        OptionError: no such file, a line that is no object with a text `prompt`, or no line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--prompts {path} cannot be read: {error}") from error
    prompts = [_prompt(path, n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise OptionError(f"--prompts {path} has no prompts in it")
    return prompts


def suite_categories(folder: Path = SUITE) -> list[str]:
    """The categories there are, one file each."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def read_suite(categories: str, folder: Path = SUITE) -> list[Prompt]:
    """The suite's prompts of the named categories, by commas, or of `all`; in the files' order.

    Raises:
        OptionError: a category that is not there; the message names those that are.
    """
    there = suite_categories(folder)
    asked = [word.strip() for word in categories.split(",") if word.strip()]
    wrong = [word for word in asked if word not in (ALL, *there)]
    if wrong or not asked:
        named = f"has no category {wrong[0]!r}" if wrong else "was given no category"
        raise OptionError(f"--suite {named}: there are {', '.join(there)}, and {ALL} for all")
    chosen = there if ALL in asked else [word for word in there if word in asked]
    return [one for name in chosen for one in read_prompts(folder / f"{name}.jsonl")]


def spread(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` of the prompts at even distances; all of them if `limit` is 0."""
    if not limit or limit >= len(prompts):
        return list(prompts)
    return [prompts[(2 * at + 1) * len(prompts) // (2 * limit)] for at in range(limit)]


def _prompt(path: Path, number: int, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{path}:{number} is not JSON: {error}") from error
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise OptionError(f'{path}:{number} must be an object with a text "prompt"')
    labels = {key: str(value.get(key, "")) for key in ("category", "context", "entropy")}
    return Prompt(str(value.get("name", number)), text, **labels)
