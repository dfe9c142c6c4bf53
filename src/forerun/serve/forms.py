"""The two shapes of an answer: chat and completion, whole and in chunks.

Pure. The first chunk of a chat names the role, then text comes, then the reason alone in its own
chunk: clients exist that lose one of the two when they share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from forerun.engine.sequence import TokenLogprobs
from forerun.models.tokenizer import Tokenizer
from forerun.serve.answers import Call, Choice
from forerun.serve.calling import CallPart, Said
from forerun.serve.echoing import joined, with_prompt

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; peers write this


@dataclass(frozen=True, slots=True)
class Step:
    """What a chunk brings to one choice: text from `offset` on, parts of calls, and tokens with
    their scores."""

    index: int
    said: Said
    texts: Sequence[str]
    logprobs: Sequence[TokenLogprobs]
    offset: int


class Form(Protocol):
    """How one API writes the choices of an answer; each method gives the object of one choice."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model that answers."""

    @property
    def whole_name(self) -> str:
        """What an answer calls itself."""

    @property
    def chunk_name(self) -> str:
        """What a chunk of it calls itself."""

    @property
    def id_prefix(self) -> str:
        """What its ids begin with."""

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """What comes before any text, if something does and can be written yet."""

    def step(self, step: Step) -> dict[str, Any]:
        """Text that was added."""

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """Why it ended."""

    def whole(self, choice: Choice, echo_len: int) -> dict[str, Any]:
        """All of it."""


@dataclass(frozen=True, slots=True)
class ChatForm:
    """`chat.completion` and its chunks."""

    tokenizer: Tokenizer
    wants_logprobs: bool
    whole_name: str = "chat.completion"
    chunk_name: str = "chat.completion.chunk"
    id_prefix: str = "chatcmpl-"

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """The role; no text where only calls may come."""
        content = "" if choice.reader is None or choice.reader.has_text else None
        return self._delta(choice.index, {"role": "assistant", "content": content}, None, None)

    def step(self, step: Step) -> dict[str, Any]:
        """Text that was added."""
        delta: dict[str, Any] = {}
        if step.said.calls:
            delta["tool_calls"] = [_part_of_call(one) for one in step.said.calls]
        if step.said.text or not delta:
            delta["content"] = step.said.text
        return self._delta(step.index, delta, self._logprobs(step.logprobs), None)

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """Why it ended."""
        return self._delta(index, {}, None, reason)

    def whole(self, choice: Choice, echo_len: int) -> dict[str, Any]:  # noqa: ARG002
        """All of it."""
        content = choice.text or None if choice.calls else choice.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if choice.calls:
            message["tool_calls"] = [_call(one) for one in choice.calls]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, rows: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        return {"content": scores_of(self.tokenizer, rows), "refusal": None}


@dataclass(frozen=True, slots=True)
class TextForm:
    """`text_completion`: one name for the whole and for chunks."""

    tokenizer: Tokenizer
    wants_logprobs: bool
    whole_name: str = "text_completion"
    chunk_name: str = "text_completion"
    id_prefix: str = "cmpl-"

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """The echoed prompt, once what is asked of it is known."""
        if not choice.echo or (choice.is_scored and not choice.has_scores):
            return None
        return self._choice(choice.index, choice.echo, self._scores(choice), None)

    def step(self, step: Step) -> dict[str, Any]:
        """Text that was added."""
        logprobs = self._logprobs(step.logprobs, step.texts, step.offset)
        return self._choice(step.index, step.said.text, logprobs, None)

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """Why it ended."""
        return self._choice(index, "", None, reason)

    def whole(self, choice: Choice, echo_len: int) -> dict[str, Any]:
        """All of it."""
        own = self._logprobs(choice.logprobs, choice.texts, echo_len)
        logprobs = joined(self._scores(choice), own)
        return self._choice(choice.index, choice.text, logprobs, choice.finish_reason)

    def _scores(self, choice: Choice) -> dict[str, Any] | None:
        """Log-probabilities of the prompt, where they were asked for."""
        if not choice.is_scored:
            return None
        prompt, rows = choice.prompt, choice.prompt_logprobs
        return with_prompt(prompt, rows, self.tokenizer, self._logprobs)

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(
        self, rows: Sequence[TokenLogprobs], texts: Sequence[str], offset: int
    ) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": [self._name(one.token) for one in rows],
            "token_logprobs": [finite(one.logprob) for one in rows],
            "top_logprobs": [
                {self._name(token): finite(value) for token, value in one.top} for one in rows
            ],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        """A token's text; its bytes where they are no text of their own."""
        data = bytes_of(self.tokenizer, token)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _part_of_call(part: CallPart) -> dict[str, Any]:
    """The first part of a call names it; all others only add to its arguments."""
    if part.id is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}


def scores_of(tokenizer: Tokenizer, rows: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """Scores of tokens and of those beside them, as chat and responses write them."""

    def score(token: int, logprob: float) -> dict[str, Any]:
        data = bytes_of(tokenizer, token)
        text = data.decode("utf-8", errors="replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(data)}

    return [
        score(one.token, one.logprob)
        | {"top_logprobs": [score(token, value) for token, value in one.top]}
        for one in rows
    ]


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token spells; a special token is spelled by its name."""
    if token in tokenizer.special_ids:
        return tokenizer.added.get(token, "").encode("utf-8")
    return tokenizer.token_bytes(token)


def finite(logprob: float) -> float:
    """A log-probability as JSON can write it."""
    return logprob if math.isfinite(logprob) else _LEAST_LOGPROB
