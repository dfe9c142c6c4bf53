"""`/v1/responses`: one message as an answer, whole or as the events it is made of.

Stateless: nothing is kept, so nothing can be continued by its id.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from forerun.engine.service import Gained
from forerun.serve.answering import Begun, Setting, refuse_failed, respond
from forerun.serve.answers import Choice
from forerun.serve.refusals import is_ours, refusal_of
from forerun.serve.responses_form import ResponsesForm, status_of
from forerun.serve.responses_telling import Telling
from forerun.serve.wire import PING, event, json_response


@dataclass(frozen=True, slots=True)
class ResponsesAnswer:
    """One request's answer as a response."""

    setting: Setting
    form: ResponsesForm
    begun: Begun
    request_id: str
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def respond(self, request: Request) -> Response:
        """The response."""
        chunks = self._chunks if self.form.body.stream else None
        return await respond(request, self.begun.feed, self._whole, chunks)

    async def _whole(self) -> Response:
        choice = self._choice()
        async for heard in self.begun.feed.events(self.setting.longest_s):
            if heard is not None:
                choice.hear(heard[1])
                self.begun.timing.hear(*heard)
                refuse_failed(heard[1], self.begun.feed)
        return json_response(self._ended(choice))

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        form, choice = self.form, self._choice()
        told_so_far = Telling(form, opens_at_once=choice.reader is None)
        try:
            for kind in ("response.created", "response.in_progress"):
                yield self._event(kind, response=form.response("in_progress", []))
            for one in told_so_far.begin():
                yield self._event(one[0], **one[1])
            async for chunk in self._deltas(choice, told_so_far):
                yield chunk
            for one in told_so_far.end(choice):
                yield self._event(one[0], **one[1])
            yield self._event(f"response.{status_of(choice)}", response=self._ended(choice))
        # The status line has been sent: the stream itself must say what happened.
        except Exception as error:  # noqa: BLE001
            if is_ours(error):
                self.setting.note(error, self.request_id)
            told = refusal_of(error)
            yield self._event("error", code=told.code, message=told.message, param=told.param)

    async def _deltas(self, choice: Choice, so_far: Telling) -> AsyncGenerator[bytes, None]:
        async for heard in self.begun.feed.events(self.setting.ping_s):
            if heard is None:
                yield PING
                continue
            told = heard[1]
            said = choice.hear(told)
            self.begun.timing.hear(*heard)
            refuse_failed(told, self.begun.feed)
            rows = told.logprobs if isinstance(told, Gained) else ()
            if said or rows:
                for kind, values in so_far.add(choice, said, rows):
                    yield self._event(kind, **values)

    def _choice(self) -> Choice:
        plan = self.begun.asked.calls
        return Choice(0, reader=None if plan is None else plan.reader())

    def _ended(self, choice: Choice) -> dict[str, Any]:
        return self.form.ended(choice, self.begun.asked.num_prompt_tokens)

    def _event(self, kind: str, **values: Any) -> bytes:
        number = next(self._numbers)
        return event({"type": kind, "sequence_number": number, **values}, name=kind)
