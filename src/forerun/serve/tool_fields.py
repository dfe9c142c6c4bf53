"""Tools that a model may call: what a client says of them, and calls that were made.

Knows the fields of chat and of `/v1/responses`; how calls are written and read is `calling.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from forerun.serve.body import Body, Text
from forerun.serve.grammar_fields import Name, Schema

MAX_TOOLS, MAX_CALLS = 64, 128
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise PydanticCustomError("no_object", "arguments are an object: its type must be object")
    return {**schema, "type": "object"}


def _arguments(text: str) -> str:
    """Arguments as text, which spells an object."""
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise PydanticCustomError("no_object", "arguments must be the text of a JSON object")
    return text


Parameters = Annotated[Schema, AfterValidator(_object)]


class Function(Body):
    """A function's name, what it is for, and the schema of its arguments."""

    name: Name
    description: Annotated[Text, Field(max_length=16_384)] | None = None
    parameters: Parameters = Field(default_factory=lambda: dict(_NO_ARGUMENTS))
    strict: bool = False

    @property
    def told(self) -> dict[str, Any]:
        """What a chat template reads."""
        told = {"name": self.name, "parameters": self.parameters}
        if self.description is not None:
            told["description"] = self.description
        return {"type": "function", "function": told}


def apart(functions: Sequence[Function]) -> None:
    """Refuse two functions of one name."""
    names = {one.name for one in functions}
    if len(names) < len(functions):
        raise PydanticCustomError("twice", "two functions have one name: rename one")


def there(choice: str | NamedFunction, functions: Sequence[Function]) -> None:
    """Refuse a choice of what is not there."""
    if choice == "required" and not functions:
        raise PydanticCustomError("no_tools", "there are no tools that could be called: send some")
    if not isinstance(choice, str) and all(one.name != choice.name for one in functions):
        raise PydanticCustomError(
            "no_such_tool", "no function of the tools has this name: name one"
        )


class Tool(Body):
    """A tool of chat; functions are all there is."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """A function by its name."""

    name: Name


class NamedTool(Body):
    """The one tool to be called."""

    type: Literal["function"]
    function: NamedFunction


class MadeFunction(Body):
    """The function of a call that was made, and its arguments as JSON text."""

    name: Name
    arguments: Annotated[Text, Field(max_length=1 << 20), AfterValidator(_arguments)]


class MadeCall(Body):
    """A call in an earlier message of the assistant."""

    id: Annotated[str, Field(max_length=128)]
    type: Literal["function"] = "function"
    function: MadeFunction

    @property
    def told(self) -> dict[str, Any]:
        """What a chat template reads: arguments as an object."""
        made = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": made}


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
MadeCalls = Annotated[list[MadeCall], Field(max_length=MAX_CALLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool
