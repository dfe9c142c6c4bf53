"""How an answer came about, round by round, for a client that asked: `"forerun": {"trace": true}`.

Pure: what the engine saw of a round in, an object of JSON out; docs/page.md is its schema. A round
has the keys of a trace (docs/trace.md) as far as both know them, and the tokens also as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun.engine.service import Event, Gained
from forerun.engine.witness import Seen
from forerun.models.tokenizer import Tokenizer
from forerun.serve.forms import bytes_of

Origin: TypeAlias = Literal["target", "draft", "bonus"]
MAX_ROUNDS = 1000  # of a choice, told in one piece; a stream tells all of them
_DIGITS = 7  # of a probability or margin: what a float32 holds
_LANE_COUNTS = ("num_hits", "num_wrong", "num_short", "num_late", "num_cold", "num_branches")


def traced(gained: Gained, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a chunk has beside its choice, for a round that was watched."""
    return {"forerun": {"round": told_of(gained, tokenizer)}}


def keep_round(rounds: list[dict[str, Any]], event: Event, tokenizer: Tokenizer) -> None:
    """Add the round of an event to those of a whole answer, the first MAX_ROUNDS of them."""
    if isinstance(event, Gained) and event.seen is not None and len(rounds) < MAX_ROUNDS:
        rounds.append(told_of(event, tokenizer))


def told_of(gained: Gained, tokenizer: Tokenizer) -> dict[str, Any]:
    """A round that was watched, as JSON has it."""
    seen = gained.seen
    assert seen is not None
    tree = seen.draft.tree
    tokens = tree.tokens.tolist()
    ranks = seen.draft.ranks
    return {
        "kind": "round",
        "known": seen.known,
        "num_rows": seen.stats.num_rows,
        "tokens": tokens,
        "texts": [text_of(tokenizer, token) for token in tokens],
        "parents": tree.parents.tolist(),
        "drafter": seen.drafter,
        "draw": seen.draft.draw.value,
        "margins": _figures(seen.draft.margins),
        "ranks": None if ranks is None else ranks.tolist(),
        "scores": _figures(seen.draft.scores),
        "p": _figures(seen.p),
        "q": _figures(seen.q),
        "path": list(map(int, seen.verdict.path)),
        "bonus": int(seen.verdict.bonus),
        "bonus_text": text_of(tokenizer, int(seen.verdict.bonus)),
        "kept": seen.kept,
        "emitted": _emitted(gained, seen, tokenizer),
        **_times(seen),
    }


def origins(num_accepted: int, kept: int) -> list[Origin]:
    """Where each emitted token of a round came from.

    The target's own token is a bonus behind accepted drafts, for it took no pass of its own; where
    none was accepted it is what plain decoding would have brought with this pass.
    """
    own: Origin = "bonus" if num_accepted else "target"
    accepted: list[Origin] = ["draft"] * num_accepted
    return [*accepted, own][:kept]


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; what is no text of its own, or none at all, by replacement characters."""
    return "" if token < 0 else bytes_of(tokenizer, token).decode("utf-8", errors="replace")


def _emitted(gained: Gained, seen: Seen, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokens with their origins; `text` is what became certain with each, as it was sent."""
    path = seen.verdict.path[1:]
    found = []
    for at, origin in enumerate(origins(len(path), seen.kept)):
        token = gained.piece.token_ids[at]
        one: dict[str, Any] = {
            "token": token,
            "text": gained.piece.texts[at],
            "token_text": text_of(tokenizer, token),
            "origin": origin,
            "node": int(path[at]) if origin == "draft" else None,
        }
        if gained.logprobs:
            scores = gained.logprobs[at]
            one["logprob"] = _short(scores.logprob)
            one["top"] = [[text_of(tokenizer, other), _short(p)] for other, p in scores.top]
        found.append(one)
    return found


def _times(seen: Seen) -> dict[str, Any]:
    """Seconds; `began_s` and the lane's by one clock of which only differences mean anything."""
    stats, lane = seen.stats, seen.stats.lane
    times: dict[str, Any] = {
        "began_s": stats.began_s,
        "draft_s": stats.draft_s,
        "verify_s": stats.verify_s,
        "round_s": stats.round_s,
        "lane": None,
    }
    if lane is not None:
        counts = {name: value for name, value in asdict(lane).items() if name in _LANE_COUNTS}
        spans = {"began_s": lane.began_s, "busy_s": lane.busy_s, "wait_s": lane.wait_s}
        times["lane"] = counts | spans
    return times


def _figures(values: NDArray[np.float32] | None) -> list[float | None] | None:
    return None if values is None else [_short(one) for one in _floats(values)]


def _floats(values: NDArray[np.float32]) -> Iterable[float]:
    numbers: list[float] = values.tolist()
    return numbers


def _short(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
