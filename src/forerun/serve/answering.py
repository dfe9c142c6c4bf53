"""A request from its jobs to its last byte: one JSON object, or a stream of chunks.

Order of a stream: role, text, the reason alone, usage if asked for, `[DONE]`. After it began a
failure is an error event and no reason: the client must not take a part for the whole.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from forerun.engine.results import Completion
from forerun.engine.service import Ended, Gained
from forerun.serve.answers import Choice, figures_of, usage_of
from forerun.serve.asking import Asked
from forerun.serve.feed import Feed, Submits
from forerun.serve.forms import Form, Step
from forerun.serve.provenance import told_of, traced
from forerun.serve.refusals import internal, is_ours, refusal_of, shutting_down
from forerun.serve.timings import Clock
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
    is_degraded: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's answer."""

    setting: Setting
    form: Form
    wishes: Wishes
    asked: Asked
    feed: Feed
    created: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))

    @staticmethod
    async def begin(
        setting: Setting, form: Form, wishes: Wishes, ask: Callable[[], Asked]
    ) -> Answer:
        """Make the jobs of a request and hand them to the engine.

        Raises:
            Refusal: what was asked for cannot be, or the server is full.
        """
        begun: list[Feed] = []
        is_left = False
        loop = asyncio.get_running_loop()

        def work() -> Asked:
            asked = ask()
            feed = Feed(setting.service, asked.jobs, setting.longest_s, loop)
            begun.append(feed)
            if is_left:
                feed.close()
            feed.submit()
            return asked

        try:
            asked = await asyncio.to_thread(work)
        except asyncio.CancelledError:
            is_left = True
            for feed in begun:
                feed.close()
            raise
        return Answer(setting, form, wishes, asked, begun[0], setting.clock.created())

    async def respond(self, request: Request) -> Response:
        """The response, which cancels the jobs if its client leaves."""
        if self.wishes.streams:
            return EventStream(self._chunks(), self.feed.close)
        try:
            return await whole_or_gone(request, self._whole())
        finally:
            self.feed.close()

    async def _whole(self) -> Response:
        choices = self._choices()
        timing = self.setting.clock.request()
        async for heard in self.feed.events(self.setting.longest_s):
            if heard is not None:
                choice = choices[heard[0]]
                choice.hear(heard[1])
                if isinstance(heard[1], Gained) and heard[1].seen is not None:
                    choice.rounds.append(told_of(heard[1], self.form.tokenizer))
                timing.hear(heard[1])
                self._refuse_failed(heard[1])
        body = self._envelope(self.form.whole_name)
        body["choices"] = [
            self.form.whole(one, len(echo))
            for one, echo in zip(choices, self.asked.echoes, strict=True)
        ]
        if any(one.rounds for one in choices):
            body["forerun"] = {"rounds": [one.rounds for one in choices]}
        return json_response(body | self._figures(choices))

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        choices = self._choices()
        try:
            for one, echo in zip(choices, self.asked.echoes, strict=True):
                opening = self.form.opening(one.index, echo)
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
        timing = self.setting.clock.request()
        num_open, figures = len(choices), {}
        async for heard in self.feed.events(self.setting.ping_s):
            if heard is None:
                yield PING
                continue
            choice, told = choices[heard[0]], heard[1]
            offset = len(choice.text)
            choice.hear(told)
            timing.hear(told)
            self._refuse_failed(told)
            if isinstance(told, Gained) and (told.piece.text or told.logprobs or told.seen):
                step = Step(choice.index, told.piece.text, told.piece.texts, told.logprobs, offset)
                found = {} if told.seen is None else traced(told, self.form.tokenizer)
                yield self._chunk(self.form.step(step), len(told.piece.text), found)
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
        return [Choice(index, echo) for index, echo in enumerate(self.asked.echoes)]

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
            "created": self.created,
            "model": self.setting.model_name,
            "system_fingerprint": self.setting.fingerprint,
        }

    def _figures(self, choices: list[Choice]) -> dict[str, Any]:
        num_prompt_tokens = self.asked.num_prompt_tokens
        is_degraded = self.setting.is_degraded()
        figures = figures_of(choices, num_prompt_tokens, is_degraded=is_degraded)
        return {"usage": usage_of(choices, num_prompt_tokens)} | figures

    def _refuse_failed(self, told: object) -> None:
        """Raise what a job ended with, if it did not end well."""
        if not isinstance(told, Ended) or told.completion.finish_reason in ("stop", "length"):
            return
        self.feed.close()
        raise failure_of(told.completion)


def failure_of(completion: Completion) -> BaseException:
    """Why a job did not end well; one that was cancelled from inside met a closing server."""
    if completion.finish_reason == "cancelled":
        return shutting_down()
    return completion.error or internal()


def _without_usage(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "usage"}
