"""The bodies that clients send: every field, its bounds, and the fields refused by name.

`null` is the same as absence. Unknown fields are refused: a request that is answered was understood
in full. `docs/server.md` has the table of these classes, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from forerun.options import MAX_LOGPROBS

MAX_MESSAGES, MAX_PROMPTS, MAX_CHOICES, MAX_STOPS, MAX_BIASES = 1024, 16, 16, 4, 1024
_MAX_TOKENS = 2**31 - 1
_NO_TOOLS = "tools are not built yet"
_NO_GRAMMAR = "structured output is not built yet"
_STATELESS = "nothing is kept between requests"
_TEXT_ONLY = "this server reads and writes text only"

# Fields of OpenAI's and its peers' APIs that are known and not honoured: why, and which values
# change nothing and may be sent nevertheless.
REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "tools": (_NO_TOOLS, ([],)),
        "tool_calls": (_NO_TOOLS, ([],)),
        "tool_choice": (_NO_TOOLS, ("none", "auto")),
        "parallel_tool_calls": (_NO_TOOLS, (True, False)),
        "functions": (_NO_TOOLS, ([],)),
        "function_call": (_NO_TOOLS, ("none", "auto")),
        "response_format": (_NO_GRAMMAR, ({"type": "text"},)),
        "structured_outputs": (_NO_GRAMMAR, ()),
        "guided_json": (_NO_GRAMMAR, ()),
        "guided_regex": (_NO_GRAMMAR, ()),
        "guided_choice": (_NO_GRAMMAR, ()),
        "guided_grammar": (_NO_GRAMMAR, ()),
        "grammar": (_NO_GRAMMAR, ()),
        "json_schema": (_NO_GRAMMAR, ()),
        "prediction": ("predicted outputs are not built yet", ()),
        "suffix": ("text is continued, not filled in", ("",)),
        "best_of": ("all `n` completions are returned", (1,)),
        "annotations": (_TEXT_ONLY, ([],)),
        "audio": (_TEXT_ONLY, ()),
        "modalities": (_TEXT_ONLY, (["text"],)),
        "web_search_options": ("this server fetches nothing", ()),
        "reasoning_effort": ("it has no meaning for this model", ("none",)),
        "verbosity": ("it has no meaning for this model", ("medium",)),
        "chat_template": ("templates come with the model only", ()),
        "chat_template_kwargs": ("templates come with the model only", ({},)),
        "prompt_logprobs": ("only generated tokens have log-probabilities", (0,)),
        "previous_response_id": (_STATELESS, ()),
        "conversation": (_STATELESS, ()),
        "background": (_STATELESS, (False,)),
        "reasoning": ("it has no meaning for this model", ({},)),
        "text": (_NO_GRAMMAR, ({}, {"format": {"type": "text"}})),
        "truncation": ("what does not fit is refused", ("disabled",)),
        "max_tool_calls": (_NO_TOOLS, ()),
        "use_beam_search": ("there is no beam search", (False,)),
    }
)


class Body(BaseModel):
    """What every body has in common: no coercion, no unknown fields, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        _refuse_crowds(body)
        given = {name: value for name, value in body.items() if value is not None}
        for name in REFUSED.keys() & given.keys() - cls.model_fields.keys():
            why, harmless = REFUSED[name]
            if not any(given[name] == one and type(given[name]) is type(one) for one in harmless):
                raise PydanticCustomError(
                    "refused", "{field} is not supported: {why}", {"field": name, "why": why}
                )
            del given[name]
        return given


def _readable(text: str) -> str:
    """JSON can spell halves of characters, which no text has."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise PydanticCustomError("unreadable", "half a character (a lone surrogate) is no text")
    return text


def _refuse_crowds(body: dict[Any, Any]) -> None:
    """Before each entry could become an error of its own, a million of them in one body."""
    tables = [body, *(value for value in body.values() if isinstance(value, dict))]
    if any(len(table) > MAX_BIASES for table in tables):
        raise PydanticCustomError(
            "crowded", "an object has more than {most} entries", {"most": MAX_BIASES}
        )


class StreamOptions(Body):
    """How a stream is written."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Extras(Body):
    """What only this server has."""

    trace: bool = False  # how each round came about: docs/page.md


TokenId = Annotated[int, Field(ge=0, lt=_MAX_TOKENS)]
Text = Annotated[str, AfterValidator(_readable)]
Stop = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_readable)]


class SamplingBody(Body):
    """Fields of completions and chat alike."""

    model: Annotated[str, Field(max_length=200)] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=_MAX_TOKENS)] = 0
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
            Field(max_length=MAX_BIASES),
        ]
        | None
    ) = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    speculation: Literal["auto", "off"] = "auto"
    forerun: Extras = Extras()
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
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False


class TextPart(Body):
    """One part of a message; text is all there is."""

    type: Literal["text"]
    text: Text


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Parts
    name: Annotated[str, Field(max_length=64)] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class TokenizeBody(Body):
    """`POST /tokenize`."""

    model: Annotated[str, Field(max_length=200)] | None = None
    prompt: Text
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: Annotated[str, Field(max_length=200)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]
