"""The body of `POST /v1/responses`: what of it makes sense without any memory of earlier ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from forerun.options import MAX_LOGPROBS
from forerun.serve.body import Body, Text
from forerun.serve.fields import MAX_MESSAGES, ChatBody, Message
from forerun.serve.grammar_fields import TextWish
from forerun.serve.speculating import SpeculationField
from forerun.serve.tool_fields import (
    MAX_TOOLS,
    Function,
    MadeCall,
    MadeFunction,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    apart,
    there,
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


class CallItem(MadeFunction):
    """A call, as an earlier response gave it."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(max_length=128)]
    id: Annotated[str, Field(max_length=128)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    @property
    def message(self) -> Message:
        """The same as chat writes it."""
        made = MadeFunction(name=self.name, arguments=self.arguments)
        return Message(role="assistant", tool_calls=[MadeCall(id=self.call_id, function=made)])


class CallOutputItem(Body):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(max_length=128)]
    output: Text
    id: Annotated[str, Field(max_length=128)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    @property
    def message(self) -> Message:
        """The same as chat writes it."""
        return Message(role="tool", tool_call_id=self.call_id, content=self.output)


class ResponseTool(Function):
    """A function, with its kind beside its name."""

    type: Literal["function"]


class NamedResponseTool(NamedFunction):
    """The one function to be called."""

    type: Literal["function"]


class ResponseStreamOptions(Body):
    """How a stream is written."""

    include_obfuscation: bool = False


class ResponsesBody(Body):
    """`POST /v1/responses`."""

    model: Annotated[str, Field(max_length=200)] | None = None
    input: (
        Text
        | Annotated[
            list[InputItem | CallItem | CallOutputItem],
            Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
        ]
    )
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0
    include: Annotated[
        list[Literal["message.output_text.logprobs"]], Field(max_length=8, default_factory=list)
    ]
    text: TextWish = TextWish()
    tools: Annotated[
        list[ResponseTool], Field(max_length=MAX_TOOLS, fail_fast=True, default_factory=list)
    ]
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool = "auto"
    parallel_tool_calls: bool = True
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    speculation: SpeculationField = "auto"
    stream: bool = False
    stream_options: ResponseStreamOptions = ResponseStreamOptions()
    store: bool = False
    metadata: Annotated[dict[str, str], Field(max_length=64, default_factory=dict)]
    user: Annotated[str, Field(max_length=512)] | None = None
    service_tier: Annotated[str, Field(max_length=64)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None

    @field_validator("tools", mode="after")
    @classmethod
    def _named_apart(cls, tools: list[ResponseTool]) -> list[ResponseTool]:
        apart(tools)
        return tools

    @field_validator("tool_choice", mode="after")
    @classmethod
    def _is_there(
        cls, choice: str | NamedResponseTool, info: ValidationInfo
    ) -> str | NamedResponseTool:
        there(choice, info.data.get("tools") or ())
        return choice

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
            response_format=self.text.format.as_chat,
            tools=[Tool(type="function", function=_function(tool)) for tool in self.tools],
            tool_choice=self._choice(),
            parallel_tool_calls=self.parallel_tool_calls,
            seed=self.seed,
            speculation=self.speculation,
        )

    def _choice(self) -> ToolChoice:
        if isinstance(self.tool_choice, str):
            return self.tool_choice
        return NamedTool(type="function", function=NamedFunction(name=self.tool_choice.name))

    def _messages(self) -> list[Message]:
        told = [] if self.instructions is None else [self.instructions]
        first = [Message(role="system", content=text) for text in told]
        if isinstance(self.input, str):
            return [*first, Message(role="user", content=self.input)]
        return [*first, *_joined([item.message for item in self.input])]


def _function(tool: ResponseTool) -> Function:
    return Function(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )


def _joined(messages: list[Message]) -> list[Message]:
    """Calls behind words of the assistant, or behind other calls, are of the same message."""
    joined: list[Message] = []
    for one in messages:
        last = joined[-1] if joined else None
        if one.tool_calls and last is not None and last.role == "assistant":
            calls = [*(last.tool_calls or ()), *one.tool_calls]
            joined[-1] = last.model_copy(update={"tool_calls": calls})
        else:
            joined.append(one)
    return joined
