"""Tools and a format in one request: calls, or a text of the format, and never anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .live import MODEL, Live
from .structured_parts import ASK, CHAT, MARK, RESPONSES, TOOLS, WEATHER

pytest.importorskip("llguidance", reason="the extra `serve` is not installed")

FORMAT = {
    "type": "object",
    "properties": {"said": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
    "required": ["said", "ok"],
    "additionalProperties": False,
}
NAMED = {"type": "json_schema", "json_schema": {"name": "said", "schema": FORMAT}}
BODY: dict[str, Any] = {
    "messages": ASK, "tools": TOOLS, "response_format": NAMED, "max_tokens": 300,
}  # fmt: skip


def asked(live: Live, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    with live.http() as http:
        answer = http.post(path, json=(BODY if path == CHAT else {}) | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found["choices"][0] if path == CHAT else found


def liking(live: Live, bias: float) -> dict[str, Any]:
    """A field that makes the model want to call, or not to: the mark may be spelled out too."""
    spellings = [MARK, "<"] if bias < 0 else [MARK]
    with live.http() as http:
        found = [http.post("/tokenize", json={"prompt": one}).json() for one in spellings]
    return {"logit_bias": {str(token): bias for one in found for token in one["tokens"]}}


def check_calls(choice: dict[str, Any]) -> None:
    assert choice["message"]["content"] is None
    for call in choice["message"]["tool_calls"]:
        is_weather = call["function"]["name"] == "get_weather"
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == ({"city", "days"} if is_weather else set())


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])  # fmt: skip  # noqa: E501
def test_given_a_forced_call_then_the_answer_is_that_without_a_format(
    server: Live, marked: Live, choice: Any
) -> None:
    for live in (server, marked):
        fields = {"tool_choice": choice, "parallel_tool_calls": False, "seed": 2}
        both = asked(live, **fields)
        tools_only = asked(live, **fields, response_format=None)

        assert both["finish_reason"] == "tool_calls"
        check_calls(both)
        for one in (both, tools_only):
            one["message"]["tool_calls"][0].pop("id")
        assert both == tools_only


@pytest.mark.parametrize("seed", range(4))
def test_given_auto_then_a_model_that_calls_makes_whole_calls(marked: Live, seed: int) -> None:
    made = asked(marked, seed=seed, parallel_tool_calls=False, **liking(marked, 100.0))

    assert made["finish_reason"] == "tool_calls"
    check_calls(made)


@pytest.mark.parametrize("seed", range(4))
def test_given_auto_then_a_model_that_does_not_call_answers_in_the_format(
    marked: Live, seed: int
) -> None:
    fields = {"seed": seed, "temperature": 1.2, **liking(marked, -100.0)}
    said = asked(marked, **fields)
    plain = asked(marked, **fields, speculation="off")
    without_tools = asked(marked, **fields, tool_choice="none")
    free = asked(marked, **fields, response_format=None)

    assert said["finish_reason"] == "stop"
    assert "tool_calls" not in said["message"]
    assert set(json.loads(said["message"]["content"])) == {"said", "ok"}
    assert plain == said
    assert set(json.loads(without_tools["message"]["content"])) == {"said", "ok"}
    with pytest.raises(ValueError, match="Expecting"):  # the control: it is the format's doing
        json.loads(free["message"]["content"])


def test_given_auto_and_a_model_that_is_told_of_no_tools_then_the_format_binds(
    server: Live,
) -> None:
    said = asked(server, seed=1)

    assert set(json.loads(said["message"]["content"])) == {"said", "ok"}


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_given_a_stream_then_its_parts_are_the_whole(marked: Live, bias: float) -> None:
    fields = {"seed": 3, "parallel_tool_calls": False, **liking(marked, bias)}
    whole = asked(marked, **fields)["message"]
    body = BODY | fields | {"stream": True}
    with marked.http() as http, http.stream("POST", CHAT, json=body) as stream:
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]

    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    parts = [part["function"] for one in deltas for part in one.get("tool_calls", ())]
    assert "".join(one.get("content") or "" for one in deltas) == (whole["content"] or "")
    called = whole.get("tool_calls", [])
    arguments = "".join(one["function"]["arguments"] for one in called)
    assert "".join(one["arguments"] for one in parts) == arguments
    assert bool(called) == (bias > 0)


def test_given_a_text_with_the_mark_inside_then_it_is_text(marked: Live) -> None:
    """A call can begin an answer only: in the middle of a string the mark means nothing."""
    inside = {"const": {"a": f"{MARK}\n{{}}"}}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": inside}}

    said = asked(marked, seed=1, response_format=named, **liking(marked, -100.0))

    assert json.loads(said["message"]["content"]) == inside["const"]
    assert "tool_calls" not in said["message"]


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"guided_choice": ["yes", "no"]}, ("yes", "no")),
        ({"structured_outputs": {"regex": "y(es)?/"}}, ("y/", "yes/")),
        ({"guided_grammar": 'start: "ho" "!"'}, ("ho!",)),
    ],
    ids=str,
)
def test_given_a_peer_s_words_for_a_format_then_they_bind_alike(
    marked: Live, fields: dict[str, Any], texts: tuple[str, ...]
) -> None:
    said = asked(marked, **fields, response_format=None, seed=1, **liking(marked, -100.0))
    made = asked(marked, **fields, response_format=None, seed=1, **liking(marked, 100.0))

    assert said["message"]["content"] in texts
    check_calls(made)


def test_given_a_format_that_may_begin_like_a_call_then_400_says_the_way_out(marked: Live) -> None:
    body = BODY | {"response_format": None, "guided_regex": "(.|\n)*", "max_tokens": 4}
    with marked.http() as http:
        refused = http.post(CHAT, json=body)
        forced = http.post(CHAT, json=body | {"tool_choice": "required"})
        without = http.post(CHAT, json=body | {"tool_choice": "none"})

    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == "guided_regex"
    assert "tool_choice: none" in refused.json()["error"]["message"]
    assert forced.status_code == without.status_code == 200


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_given_responses_then_a_format_and_tools_go_together_too(marked: Live, choice: str) -> None:
    tools = [{"type": "function", "name": "get_weather", "parameters": WEATHER}]
    form = {"type": "json_schema", "name": "said", "schema": FORMAT}
    fields = {"input": "abcabc", "tools": tools, "text": {"format": form}, "seed": 3}

    found = asked(
        marked, RESPONSES, model=MODEL, tool_choice=choice, parallel_tool_calls=False, **fields
    )["output"]

    kinds = [one["type"] for one in found]
    assert kinds in (["message"], ["function_call"])
    assert choice == "auto" or kinds == ["function_call"]
    if kinds == ["message"]:
        assert set(json.loads(found[0]["content"][0]["text"])) == {"said", "ok"}
