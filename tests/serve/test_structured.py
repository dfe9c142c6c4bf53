"""Structured answers, with the client that users have."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx2
import openai
import pytest
from pydantic import BaseModel

from .live import MODEL
from .structured_parts import ASK, CHAT, COMPLETIONS, RESPONSES, TOOLS, WEATHER

pytest.importorskip("llguidance", reason="the extra `serve` is not installed")


class Answer(BaseModel):
    color: Literal["red", "green"]
    is_big: bool


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
    ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a("}, "guided_regex"),
    ({"tools": TOOLS, "guided_json": {"type": "robot"}}, "guided_json"),
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


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"response_format": {"type": "json_schema"}}, "json_schema"),
        (CHAT, {"response_format": NAMED | {"type": "text"}}, "json_schema"),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema"),
        (RESPONSES, {"text": {"format": {"type": "json_object", "schema": {}}}}, "schema"),
    ],
    ids=str,
)
def test_given_half_a_format_then_the_other_half_is_named(
    http: httpx2.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    base = {"input": "a"} if path == RESPONSES else {"messages": ASK}

    answer = http.post(path, json=base | fields)

    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert f': {param} belongs to the type "json_schema", and needs it' in message


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
