"""Structured answers and calls of tools, with the client that users have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel
from tokenizers import Tokenizer

from forerun import Engine

from .conftest import opened
from .live import MODEL, Live, serving

pytest.importorskip("llguidance", reason="the extra `serve` is not installed")

ASK: list[Any] = [{"role": "user", "content": "abcabcabcabcabc"}]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop_all"}},
]
# Calls as Qwen's templates teach them: between marks.
TEMPLATE = (
    "{% if tools %}[tools] {% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    "as <tool_call>\n{% endif %}{% for one in messages %}[{{ one.role }}] {{ one.content }}"
    "{% for call in one.tool_calls or [] %}<tool_call>{{ call.function.name }}"
    " {{ call.function.arguments.city }}</tool_call>{% endfor %}{{ '\n' }}{% endfor %}[assistant] "
)


MARK = "<tool_call>"
NUM_TOLD = len("[tools] get_weather stop_all as \n") + 1  # tokens that tell the model of tools


class Answer(BaseModel):
    color: Literal["red", "green"]
    is_big: bool


@pytest.fixture(scope="module")
def marked(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose model's template knows of tools."""
    directory = tmp_path_factory.mktemp("marked") / "tiny-tools"
    shutil.copytree(chat_model, directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([MARK])  # one token, as in the models that know it
    tokenizer.save(str(directory / "tokenizer.json"))
    engine: Engine
    with opened(directory) as engine, serving(engine) as live:
        yield live


def told(http: httpx2.Client, path: str = CHAT, **body: Any) -> dict[str, Any]:
    base = {"input": "abcabcabc"} if path == RESPONSES else {"messages": ASK, "max_tokens": 120}
    base = {"prompt": "abcabcabc", "max_tokens": 120} if path == COMPLETIONS else base
    answer = http.post(path, json=base | {"seed": 3} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text_of(answer: dict[str, Any]) -> str:
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


# --- schemas and patterns -------------------------------------------------------------------------


def test_given_a_model_of_pydantic_then_the_client_parses_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Answer, max_tokens=80, seed=1
    )

    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Answer)
    assert json.loads(answer.choices[0].message.content or "") == parsed.model_dump()


def test_given_a_model_of_pydantic_then_responses_parse_it_too(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model=MODEL, input="abcabc", text_format=Answer, max_output_tokens=80
    )

    assert isinstance(answer.output_parsed, Answer)
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


NAMED = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER}}
WAYS: list[dict[str, Any]] = [
    {"response_format": NAMED},
    {"structured_outputs": {"json": WEATHER}},
    {"structured_outputs": {"json": json.dumps(WEATHER)}},
    {"guided_json": WEATHER},
    {"json_schema": WEATHER},
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_given_a_schema_in_anybody_s_words_then_the_answer_is_the_same(
    http: httpx2.Client, path: str
) -> None:
    texts = {text_of(told(http, path, **way)) for way in WAYS}

    assert len(texts) == 1
    assert set(json.loads(texts.pop())) == {"city", "days"}


@pytest.mark.parametrize("name", ["structured_outputs", "guided"])
def test_given_a_pattern_then_the_answer_is_of_it(http: httpx2.Client, name: str) -> None:
    asked = {
        "regex": "[a-f]{3}-[0-9]{2}",
        "choice": ["yes", "no"],
        "grammar": 'start: "ho"{1,4} "!"',
    }
    is_vllm = name == "structured_outputs"
    texts = {
        kind: text_of(told(http, **({name: {kind: one}} if is_vllm else {f"guided_{kind}": one})))
        for kind, one in asked.items()
    }

    assert texts["regex"][3] == "-"
    assert len(texts["regex"]) == 6
    assert texts["choice"] in ("yes", "no")
    assert texts["grammar"].replace("ho", "") == "!"


def test_given_json_object_then_the_answer_is_one_or_was_cut(http: httpx2.Client) -> None:
    body = {"response_format": {"type": "json_object"}, "max_tokens": 60, "temperature": 1.3}
    answers = [told(http, **body, seed=seed)["choices"][0] for seed in range(8)]

    assert all(one["message"]["content"].startswith("{") for one in answers)
    assert {one["finish_reason"] for one in answers} <= {"stop", "length"}
    ended = [one for one in answers if one["finish_reason"] == "stop"]
    assert all(isinstance(json.loads(one["message"]["content"]), dict) for one in ended)


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1.2, "logprobs": True}])
def test_given_speculation_off_then_a_structured_answer_is_the_same(
    http: httpx2.Client, fields: dict[str, Any]
) -> None:
    body = {"response_format": NAMED, **fields}
    drafted, plain = told(http, **body), told(http, **body, speculation="off")

    assert drafted["choices"] == plain["choices"]
    assert drafted["timings"]["draft_n"] > 0
    assert plain["timings"]["draft_n"] == 0


def test_given_several_choices_then_each_is_valid_and_a_stream_has_the_same(
    http: httpx2.Client,
) -> None:
    body = {"response_format": NAMED, "n": 3, "temperature": 1.2}
    whole = [one["message"]["content"] for one in told(http, **body)["choices"]]

    asked = {"messages": ASK, "max_tokens": 120, "seed": 3, "stream": True} | body
    texts = ["", "", ""]
    with http.stream("POST", CHAT, json=asked) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                texts[choice["index"]] += choice["delta"].get("content") or ""

    assert texts == whole
    assert all(set(json.loads(one)) == {"city", "days"} for one in texts)


def test_given_keywords_that_cannot_be_enforced_then_only_strict_refuses_them(
    http: httpx2.Client,
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True,
              "items": {"type": "boolean"}, "maxItems": 2}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    loose = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    strict = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}

    refused = http.post(CHAT, json={"messages": ASK, "response_format": strict})

    assert list(json.loads(text_of(told(http, response_format=loose)))) == ["a"]
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"


DEEP: dict[str, Any] = {}
for _ in range(90):
    DEEP = {"anyOf": [DEEP]}
REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": NAMED, "guided_regex": "a"}, "guided_regex"),
    ({"response_format": NAMED, "ignore_eos": True}, "ignore_eos"),
    ({"guided_regex": "a("}, "guided_regex"),
    ({"guided_regex": "a" * 5000}, "guided_regex"),
    ({"guided_json": {"type": "robot"}}, "guided_json"),
    ({"guided_json": DEEP}, "guided_json"),
    ({"guided_json": {"enum": ["x" * 70_000]}}, "guided_json"),
    ({"guided_choice": []}, "guided_choice"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: nobody"}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: " + "(" * 20_000}}, "structured_outputs"),
    ({"tools": TOOLS, "tool_choice": "required", "response_format": NAMED}, "response_format"),
    ({"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
    ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
    ({"tools": TOOLS * 40}, "tools"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
     "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSALS, ids=lambda one: str(one)[:60])
def test_given_what_cannot_be_then_400_names_the_field(
    http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(CHAT, json={"messages": ASK, "max_tokens": 4} | fields)

    assert answer.status_code == 400, answer.text
    assert str(answer.json()["error"]["param"]).startswith(param), answer.text
    assert len(answer.json()["error"]["message"]) < 400


# --- calls of tools -------------------------------------------------------------------------------


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


def test_given_a_stream_helper_then_the_client_builds_calls_itself(marked: Live) -> None:
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


def test_given_a_schema_then_a_stream_of_responses_tells_the_same_text(
    client: openai.OpenAI,
) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "input": "abcabc", "max_output_tokens": 100, "extra_body": {"seed": 2},
        "text": {"format": {"type": "json_schema", "name": "w", "schema": WEATHER, "strict": True}},
    }  # fmt: skip
    whole = client.responses.create(**asked)

    events: list[Any] = list(client.responses.create(**asked, stream=True))

    deltas = [one.delta for one in events if one.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert set(json.loads(whole.output_text)) == {"city", "days"}
