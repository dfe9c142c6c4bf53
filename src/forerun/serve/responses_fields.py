"""The body of `POST /v1/responses`: what of it makes sense without any memory of earlier ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from forerun.options import MAX_LOGPROBS
from forerun.serve.fields import (
    MAX_MESSAGES,
    Body,
    ChatBody,
    Message,
    Text,
)

LOGPROBS = "message.output_text.logprobs"


class ResponsePart(Body):
    """One part of an item; text is all there is."""

    type: Literal["input_text", "output_text"]
    text: Text
    logprobs: Annotated[list[object], Field(max_length=0, default_factory=list)]


class InputItem(Body):
    """One message, of the user or as an earlier response gave it."""

    type: Literal["message"] = "message"
    id: Annotated[str, Field(max_length=128)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Text
        | Annotated[
            list[ResponsePart], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
        ]
    )

    @property
    def message(self) -> Message:
        """The same as chat writes it."""
        if isinstance(self.content, str):
            return Message(role=self.role, content=self.content)
        return Message(role=self.role, content="".join(part.text for part in self.content))


class ResponseStreamOptions(Body):
    """How a stream is written."""

    include_obfuscation: bool = False


class ResponsesBody(Body):
    """`POST /v1/responses`."""

    model: Annotated[str, Field(max_length=200)] | None = None
    input: (
        Text
        | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    )
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    include: Annotated[
        list[Literal["message.output_text.logprobs"]], Field(max_length=8, default_factory=list)
    ]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    speculation: Literal["auto", "off"] = "auto"
    stream: bool = False
    stream_options: ResponseStreamOptions = ResponseStreamOptions()
    store: bool = False
    metadata: Annotated[dict[str, str], Field(max_length=64, default_factory=dict)]
    user: Annotated[str, Field(max_length=512)] | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None

    def as_chat(self) -> ChatBody:
        """The conversation that is to be continued."""
        wants_logprobs = LOGPROBS in self.include
        return ChatBody(
            messages=self._messages(),
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=wants_logprobs,
            top_logprobs=self.top_logprobs if wants_logprobs else None,
            seed=self.seed,
            speculation=self.speculation,
        )

    def _messages(self) -> list[Message]:
        told = [] if self.instructions is None else [self.instructions]
        first = [Message(role="system", content=text) for text in told]
        if isinstance(self.input, str):
            return [*first, Message(role="user", content=self.input)]
        return [*first, *(item.message for item in self.input)]
