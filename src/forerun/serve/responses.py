"""`/v1/responses`: one message as an answer, whole or as the events it is made of.

Stateless: nothing is kept, so nothing can be continued by its id.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from forerun.engine.sequence import TokenLogprobs
from forerun.engine.service import Gained
from forerun.models.tokenizer import Tokenizer
from forerun.serve.answering import Begun, Setting, refuse_failed, respond
from forerun.serve.answers import Choice, figures_of, usage_of
from forerun.serve.forms import bytes_of, finite
from forerun.serve.refusals import is_ours, refusal_of
from forerun.serve.responses_fields import LOGPROBS, ResponsesBody
from forerun.serve.wire import PING, event, json_response, padding


@dataclass(frozen=True, slots=True)
class ResponsesForm:
    """How a response is written; pure."""

    body: ResponsesBody
    model_name: str
    created: int
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    item_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(16)}")

    def response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole object, in any status."""
        body = self.body
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": why,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self.model_name,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
            "metadata": body.metadata,
            "user": body.user,
            "usage": None,
        }

    def ended(self, choice: Choice, num_prompt_tokens: int, *, is_degraded: bool) -> dict[str, Any]:
        """The whole object of an answer that has ended."""
        usage = usage_of([choice], num_prompt_tokens)
        return (
            self.response(status_of(choice), [self.item(choice)])
            | figures_of([choice], num_prompt_tokens, is_degraded=is_degraded)
            | {
                "usage": {
                    "input_tokens": usage["prompt_tokens"],
                    "input_tokens_details": usage["prompt_tokens_details"],
                    "output_tokens": usage["completion_tokens"],
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": usage["total_tokens"],
                }
            }
        )

    def item(self, choice: Choice | None) -> dict[str, Any]:
        """The message; without a choice as it is before its first word."""
        status = "in_progress" if choice is None else status_of(choice)
        content = [] if choice is None else [self.part(choice.text, choice.logprobs)]
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, text: str, rows: list[TokenLogprobs]) -> dict[str, Any]:
        """The text of the message."""
        logprobs = self.logprobs(rows)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def logprobs(self, rows: list[TokenLogprobs] | tuple[TokenLogprobs, ...]) -> list[Any]:
        """Scores of tokens, none where they were not asked for."""
        if LOGPROBS not in self.body.include:
            return []
        return [
            self._token(one.token, one.logprob)
            | {"top_logprobs": [self._token(token, value) for token, value in one.top]}
            for one in rows
        ]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = bytes_of(self.tokenizer, token)
        text = data.decode("utf-8", errors="replace")
        return {"token": text, "logprob": finite(logprob), "bytes": list(data)}


def status_of(choice: Choice) -> str:
    """A response that met its limit is not complete."""
    return "incomplete" if choice.finish_reason == "length" else "completed"


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
        choice = Choice(0)
        async for heard in self.begun.feed.events(self.setting.longest_s):
            if heard is not None:
                choice.hear(heard[1])
                self.begun.timing.hear(heard[1])
                refuse_failed(heard[1], self.begun.feed)
        return json_response(self._ended(choice))

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        form, choice = self.form, Choice(0)
        place = {"item_id": form.item_id, "output_index": 0, "content_index": 0}
        try:
            for kind in ("response.created", "response.in_progress"):
                yield self._event(kind, response=form.response("in_progress", []))
            yield self._event("response.output_item.added", output_index=0, item=form.item(None))
            yield self._event("response.content_part.added", **place, part=form.part("", []))
            async for chunk in self._deltas(choice, place):
                yield chunk
            scores = form.logprobs(choice.logprobs)
            part = form.part(choice.text, choice.logprobs)
            done = "response.output_text.done"
            yield self._event(done, **place, text=choice.text, logprobs=scores)
            yield self._event("response.content_part.done", **place, part=part)
            item = form.item(choice)
            yield self._event("response.output_item.done", output_index=0, item=item)
            yield self._event(f"response.{status_of(choice)}", response=self._ended(choice))
        # The status line has been sent: the stream itself must say what happened.
        except Exception as error:  # noqa: BLE001
            if is_ours(error):
                self.setting.note(error, self.request_id)
            told = refusal_of(error)
            yield self._event("error", code=told.code, message=told.message, param=told.param)

    async def _deltas(self, choice: Choice, place: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        async for heard in self.begun.feed.events(self.setting.ping_s):
            if heard is None:
                yield PING
                continue
            told = heard[1]
            choice.hear(told)
            self.begun.timing.hear(told)
            refuse_failed(told, self.begun.feed)
            if isinstance(told, Gained) and (told.piece.text or told.logprobs):
                text, pad = told.piece.text, {}
                if self.form.body.stream_options.include_obfuscation:
                    pad = {"obfuscation": padding(len(text))}
                scores = self.form.logprobs(told.logprobs)
                kind = "response.output_text.delta"
                yield self._event(kind, **place, delta=text, logprobs=scores, **pad)

    def _ended(self, choice: Choice) -> dict[str, Any]:
        num_prompt_tokens = self.begun.asked.num_prompt_tokens
        is_degraded = self.setting.is_degraded()
        return self.form.ended(choice, num_prompt_tokens, is_degraded=is_degraded)

    def _event(self, kind: str, **values: Any) -> bytes:
        number = next(self._numbers)
        return event({"type": kind, "sequence_number": number, **values}, name=kind)
