"""`/v1/responses` with the client that users have: the same answer as chat, in the newer form."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from .live import MODEL

PROMPT = "abcabcabcabcabc"
ASKED: dict[str, Any] = {
    "model": MODEL, "input": PROMPT, "max_output_tokens": 16, "temperature": 0.8,
    "extra_body": {"seed": 6},
}  # fmt: skip


def test_given_a_text_then_the_answer_is_that_of_chat(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": PROMPT}], max_tokens=16,
        temperature=0.8, seed=6,
    )  # fmt: skip

    answer = client.responses.create(**ASKED)

    assert answer.output_text == chat.choices[0].message.content
    assert (
        answer.status
        == {"length": "incomplete", "stop": "completed"}[str(chat.choices[0].finish_reason)]
    )
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_given_a_stream_then_its_events_build_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASKED)

    events: list[Any] = list(client.responses.create(**ASKED, stream=True))

    kinds = [one.type for one in events]
    head, tail = kinds[:4], kinds[-4:]
    assert head == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert tail == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        f"response.{whole.status}",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(one.delta for one in events[4:-4]) == whole.output_text
    assert events[-1].response.output_text == whole.output_text
    assert [one.sequence_number for one in events] == list(range(len(events)))


def test_given_instructions_and_turns_then_they_are_messages_of_chat(
    client: openai.OpenAI,
) -> None:
    first = client.responses.create(**ASKED)
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": PROMPT}]},
        *[one.model_dump() for one in first.output],
        {"role": "user", "content": "x"},
    ]
    messages: list[Any] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "x"},
    ]

    answer = client.responses.create(
        model=MODEL, instructions="Be kind.", input=turns, max_output_tokens=8, temperature=0
    )
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=8, temperature=0
    )

    assert answer.output_text == chat.choices[0].message.content


def test_given_a_wish_for_logprobs_then_tokens_have_them(client: openai.OpenAI) -> None:
    answer: Any = client.responses.create(
        **ASKED, include=["message.output_text.logprobs"], top_logprobs=2
    )

    rows = answer.output[0].content[0].logprobs
    assert len(rows) == answer.usage.output_tokens
    assert all(len(row.top_logprobs) == 2 and row.logprob <= 0 for row in rows)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_schema"}}}, "text"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"wish": 1}, "wish"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
    ],
    ids=str,
)
def test_given_what_a_stateless_server_has_not_then_400_names_it(
    http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/responses", json={"input": "a"} | fields)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


def test_given_an_explicit_default_then_it_is_taken(http: httpx2.Client) -> None:
    harmless = {
        "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "store": True,
        "truncation": "disabled", "text": {"format": {"type": "text"}}, "background": False,
        "previous_response_id": None, "reasoning": {}, "metadata": {"a": "b"},
    }  # fmt: skip

    answer = http.post("/v1/responses", json={"input": "a", "max_output_tokens": 1, **harmless})

    assert answer.status_code == 200, answer.text
    assert answer.json()["store"] is False
