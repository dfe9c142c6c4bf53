"""Calls of tools, with the client that users have: forced, free, in streams and in responses."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from .live import MODEL, Live
from .structured_parts import ASK, CHAT, MARK, NUM_TOLD, RESPONSES, TOOLS, WEATHER

pytest.importorskip("llguidance", reason="the extra `serve` is not installed")


BROKEN_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "1"}


@pytest.fixture(params=["bare", "marked"])
def calling(request: pytest.FixtureRequest, server: Live, marked: Live) -> Live:
    """Servers of models that write calls alone, and between marks."""
    return marked if request.param == "marked" else server


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])  # fmt: skip  # noqa: E501
@pytest.mark.parametrize("seed", range(4))
def test_given_forced_calls_then_the_client_gets_valid_ones(
    calling: Live, choice: Any, seed: int
) -> None:
    with calling.client() as client:
        answer: Any = client.chat.completions.create(
            model=MODEL, messages=ASK, tools=TOOLS, tool_choice=choice, seed=seed, max_tokens=400,
            parallel_tool_calls=seed % 2 == 0,
        )  # fmt: skip

    made = answer.choices[0]
    calls = made.message.tool_calls
    assert made.message.content is None
    if made.finish_reason == "length":
        calls = calls[:-1]
    else:
        assert made.finish_reason == "tool_calls"
        assert calls
    assert seed % 2 == 0 or len(calls) <= 1
    assert len({one.id for one in calls}) == len(calls)
    for one in calls:
        arguments = json.loads(one.function.arguments)
        assert one.function.name in ("get_weather", "stop_all")
        assert choice == "required" or one.function.name == "get_weather"
        is_weather = one.function.name == "get_weather"
        assert set(arguments) == ({"city", "days"} if is_weather else set())


@pytest.mark.parametrize("seed", range(3))
def test_given_a_stream_of_calls_then_its_parts_are_the_whole(calling: Live, seed: int) -> None:
    asked: dict[str, Any] = {
        "messages": ASK, "tools": TOOLS, "tool_choice": "required", "seed": seed, "max_tokens": 300,
    }  # fmt: skip
    with calling.http() as http:
        whole = http.post(CHAT, json=asked).json()["choices"][0]
        with http.stream("POST", CHAT, json=asked | {"stream": True}) as stream:
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]

    chunks = [json.loads(line)["choices"][0] for line in lines]
    first, *middle, last = chunks
    assert first["delta"] == {"role": "assistant", "content": None}
    assert last["delta"] == {}
    assert last["finish_reason"] == whole["finish_reason"]
    assert all(one["finish_reason"] is None for one in [first, *middle])
    calls: list[dict[str, Any]] = []
    for part in (part for one in middle for part in one["delta"].get("tool_calls", ())):
        if part["index"] == len(calls):
            assert part["id"].startswith("call_")
            assert part["type"] == "function"
            calls.append({"name": part["function"]["name"], "arguments": ""})
        else:
            assert part["index"] == len(calls) - 1
            assert "id" not in part
        calls[-1]["arguments"] += part["function"]["arguments"]
    assert calls == [one["function"] for one in whole["message"]["tool_calls"]]
    assert all(not one["delta"].get("content") for one in middle)


def test_given_the_client_s_own_stream_then_it_builds_the_calls(marked: Live) -> None:
    with marked.client() as client, client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="required", seed=5, max_tokens=300,
        parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        done = [one for one in stream if one.type == "tool_calls.function.arguments.done"]
        final: Any = stream.get_final_completion()

    made = final.choices[0].message.tool_calls
    assert [one.name for one in done] == [one.function.name for one in made]
    assert all(isinstance(json.loads(one.function.arguments), dict) for one in made)


def test_given_auto_then_a_model_that_knows_no_tools_answers_and_says_so(
    http: httpx2.Client,
) -> None:
    body: dict[str, Any] = {"messages": ASK, "max_tokens": 12, "temperature": 0}
    with_tools = http.post(CHAT, json={**body, "tools": TOOLS})
    without = http.post(CHAT, json=body)

    assert with_tools.json()["choices"] == without.json()["choices"]
    assert "told of no tools" in with_tools.headers["x-forerun-tools"]
    assert "x-forerun-tools" not in without.headers
    assert http.get(f"/v1/models/{MODEL}").json()["has_tool_template"] is False


def test_given_auto_then_a_model_that_knows_tools_may_call_or_not(marked: Live) -> None:
    body: dict[str, Any] = {"messages": ASK, "tools": TOOLS, "max_tokens": 200, "seed": 1}
    with marked.http() as http:
        tokens = http.post("/tokenize", json={"prompt": MARK}).json()["tokens"]
        text = http.post(CHAT, json=body | {"temperature": 0}).json()["choices"][0]
        none = http.post(CHAT, json=body | {"tool_choice": "none"}).json()
        made = [
            # a model that wants to call, sooner or later
            http.post(CHAT, json=body | {"seed": seed, "logit_bias": {str(tokens[0]): bias}}).json()
            for seed in range(6)
            for bias in (100.0, 8.0)
        ]

    assert len(tokens) == 1
    assert "tool_calls" not in text["message"]
    assert text["message"]["content"]
    assert none["usage"]["prompt_tokens"] == made[0]["usage"]["prompt_tokens"] - NUM_TOLD
    choices = [one["choices"][0] for one in made]
    assert all(MARK not in (one["message"]["content"] or "") for one in choices)
    assert all(one["message"]["content"] is None for one in choices[::2])
    assert any(one["message"]["content"] for one in choices[1::2] if "tool_calls" in one["message"])
    whole = [one for one in choices if one["finish_reason"] == "tool_calls"]
    assert len(whole) >= 3
    for call in (call for one in whole for call in one["message"]["tool_calls"]):
        is_weather = call["function"]["name"] == "get_weather"
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == ({"city", "days"} if is_weather else set())


def test_given_earlier_calls_then_the_template_tells_the_model_of_them(marked: Live) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 2}'}
    calls = [{"id": "c1", "type": "function", "function": function}]
    messages: list[Any] = [
        *ASK,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]  # fmt: skip
    rendered = (
        "[tools] get_weather stop_all as <tool_call>\n[user] abcabcabcabcabc\n"
        "[assistant] <tool_call>get_weather Oslo</tool_call>\n[tool] rain\n[assistant] "
    )
    with marked.client() as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, tools=TOOLS, max_tokens=1
        )

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(rendered) - 2 * (len(MARK) - 1)


def test_given_calls_in_responses_then_they_are_items_and_may_be_sent_back(marked: Live) -> None:
    tools: list[Any] = [{"type": "function", "name": "get_weather", "parameters": WEATHER}]
    asked: dict[str, Any] = {
        "model": MODEL, "input": "abcabc", "tools": tools, "tool_choice": "required",
        "max_output_tokens": 200, "parallel_tool_calls": False,
    }  # fmt: skip
    with marked.client() as client:
        whole: Any = client.responses.create(**asked, extra_body={"seed": 4})
        events: list[Any] = list(
            client.responses.create(**asked, stream=True, extra_body={"seed": 4})
        )
        call = whole.output[0]
        turns: list[Any] = [
            {"role": "user", "content": "abcabc"},
            call.model_dump(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        ]
        again = client.responses.create(model=MODEL, input=turns, max_output_tokens=4)

    assert [one.type for one in whole.output] == ["function_call"]
    assert set(json.loads(call.arguments)) == {"city", "days"}
    kinds = [one.type for one in events]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-3:] == [
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert set(kinds[3:-3]) == {"response.function_call_arguments.delta"}
    assert "".join(one.delta for one in events[3:-3]) == call.arguments
    assert events[-1].response.output[0].arguments == call.arguments
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert again.status in ("completed", "incomplete")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, "tools"),
        ({"input": [BROKEN_CALL]}, "input"),
    ],
    ids=str,
)  # fmt: skip
def test_given_tools_that_cannot_be_in_responses_then_400_names_the_field(
    http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(RESPONSES, json={"input": "a", "max_output_tokens": 2} | fields)

    assert answer.status_code == 400, answer.text
    assert str(answer.json()["error"]["param"]).startswith(param), answer.text


def test_given_tools_that_a_model_is_not_told_of_then_responses_say_so(http: httpx2.Client) -> None:
    body = {"input": "a", "max_output_tokens": 2, "tools": [{"type": "function", "name": "f"}]}

    answer = http.post(RESPONSES, json=body)

    assert answer.status_code == 200, answer.text
    assert "told of no tools" in answer.headers["x-forerun-tools"]
