"""How many drafted tokens a server kept, as it says itself: in its answers or in its metrics.

Pure: JSON and text in, counts out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_SAMPLE = re.compile(
    r"^\w+[:_]spec_decode_num_(drafts|draft_tokens|accepted_tokens)_total(?:\{.*\})? (\S+)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Drafts:
    """Drafts verified, tokens in them, and tokens of them kept; `num_drafts` 0 if not told."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    def __add__(self, other: Drafts) -> Drafts:
        return Drafts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __sub__(self, other: Drafts) -> Drafts:
        return Drafts(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))


def drafts_of_answer(answer: Mapping[str, Any]) -> Drafts | None:
    """What an answer or its last chunk says, in vLLM's words or in llama.cpp's; None if nothing."""
    told = _mapping(_mapping(answer.get("metrics")).get("speculative_decoding"))
    if told:
        names = ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens")
        return Drafts(*(_count(told.get(name)) for name in names))
    timings = _mapping(answer.get("timings"))
    if "draft_n" in timings:
        return Drafts(0, _count(timings["draft_n"]), _count(timings.get("draft_n_accepted")))
    return None


def drafts_of_metrics(text: str) -> Drafts | None:
    """What a Prometheus page says, all models together; None if it does not count drafts."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    if not sums:
        return None
    return Drafts(*(int(sums.get(x, 0)) for x in ("drafts", "draft_tokens", "accepted_tokens")))


def acceptance(
    told: Iterable[Drafts | None], before: Drafts | None, after: Drafts | None
) -> dict[str, Any] | None:
    """What was kept over a measurement, from its answers, else from metrics around it; or None.

    A step is a round of one request as answers tell it, also one where nothing was drafted; metrics
    tell only those with a draft. `tokens_per_step` counts the target's own token.
    """
    answers = [one for one in told if one is not None]
    if answers:
        return _figures("answers", sum(answers, Drafts()))
    if before is not None and after is not None:
        return _figures("metrics", after - before)
    return None


def _figures(source: str, drafts: Drafts) -> dict[str, Any]:
    kept, drafted, num = drafts.num_accepted_tokens, drafts.num_draft_tokens, drafts.num_drafts
    return {
        "source": source,
        "num_steps": num,
        "num_draft_tokens": drafted,
        "num_accepted_tokens": kept,
        "rate": kept / drafted if drafted else None,
        "drafted_per_step": drafted / num if num else None,
        "tokens_per_step": 1 + kept / num if num else None,
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
