"""The child's side of the conversation: JSON lines in, JSON lines out, one answer a question.

    -> {"do": "load", "model": DIR, "drafter": DIR|null, "drafters": {"lm": DIR, ...},
        "workspace": DIR, "threads": 2, ...}
    <- {"ok": true, "engine": "...", "versions": {...}, "modes": [...]}
    -> {"do": "generate", "mode": "plain", "options": {}, "prompt": [ids], "max_tokens": 64}
    <- {"ok": true, "token_ids": [...], "num_first": 1, "first_s": 0.01, "rest_s": 0.5,
        "arrivals": [[1, 0.02], [3, 0.021], ...]}
    -> {"do": "forward", "num_tokens": 16, "context": 64, "repeat": 8}
    <- {"ok": true, "forward_s": 0.02}   or   {"ok": false, "error": "..."}
    -> {"do": "floor", "context": 64}      forerun's driver only
    <- {"ok": true, "floor_s": 0.01}
    -> {"do": "counts"}                    vLLM's only
    <- {"ok": true, "num_drafts": 9, "num_accepted": 12, "num_by_slot": [6, 4, 2]}

Runs in each engine's own environment, so it knows the standard library only. Engines print what
they like: standard output is theirs no longer, and goes where standard error goes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine is loaded with; `mode` and `options` matter to engines that fix them then.

    `drafter` is the one that the mode needs, or the small model; `drafters` are all, by kind.
    """

    model: Path
    drafter: Path | None
    workspace: Path
    threads: int
    context: int
    mode: str
    options: Mapping[str, Any]
    drafters: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timed:
    """A completion: `num_first` tokens took `first_s`, the prompt included, the others `rest_s`.

    `arrivals` are the others chunk by chunk: how many tokens, and seconds since the chunk before.
    """

    token_ids: Sequence[int]
    num_first: int
    first_s: float
    rest_s: float
    arrivals: Sequence[tuple[int, float]]


class Driver(Protocol):
    """One engine behind the protocol; a method that does not apply raises `NotImplementedError`."""

    def load(self, setting: Setting) -> Mapping[str, Any]:
        """Load the model; what is worth knowing about the engine (`versions`, ...)."""

    def generate(
        self, mode: str, options: Mapping[str, Any], prompt: Sequence[int], max_tokens: int
    ) -> Timed:
        """Continue the prompt greedily by exactly `max_tokens` tokens, whatever they are."""

    def forward(self, num_tokens: int, context: int) -> float:
        """Seconds of one pass over `num_tokens` new tokens, logits of all, after `context`."""


class Stopwatch:
    """Times tokens as they arrive, a chunk at a time; starts when it is made."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._arrivals: list[tuple[int, float]] = []
        self._last = time.perf_counter()

    def add(self, token_ids: Sequence[int]) -> int:
        """Note a chunk that has just arrived; how many tokens there are now."""
        now = time.perf_counter()
        self._arrivals.append((len(token_ids), now - self._last))
        self._last = now
        self._token_ids.extend(token_ids)
        return len(self._token_ids)

    def result(self, max_tokens: int) -> Timed:
        """All tokens up to `max_tokens`; a chunk that overshot counts as far as it was wanted."""
        token_ids = self._token_ids[:max_tokens]
        left, wanted = len(token_ids), []
        for num_tokens, seconds in self._arrivals:
            wanted.append((min(num_tokens, left), seconds))
            left -= wanted[-1][0]
        (num_first, first_s), *others = wanted or [(0, 0.0)]
        return Timed(token_ids, num_first, first_s, sum(s for _, s in others), others)


def serve(driver: Driver) -> None:
    """Answer questions until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = {"ok": True, **_answer(driver, json.loads(line))}
        except NotImplementedError as error:
            answer = {"ok": False, "error": f"not offered: {error}"}
        except Exception as error:  # noqa: BLE001  any failure of an engine becomes its row
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(driver: Driver, question: dict[str, Any]) -> Mapping[str, Any]:
    match question.pop("do"):
        case "load":
            paths = {name: _path(question.pop(name)) for name in ("model", "drafter", "workspace")}
            drafters = {kind: Path(path) for kind, path in question.pop("drafters", {}).items()}
            return driver.load(Setting(**paths, drafters=drafters, **question))
        case "generate":
            return asdict(driver.generate(**question))
        case "forward":
            repeat = question.pop("repeat")
            driver.forward(**question)
            seconds = sorted(driver.forward(**question) for _ in range(repeat))
            return {"forward_s": seconds[len(seconds) // 2]}
        case "floor" if hasattr(driver, "floor"):
            return {"floor_s": driver.floor(**question)}
        case "counts" if hasattr(driver, "counts"):
            return driver.counts()
        case other:
            raise ValueError(f"{other} is not a question")


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
