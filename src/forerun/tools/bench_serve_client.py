"""One request to an OpenAI-compatible server, streamed: when its text came, and how it ended.

A failure is an outcome like any other: a measurement counts it and goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from forerun.tools.bench_serve_drafts import Drafts, drafts_of_answer
from forerun.tools.bench_serve_wire import (
    Address,
    EventParser,
    Head,
    RequestFailed,
    exchange,
    request_bytes,
)

_DONE = "[DONE]"
_GRACE_S = 1.0  # for a response to end after its last event
_PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_TEXTS = ("content", "reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; all times by one clock, in seconds.

    `due_s` is when it should have left and `left_s` when it did. `arrivals_s` has a time for each
    piece of text. `num_tokens` is what the server says, else the number of pieces. `error` is empty
    or the word it is counted under, `detail` a sentence about it.
    """

    prompt: int
    due_s: float
    left_s: float
    ended_s: float
    arrivals_s: tuple[float, ...] = ()
    text: str = ""
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    error: str = ""
    detail: str = ""
    drafts: Drafts | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the whole answer came."""
        return not self.error


@dataclass(slots=True)
class Hearing:
    """A streamed answer as it grows: `hear` takes the data of one event."""

    arrivals_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    drafts: Drafts | None = None
    has_reason: bool = False
    done_s: float | None = None

    def hear(self, data: str, at_s: float) -> None:
        """Take in an event.

        Raises:
            RequestFailed: an error in the stream, or data that is no chunk of an answer.
        """
        if data.strip() == _DONE:
            self.done_s = at_s
            return
        chunk = _json_object(data)
        if chunk.get("error"):
            raise RequestFailed("stream_error", str(chunk["error"])[:200])
        text = ""
        for choice in chunk.get("choices") or ():
            if isinstance(choice, dict):
                text += _text_of(choice)
                self.has_reason |= choice.get("finish_reason") is not None
        if text:
            self.arrivals_s.append(at_s)
            self.texts.append(text)
        usage = chunk.get("usage")
        self.usage = usage if isinstance(usage, dict) and usage else self.usage
        self.drafts = drafts_of_answer(chunk) or self.drafts

    def figures(self) -> dict[str, Any]:
        """The fields of an `Outcome` that were heard."""
        return {
            "arrivals_s": tuple(self.arrivals_s),
            "text": "".join(self.texts),
            "num_tokens": self.usage.get("completion_tokens") or len(self.arrivals_s),
            "num_prompt_tokens": self.usage.get("prompt_tokens") or 0,
            "drafts": self.drafts,
        }


@dataclass(frozen=True, slots=True)
class Client:
    """Sends requests of one kind to one server; `fields` are those that all bodies share."""

    address: Address
    endpoint: str
    fields: Mapping[str, Any]
    seed: int
    key: str | None = None
    timeout_s: float = 120.0
    now_s: Callable[[], float] = perf_counter

    def body(self, prompt: int, text: str) -> dict[str, Any]:
        """The request for a prompt: its seed is its own, and the same whenever it is sent."""
        asked: dict[str, Any]
        if self.endpoint == "chat":
            asked = {"messages": [{"role": "user", "content": text}]}
        else:
            asked = {"prompt": text}
        shared = {"stream": True, "stream_options": {"include_usage": True}}
        return asked | shared | {"seed": self.seed + prompt} | dict(self.fields)

    async def ask(self, prompt: int, text: str, due_s: float | None = None) -> Outcome:
        """Send one request and hear it to its end."""
        left_s = self.now_s()
        hearing, error, detail = Hearing(), "", ""
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._hear(hearing, self.body(prompt, text))
        except TimeoutError:
            error, detail = "timeout", f"no end after {self.timeout_s:g} s"
        except RequestFailed as failed:
            error, detail = failed.kind, str(failed)
        due_s = left_s if due_s is None else due_s
        ended_s = self.now_s() if hearing.done_s is None else hearing.done_s
        figures = hearing.figures()
        return Outcome(prompt, due_s, left_s, ended_s, error=error, detail=detail, **figures)

    async def _hear(self, hearing: Hearing, body: Mapping[str, Any]) -> None:
        data = json.dumps(body).encode()
        path = self.address.path + _PATHS[self.endpoint]
        request = request_bytes(self.address, path, self.key, data)
        async with exchange(self.address, request) as (head, pieces):
            await _refuse_other(head, pieces)
            parser = EventParser()
            async for piece in pieces:
                at_s = self.now_s()
                for event in parser.feed(piece):
                    hearing.hear(event, at_s)
                if hearing.done_s is not None:
                    await _read_out(pieces)
        if hearing.done_s is None and not hearing.has_reason:
            raise RequestFailed("disconnected", "the stream ended before its answer did")


async def _read_out(pieces: AsyncIterator[bytes]) -> None:
    """Read what is behind the end, so that the server sees no client that left early."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            async for _ in pieces:
                pass


async def _refuse_other(head: Head, pieces: AsyncIterator[bytes]) -> None:
    """Raise unless a stream of events begins."""
    kind = head.headers.get("content-type", "")
    if head.status == 200 and kind.startswith("text/event-stream"):
        return
    said = b"".join([piece async for piece in pieces])[:200].decode("utf-8", errors="replace")
    if head.status != 200:
        raise RequestFailed(f"http_{head.status}", said)
    raise RequestFailed("malformed", f"no stream of events, but {kind or 'something'}: {said}")


def _text_of(choice: Mapping[str, Any]) -> str:
    delta = choice.get("delta")
    texts = [delta.get(name) for name in _TEXTS] if isinstance(delta, dict) else []
    texts.append(choice.get("text"))
    return "".join(text for text in texts if isinstance(text, str))


def _json_object(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RequestFailed("malformed", f"an event is no JSON object: {data[:60]!r}")
    return value
