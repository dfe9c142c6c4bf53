"""What an answer must be: `response_format`, and the words of peers for the same.

Knows the fields and their bounds; what a grammar is made of them is `grammars.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from forerun.engine.patterns import ANY_OBJECT, Pattern
from forerun.serve.body import MAX_ENTRIES, Body, Text

MAX_REGEX_CHARS, MAX_SCHEMA_CHARS, MAX_DEPTH = 4096, 1 << 16, 64


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Neither deep nor large: whoever reads it does so by recursion."""
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            break
    else:
        raise PydanticCustomError(
            "too_deep", "a schema may be {most} levels deep", {"most": MAX_DEPTH}
        )
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARS:
        raise PydanticCustomError(
            "too_large", "a schema may have {most} characters", {"most": MAX_SCHEMA_CHARS}
        )
    return schema


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


Schema = Annotated[dict[str, Any], AfterValidator(_bounded)]
Regex = Annotated[Text, Field(min_length=1, max_length=MAX_REGEX_CHARS)]
Choices = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=1024)]],
    Field(min_length=1, max_length=MAX_ENTRIES, fail_fast=True),
]
GrammarText = Annotated[Text, Field(min_length=1, max_length=MAX_SCHEMA_CHARS)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class NamedSchema(Body):
    """OpenAI's `json_schema`; `strict`: a keyword that cannot be enforced is refused."""

    name: Name
    description: Annotated[Text, Field(max_length=4096)] | None = None
    content: Schema = Field(alias="schema", default_factory=lambda: {"type": "object"})
    strict: bool = False


FormatKind = Literal["text", "json_object", "json_schema"]


def _refuse_half(kind: FormatKind, field: str, value: object) -> None:
    """Refuse a schema without its kind, and the kind without one."""
    if (value is not None) != (kind == "json_schema"):
        raise PydanticCustomError(
            "half_a_format",
            '{field} belongs to the type "json_schema", and needs it',
            {"field": field},
        )


class ResponseFormat(Body):
    """OpenAI's `response_format`."""

    type: FormatKind
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        _refuse_half(self.type, "json_schema", self.json_schema)
        return self

    @property
    def pattern(self) -> Pattern | None:
        """The grammar it asks for."""
        asked = self.json_schema
        if asked is not None:
            return Pattern.json_schema(asked.content, is_lenient=not asked.strict)
        return ANY_OBJECT if self.type == "json_object" else None


class TextFormat(Body):
    """`text.format` of `/v1/responses`: the same, spread out."""

    type: FormatKind = "text"
    name: Name | None = None
    description: Annotated[Text, Field(max_length=4096)] | None = None
    content: Schema | None = Field(alias="schema", default=None)
    strict: bool = False

    @model_validator(mode="after")
    def _whole(self) -> TextFormat:
        _refuse_half(self.type, "schema", self.content)
        return self

    @property
    def as_chat(self) -> ResponseFormat:
        """As chat writes it."""
        if self.content is None:
            return ResponseFormat(type=self.type)
        named = NamedSchema(name=self.name or "answer", schema=self.content, strict=self.strict)
        return ResponseFormat(type=self.type, json_schema=named)


class TextWish(Body):
    """`text` of `/v1/responses`."""

    format: TextFormat = TextFormat()


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: exactly one of these."""

    schema_: Schema | Text | None = Field(alias="json", default=None)
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self.patterns) != 1:
            raise PydanticCustomError(
                "not_one", "give exactly one of json, regex, choice, grammar and json_object"
            )
        return self

    @property
    def patterns(self) -> list[Pattern]:
        """The grammars it asks for."""
        found = patterns_of(self.schema_, self.regex, self.choice, self.grammar)
        return [*found, ANY_OBJECT] if self.json_object else found


def patterns_of(
    schema: dict[str, Any] | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> list[Pattern]:
    """What peers' words ask for; a schema may be spelled as text."""
    found = []
    if schema is not None:
        found.append(Pattern.json_schema(schema, is_lenient=True))
    if regex is not None:
        found.append(Pattern.regex(regex))
    if choice is not None:
        found.append(Pattern.choice(choice))
    if grammar is not None:
        found.append(Pattern.lark(grammar))
    return found
