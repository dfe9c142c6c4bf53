"""LangChain's tools and structured answers, unchanged, with a real server."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from .live import MODEL, Live
from .structured_parts import MARK

pytest.importorskip("llguidance", reason="the extra `serve` is not installed")

# What other packages warn of is theirs.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        find_spec("langchain_openai") is None, reason="langchain-openai is not installed"
    ),
]
ASK: Any = [("user", "abcabcabcabcabc")]


class Closed(BaseModel):
    """Fields and no others, or a random model would go on inventing some."""

    model_config = ConfigDict(extra="forbid")


class Weather(Closed):
    """The weather of some days."""

    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=9)


class StopAll(Closed):
    """Stop everything."""


class Answer(Closed):
    """What is said."""

    color: Literal["red", "green"]
    is_big: bool


def model_of(live: Live, **fields: Any) -> Any:
    """LangChain's model of a server."""
    from langchain_openai import ChatOpenAI

    where = {"model": MODEL, "base_url": f"{live.address}/v1", "api_key": "none", "max_retries": 0}
    return ChatOpenAI(**(where | {"max_tokens": 300, "seed": 3} | fields))


def liking(live: Live, bias: float) -> dict[str, float]:
    """Biases that make the model want to call, or not to: the mark may be spelled out too."""
    spellings = [MARK, "<"] if bias < 0 else [MARK]
    with live.http() as http:
        found = [http.post("/tokenize", json={"prompt": one}).json() for one in spellings]
    return {str(token): bias for one in found for token in one["tokens"]}


@pytest.fixture(params=["bare", "marked"])
def live(request: pytest.FixtureRequest, server: Live, marked: Live) -> Live:
    """Servers of models that write calls alone, and between marks."""
    return marked if request.param == "marked" else server


# --- bind_tools -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_given_tools_of_which_one_must_be_called_then_its_arguments_are_an_object_of_it(
    live: Live, seed: int
) -> None:
    one = model_of(live, seed=seed).bind_tools([Weather, StopAll], tool_choice="Weather")

    answer = one.invoke(ASK)

    assert answer.content == ""
    assert answer.invalid_tool_calls == []
    (call,) = answer.tool_calls
    assert call["name"] == "Weather"
    Weather.model_validate(call["args"])


def test_given_that_some_tool_must_be_called_then_a_stream_adds_up_to_the_whole(live: Live) -> None:
    bound = model_of(live, seed=5).bind_tools(
        [Weather, StopAll], tool_choice="any", parallel_tool_calls=False
    )

    whole, chunks = bound.invoke(ASK), list(bound.stream(ASK))

    added = chunks[0]
    for one in chunks[1:]:
        added += one
    calls = [{**one, "id": None} for one in whole.tool_calls]
    assert len(calls) == 1
    assert [{**one, "id": None} for one in added.tool_calls] == calls
    assert added.invalid_tool_calls == []
    kinds = {"Weather": Weather, "StopAll": StopAll}
    kinds[calls[0]["name"]].model_validate(calls[0]["args"])


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_given_tools_that_may_be_called_then_the_model_calls_or_talks(
    marked: Live, bias: float
) -> None:
    fields = {"logit_bias": liking(marked, bias), "max_tokens": 200}
    bound = model_of(marked, **fields).bind_tools([Weather], parallel_tool_calls=False)

    answer = bound.invoke(ASK)

    assert bool(answer.tool_calls) == (bias > 0)
    assert bool(answer.content) == (bias < 0)
    for call in answer.tool_calls:
        Weather.model_validate(call["args"])


def test_given_tools_and_a_format_then_the_model_calls_or_answers_in_it(marked: Live) -> None:
    """What a program that calls until it can answer asks for in every turn."""

    def asked(bias: float, **changes: Any) -> Any:
        fields = {"parallel_tool_calls": False, "response_format": Answer} | changes
        one = model_of(marked, logit_bias=liking(marked, bias))
        return one.bind_tools([Weather], strict=True, **fields).invoke(ASK)

    calls, says, talks = asked(100.0), asked(-100.0), asked(-100.0, response_format=None)

    Weather.model_validate(calls.tool_calls[0]["args"])
    assert calls.content == ""
    assert says.tool_calls == []
    assert says.additional_kwargs["parsed"] == Answer.model_validate_json(says.content)
    with pytest.raises(ValueError, match="Answer"):  # the control: it is the format's doing
        Answer.model_validate_json(talks.content)


def test_given_a_call_and_what_came_of_it_then_the_conversation_goes_on(marked: Live) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    bound = model_of(marked).bind_tools([Weather], tool_choice="Weather")
    called = bound.invoke(ASK)
    result = ToolMessage("rain", tool_call_id=called.tool_calls[0]["id"])

    answer = model_of(marked, max_tokens=8).invoke([HumanMessage("abcabc"), called, result])

    assert answer.content
    assert answer.usage_metadata["output_tokens"] == 8


# --- with_structured_output -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("seed", range(2))
def test_given_a_model_of_pydantic_then_the_answer_is_one(
    live: Live, method: str, seed: int
) -> None:
    one = model_of(live, seed=seed, temperature=1.2).with_structured_output(Answer, method=method)

    assert isinstance(one.invoke(ASK), Answer)


def test_given_a_schema_and_the_raw_answer_then_both_are_told_and_a_stream_ends_with_it(
    live: Live,
) -> None:
    schema = Weather.model_json_schema()
    one = model_of(live).with_structured_output(
        schema, method="json_schema", strict=False, include_raw=True
    )

    found = one.invoke(ASK)
    last = list(model_of(live).with_structured_output(Weather).stream(ASK))[-1]

    assert found["parsing_error"] is None
    assert found["parsed"] == json.loads(found["raw"].content)
    assert last == Weather.model_validate(found["parsed"])


def test_given_json_mode_then_the_answer_is_an_object(live: Live) -> None:
    with live.http() as http:
        (brace,) = http.post("/tokenize", json={"prompt": "}"}).json()["tokens"]
    soon = {str(brace): 100.0}  # a model that ends what it begins

    one = model_of(live, logit_bias=soon).with_structured_output(None, method="json_mode")

    assert one.invoke(ASK) == {}
    assert model_of(live, logit_bias=soon, max_tokens=4).invoke(ASK).content == "}}}}"


def test_given_no_format_then_the_parser_finds_none(server: Live) -> None:
    """The control: what is parsed above is the server's doing."""
    text = model_of(server, max_tokens=60).invoke(ASK).content

    with pytest.raises(ValueError, match="Answer"):
        Answer.model_validate_json(text)


def test_given_a_schema_that_cannot_be_enforced_then_the_client_hears_400(server: Live) -> None:
    schema = {
        "title": "Bag", "type": "object", "additionalProperties": False, "required": ["a"],
        "properties": {"a": {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}},
    }  # fmt: skip
    one = model_of(server).with_structured_output(schema, method="json_schema", strict=True)

    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        one.invoke(ASK)
