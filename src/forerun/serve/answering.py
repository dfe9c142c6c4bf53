"""A request from its jobs to its last byte: one JSON object, or a stream of chunks.

Order of a stream: role, text, the reason alone, usage if asked for, `[DONE]`. After it began a
failure is an error event and no reason: the client must not take a part for the whole.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from forerun.engine.results import Completion
from forerun.engine.service import Ended, Gained, Scored
from forerun.serve.answers import Choice, figures_of, usage_of
from forerun.serve.asking import Asked
from forerun.serve.deadline import Deadline
from forerun.serve.feed import Feed, Submits
from forerun.serve.forms import Form, Step
from forerun.serve.provenance import keep_round, traced
from forerun.serve.refusals import internal, is_ours, refusal_of, shutting_down
from forerun.serve.timings import Clock, RequestClock
from forerun.serve.wire import DONE, PING, EventStream, event, json_response, padding, whole_or_gone


@dataclass(frozen=True, slots=True)
class Wishes:
    """How a client wants to be answered, and what the log calls its request."""

    request_id: str
    streams: bool = False
    usage: bool = False
    obfuscation: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """What answers have in common: the service, its limits, and where time and errors are noted."""

    service: Submits
    model_name: str
    fingerprint: str
    longest_s: float
    ping_s: float
    clock: Clock
    note: Callable[[BaseException, str], None]


@dataclass(frozen=True, slots=True)
class Begun:
    """A request whose jobs the engine has."""

    asked: Asked
    feed: Feed
    timing: RequestClock
    created: int


async def begin(setting: Setting, ask: Callable[[], Asked], arrived_s: float) -> Begun:
    """Make the jobs of a request and hand them to the engine, off the event loop.

    A thread that is late is not waited for: it ends by itself, for what it does is bounded, and
    hands nothing to the engine. `arrived_s`: when the request came, by the setting's clock.

    Raises:
        Refusal: what was asked for cannot be, or it took too long.
        CapacityError: the server is full, or a job does not fit.
    """
    timing = setting.clock.request()
    feeds: list[Feed] = []
    is_left = False
    loop = asyncio.get_running_loop()
    deadline = Deadline(arrived_s, setting.longest_s, setting.clock.now_s)

    def work() -> Asked:
        asked = ask()
        if is_left or not deadline.left_s():
            raise deadline.refusal()
        feed = Feed(setting.service, asked.jobs, deadline, loop)
        feeds.append(feed)
        if is_left:
            feed.close()
        feed.submit()
        return asked

    limit = asyncio.timeout(deadline.left_s())
    try:
        async with limit:
            asked = await asyncio.to_thread(work)
    except (asyncio.CancelledError, TimeoutError) as error:
        is_left = True
        for feed in feeds:
            feed.close()
        if limit.expired() and isinstance(error, TimeoutError):
            raise deadline.refusal() from None
        raise
    return Begun(asked, feeds[0], timing, setting.clock.created())


async def respond(
    request: Request,
    feed: Feed,
    whole: Callable[[], Coroutine[Any, Any, Response]],
    chunks: Callable[[], AsyncGenerator[bytes, None]] | None,
) -> Response:
    """A response that cancels its jobs if its client leaves; a stream where there are chunks."""
    if chunks is not None:
        return EventStream(chunks(), feed.close)
    try:
        return await whole_or_gone(request, whole())
    finally:
        feed.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's answer as a completion or a chat."""

    setting: Setting
    form: Form
    wishes: Wishes
    begun: Begun
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    async def respond(self, request: Request) -> Response:
        """The response."""
        chunks = self._chunks if self.wishes.streams else None
        return await respond(request, self.begun.feed, self._whole, chunks)

    async def _whole(self) -> Response:
        choices = self._choices()
        async for heard in self.begun.feed.events(self.setting.longest_s):
            if heard is not None:
                choice = choices[heard[0]]
                choice.hear(heard[1])
                keep_round(choice.rounds, heard[1], self.form.tokenizer)
                self.begun.timing.hear(*heard)
                refuse_failed(heard[1], self.begun.feed)
        body = self._envelope(self.form.whole_name)
        body["choices"] = [
            self.form.whole(one, len(echo))
            for one, echo in zip(choices, self.begun.asked.echoes, strict=True)
        ]
        if any(one.rounds for one in choices):
            body["forerun"] = {"rounds": [one.rounds for one in choices]}
        return json_response(body | self._figures(choices))

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        choices = self._choices()
        try:
            for one in choices:
                opening = self.form.opening(one)
                if opening is not None:
                    yield self._chunk(opening)
            async for data in self._steps(choices):
                yield data
        # Whatever happens now, the status line has been sent: the stream itself must say it.
        except Exception as error:  # noqa: BLE001
            if is_ours(error):
                self.setting.note(error, self.wishes.request_id)
            yield event(refusal_of(error).body())
            return
        yield DONE

    async def _steps(self, choices: list[Choice]) -> AsyncGenerator[bytes, None]:
        num_open, figures = len(choices), {}
        async for heard in self.begun.feed.events(self.setting.ping_s):
            if heard is None:
                yield PING
                continue
            choice, told = choices[heard[0]], heard[1]
            offset = len(choice.text)
            said = choice.hear(told)
            self.begun.timing.hear(*heard)
            refuse_failed(told, self.begun.feed)
            if isinstance(told, Scored) and (opening := self.form.opening(choice)) is not None:
                yield self._chunk(opening, len(choice.echo))
            if isinstance(told, Gained) and (said or told.logprobs or told.seen):
                step = Step(choice.index, said, told.piece.texts, told.logprobs, offset)
                found = {} if told.seen is None else traced(told, self.form.tokenizer)
                yield self._chunk(self.form.step(step), len(told.piece.text), found)
            elif said:
                yield self._chunk(self.form.step(Step(choice.index, said, (), (), offset)))
            if isinstance(told, Ended):
                num_open -= 1
                if not num_open:
                    figures = self._figures(choices)
                is_last = not num_open and not self.wishes.usage
                yield self._chunk(
                    self.form.closing(choice.index, choice.finish_reason),
                    figures=_without_usage(figures) if is_last else {},
                )
        if self.wishes.usage:
            yield event(self._envelope(self.form.chunk_name) | {"choices": []} | figures)

    def _choices(self) -> list[Choice]:
        asked = self.begun.asked
        reader = asked.calls.reader if asked.calls is not None else lambda: None
        return [
            Choice(at, echo, echo, job.prompt if job.scores_prompt else (), reader())
            for at, (job, echo) in enumerate(zip(asked.jobs, asked.echoes, strict=True))
        ]

    def _chunk(
        self, choice: dict[str, Any], num_chars: int = 0, figures: dict[str, Any] | None = None
    ) -> bytes:
        chunk = self._envelope(self.form.chunk_name) | {"choices": [choice]} | (figures or {})
        if self.wishes.usage:
            chunk["usage"] = None
        if self.wishes.obfuscation:
            chunk["obfuscation"] = padding(num_chars)
        return event(chunk)

    def _envelope(self, name: str) -> dict[str, Any]:
        return {
            "id": self.form.id_prefix + self.id,
            "object": name,
            "created": self.begun.created,
            "model": self.setting.model_name,
            "system_fingerprint": self.setting.fingerprint,
        }

    def _figures(self, choices: list[Choice]) -> dict[str, Any]:
        num_prompt_tokens = self.begun.asked.num_prompt_tokens
        usage = usage_of(choices, num_prompt_tokens)
        return {"usage": usage} | figures_of(choices, num_prompt_tokens)


def refuse_failed(told: object, feed: Feed) -> None:
    """Raise what a job ended with, if it did not end well; the others are cancelled."""
    if isinstance(told, Ended) and told.completion.finish_reason not in ("stop", "length"):
        feed.close()
        raise failure_of(told.completion)


def failure_of(completion: Completion) -> BaseException:
    """Why a job did not end well; one that was cancelled from inside met a closing server."""
    if completion.finish_reason == "cancelled":
        return shutting_down()
    return completion.error or internal()


def _without_usage(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "usage"}
