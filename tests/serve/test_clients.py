"""The client that users have against a server that is real."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from forerun import SamplingParams

from .live import MODEL, Live

PROMPT = "abcabcabcabcabc"
CHAT: list[Any] = [{"role": "user", "content": PROMPT}]


def events(server: Live, path: str, **body: Any) -> list[Any]:
    """Every event of a stream as it was sent, the last one being [DONE]."""
    with server.http() as http, http.stream("POST", path, json={"stream": True} | body) as stream:
        assert stream.status_code == 200, stream.read()
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_given_a_server_then_it_lists_its_one_model_and_refuses_others(
    client: openai.OpenAI,
) -> None:
    assert [one.id for one in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("org/other")
    assert refused.value.code == "model_not_found"


def test_given_a_prompt_then_the_text_is_what_the_engine_alone_gives(
    server: Live, client: openai.OpenAI
) -> None:
    params = SamplingParams(temperature=0.7, seed=5, max_tokens=24)
    alone = server.engine.generate(PROMPT, params)[0]

    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=24, temperature=0.7, seed=5
    )

    assert answer.choices[0].text == alone.text
    assert answer.choices[0].finish_reason == alone.finish_reason
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(alone.token_ids)
    assert answer.usage.prompt_tokens == len(PROMPT)


def test_given_a_stream_then_its_pieces_are_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": CHAT, "max_tokens": 24, "temperature": 0.9, "seed": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)

    chunks = list(client.chat.completions.create(**asked, stream=True))

    text = "".join(one.choices[0].delta.content or "" for one in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_given_a_chat_stream_then_role_text_reason_and_usage_come_in_this_order(
    server: Live,
) -> None:
    options = {"include_usage": True}

    chunks = events(
        server, "/v1/chat/completions", messages=CHAT, max_tokens=4, stream_options=options,
        temperature=0,
    )  # fmt: skip

    *spoken, usage = chunks
    first, *texts, last = [one["choices"][0] for one in spoken]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert all(set(one["delta"]) == {"content"} for one in texts)
    assert all(one["finish_reason"] is None for one in [first, *texts])
    assert last["delta"] == {}
    assert last["finish_reason"] == "length"
    assert all(one["usage"] is None for one in spoken)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 4
    assert len({(one["id"], one["created"], one["model"]) for one in chunks}) == 1


def test_given_no_wish_for_usage_then_no_chunk_speaks_of_it(server: Live) -> None:
    chunks = events(server, "/v1/chat/completions", messages=CHAT, max_tokens=3)

    assert not any("usage" in one for one in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_given_several_choices_in_a_stream_then_each_has_its_index_role_and_reason(
    server: Live,
) -> None:
    chunks = events(server, "/v1/chat/completions", messages=CHAT, max_tokens=3, n=3, seed=1)

    choices = [one["choices"][0] for one in chunks]
    assert {one["index"] for one in choices} == {0, 1, 2}
    for index in range(3):
        own = [one for one in choices if one["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "length"
        assert sum(one["finish_reason"] is not None for one in own) == 1


def test_given_obfuscation_then_chunks_have_it_and_the_text_is_the_same(server: Live) -> None:
    asked = {"messages": CHAT, "max_tokens": 6, "temperature": 0}
    plain = events(server, "/v1/chat/completions", **asked)

    padded = events(
        server, "/v1/chat/completions", **asked, stream_options={"include_obfuscation": True}
    )

    assert all("obfuscation" in one for one in padded)
    assert not any("obfuscation" in one for one in plain)
    assert [one["choices"][0]["delta"] for one in padded] == [
        one["choices"][0]["delta"] for one in plain
    ]


def test_given_a_template_then_its_text_is_the_prompt(server: Live, client: openai.OpenAI) -> None:
    rendered = f"[user] {PROMPT}\n[assistant] "

    answer = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=1)

    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(rendered)
    with server.http() as http:
        plain = http.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 1})
    assert "x-forerun-chat" not in plain.headers
