"""The bodies that clients send, every field and its bounds.

`docs/server.md` has the table of these classes, and a test compares them; what all bodies have in
common, and which fields are refused by name, is `body.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from forerun.options import LEAST_REPETITION_PENALTY, MAX_LOGPROBS
from forerun.serve.body import MAX_ENTRIES, MOST, Body, Stop, Text, TokenId
from forerun.serve.grammar_fields import (
    Choices,
    GrammarText,
    Regex,
    ResponseFormat,
    Schema,
    StructuredOutputs,
)
from forerun.serve.speculating import PredictionBody, SpeculationField
from forerun.serve.tool_fields import MadeCalls, NamedTool, ToolChoice, Tools, apart, there

MAX_MESSAGES, MAX_PROMPTS, MAX_CHOICES, MAX_STOPS = 1024, 16, 16, 4


class StreamOptions(Body):
    """How a stream is written."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extras(Body):
    """What only this server has."""

    trace: bool = False  # how each round came about: docs/page.md


class SamplingBody(Body):
    """Fields of completions and chat alike."""

    model: Annotated[str, Field(max_length=200)] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=MOST)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64, fail_fast=True)] | None = None
    ignore_eos: bool = False
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,10}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=MAX_ENTRIES),
        ]
        | None
    ) = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=LEAST_REPETITION_PENALTY, le=100)] = 1.0
    speculation: SpeculationField = "auto"
    prediction: PredictionBody | None = None
    forerun: Extras = Extras()
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | Text | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None
    json_schema: Schema | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    store: bool = False
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, however they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=MOST)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False


class TextPart(Body):
    """One part of a message; text is all there is."""

    type: Literal["text"]
    text: Text


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: MadeCalls | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    content: Text | Parts | None = Field(default=None, validate_default=True)

    @field_validator("content", mode="after")
    @classmethod
    def _said(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("missing", "a message needs a content")
        return content

    @field_validator("tool_calls", mode="after")
    @classmethod
    def _called(cls, calls: Any, info: ValidationInfo) -> Any:
        if calls and info.data.get("role") != "assistant":
            raise PydanticCustomError("stray", "calls are made by the assistant")
        return calls

    @property
    def text(self) -> str:
        """The content as one text."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)

    @property
    def told(self) -> dict[str, Any]:
        """What a chat template reads."""
        told: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.text,
        }
        if self.tool_calls:
            told["tool_calls"] = [call.told for call in self.tool_calls]
        if self.tool_call_id is not None:
            told["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            told["name"] = self.name
        return told


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True

    @field_validator("tools", mode="after")
    @classmethod
    def _named_apart(cls, tools: Tools | None) -> Tools | None:
        apart([tool.function for tool in tools or ()])
        return tools

    @field_validator("tool_choice", mode="after")
    @classmethod
    def _is_there(cls, choice: ToolChoice, info: ValidationInfo) -> ToolChoice:
        functions = [tool.function for tool in info.data.get("tools") or ()]
        there(choice.function if isinstance(choice, NamedTool) else choice, functions)
        return choice


class TokenizeBody(Body):
    """`POST /tokenize`."""

    model: Annotated[str, Field(max_length=200)] | None = None
    prompt: Text
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: Annotated[str, Field(max_length=200)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]
