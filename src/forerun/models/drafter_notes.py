"""What forerun notes of a drafter in its `config.json`, under a key of its own, "forerun".

    {"forerun": {"tokens_per_round": {"2": 1.9, "7": 2.8}, "trained_positions": 512}}

Knows that key only. Loaders elsewhere pass keys by that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forerun.errors import ModelError
from forerun.models.spec import read_json

_KEY = "forerun"


@dataclass(frozen=True, slots=True)
class DrafterNotes:
    """What was measured and what is known of a training; empty or None where nobody noted it.

    `tokens_per_round`: by drafted tokens, the target's own included, as `--drafter auto` reads it.
    `trained_positions`: tokens of the rows that it learned from. `thinking`: `on` or `off`, how its
    target was told to write them.
    """

    tokens_per_round: Mapping[int, float] = field(default_factory=dict)
    trained_positions: int | None = None
    thinking: str | None = None

    @property
    def sentence(self) -> str:
        """The tokens a round, as they are shown."""
        each = [
            f"{tokens:.2f} of chains of {num}"
            for num, tokens in sorted(self.tokens_per_round.items())
        ]
        return ", ".join(each) or "not recorded"


def read_notes(directory: Path) -> DrafterNotes:
    """The notes of a drafter's directory; what is absent or nonsense counts as not noted."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return DrafterNotes()
    own = config.get(_KEY) if isinstance(config, dict) else None
    if not isinstance(own, dict):
        return DrafterNotes()
    positions, mode = own.get("trained_positions"), own.get("thinking")
    return DrafterNotes(
        _yields(own.get("tokens_per_round")),
        positions if type(positions) is int and positions > 0 else None,
        mode if mode in ("on", "off") else None,
    )


def write_notes(directory: Path, notes: DrafterNotes) -> None:
    """Put what is noted into the directory's `config.json`, and leave the rest of it alone.

    Raises:
        ModelError: there is no config.json, or it is no JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{path} does not exist: only a drafter that was written can be noted in")
    config = read_json(path)
    own = config.get(_KEY)
    config[_KEY] = (own if isinstance(own, dict) else {}) | _said(notes)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _said(notes: DrafterNotes) -> dict[str, Any]:
    yields = {str(num): round(tokens, 2) for num, tokens in sorted(notes.tokens_per_round.items())}
    said = {
        "tokens_per_round": yields or None,
        "trained_positions": notes.trained_positions,
        "thinking": notes.thinking,
    }
    return {name: value for name, value in said.items() if value is not None}


def _yields(record: Any) -> dict[int, float]:
    try:
        return {int(length): float(tokens) for length, tokens in record.items()}
    except (AttributeError, TypeError, ValueError):
        return {}
