"""What has come of a request's choices so far, and the figures of the whole.

Pure: events in, values out. How an answer is written in JSON is the business of the forms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun.engine.results import Completion
from forerun.engine.sequence import TokenLogprobs
from forerun.engine.service import Began, Ended, Event, Gained, Scored
from forerun.serve.calling import CallReader, Said


@dataclass(slots=True)
class Call:
    """A call as it grows; `arguments` is the text of a JSON object, whole unless it was cut."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Choice:
    """One answer as it grows; `text` begins with the prompt where it is echoed. `prompt`: its
    tokens where their log-probabilities are asked for, else none. `reader` finds the calls of
    tools in it, which then are no part of the text."""

    index: int
    text: str = ""
    echo: str = ""
    prompt: tuple[int, ...] = ()
    reader: CallReader | None = None
    calls: list[Call] = field(default_factory=list)
    has_scores: bool = False  # whether those of the prompt are known
    num_cached: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # of each token with log-probabilities
    kept: list[int] = field(default_factory=list)  # drafted tokens that each round kept
    rounds: list[dict[str, Any]] = field(default_factory=list)  # how it came about, if asked for
    completion: Completion | None = None

    def hear(self, event: Event) -> Said:
        """Take in an event: what it adds to the text and to calls."""
        said, reader = Said(), self.reader
        match event:
            case Began(num_cached):
                self.num_cached = num_cached
            case Scored(logprobs):
                self.prompt_logprobs, self.has_scores = logprobs, True
            case Gained(piece, logprobs):
                said = Said(piece.text) if reader is None else reader.push(piece.text)
                self.logprobs += logprobs
                self.texts += piece.texts
                self.kept.append(piece.num_accepted)
            case Ended(completion):
                self.completion = completion
                said = said if reader is None else reader.finish()
        self.text += said.text
        for part in said.calls:
            if part.id is not None:
                self.calls.append(Call(part.id, part.name or ""))
            self.calls[part.index].arguments += part.arguments
        return said

    @property
    def is_scored(self) -> bool:
        """Whether log-probabilities of its prompt are asked for."""
        return bool(self.prompt)

    @property
    def finish_reason(self) -> str:
        """`stop`, `tool_calls`, `length`, `cancelled` or `error`."""
        reason = "error" if self.completion is None else self.completion.finish_reason
        return "tool_calls" if self.calls and reason == "stop" else reason


def usage_of(choices: Sequence[Choice], num_prompt_tokens: int) -> dict[str, Any]:
    """OpenAI's `usage`: what was read, what was written, what did not have to be read again."""
    ended = [one.completion for one in choices if one.completion is not None]
    num_generated = sum(len(one.token_ids) for one in ended)
    predicted = [one.prediction for one in ended if one.prediction is not None]
    details = {} if not predicted else {"completion_tokens_details": _details(predicted)}
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt_tokens + num_generated,
        "prompt_tokens_details": {"cached_tokens": sum(one.num_cached for one in choices)},
        **details,
    }


def _details(predicted: Sequence[tuple[int, int]]) -> dict[str, int]:
    """What became of an expected text: its tokens that were proposed, kept and not."""
    return {
        "accepted_prediction_tokens": sum(accepted for accepted, _ in predicted),
        "rejected_prediction_tokens": sum(rejected for _, rejected in predicted),
    }


def figures_of(choices: Sequence[Choice], num_prompt_tokens: int) -> dict[str, Any]:
    """vLLM's `metrics.speculative_decoding` and llama.cpp's `timings`, of a single choice.

    With several choices both would be sums of unlike things, and are null.
    """
    completion = choices[0].completion if len(choices) == 1 else None
    if completion is None:
        return {"metrics": None, "timings": None}
    stats, num_generated = completion.stats, len(completion.token_ids)
    kept = Counter(choices[0].kept)
    rounds, drafted, accepted = stats.num_rounds, stats.num_drafted, stats.num_accepted
    return {
        "metrics": {
            "speculative_decoding": {
                "mean_acceptance_length": 1 + accepted / rounds if rounds else 0.0,
                "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
                "acceptance_histogram": [kept[at] for at in range(stats.most_drafted + 1)],
                "num_spec_tokens": stats.most_drafted,
                "num_spec_steps": rounds,
                "num_draft_tokens": drafted,
                "num_accepted_draft_tokens": accepted,
                "degraded": completion.drafter_state not in ("", "healthy"),
            }
        },
        "timings": {
            "prompt_n": num_prompt_tokens - choices[0].num_cached,
            "prompt_ms": stats.prefill_s * 1e3,
            "predicted_n": num_generated,
            "predicted_ms": stats.decode_s * 1e3,
            "predicted_per_second": stats.tokens_per_s,
            "draft_n": drafted,
            "draft_n_accepted": accepted,
        },
    }
