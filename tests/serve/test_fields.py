"""Every field does what it says, or is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from forerun import SamplingParams
from forerun.serve.body import REFUSED

from .live import MODEL, Live

PROMPT = "abcabcabcabcabc"
MESSAGES = [{"role": "user", "content": PROMPT}]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def text_of(http: httpx2.Client, **body: Any) -> str:
    answer = http.post(COMPLETIONS, json={"prompt": PROMPT, "max_tokens": 16} | body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.3, "seed": 3},
    {"temperature": 1.0, "seed": 3, "top_p": 0.5},
    {"temperature": 1.0, "seed": 3, "top_k": 2},
    {"temperature": 1.0, "seed": 3, "min_p": 0.4},
    {"temperature": 0.0, "presence_penalty": 1.5},
    {"temperature": 0.0, "frequency_penalty": 1.5},
    {"temperature": 0.0, "repetition_penalty": 1.8},
    {"temperature": 0.0, "ignore_eos": True},
]


@pytest.mark.parametrize("fields", SAMPLING, ids=str)
def test_given_sampling_fields_then_the_text_is_the_engine_s_own_for_them(
    server: Live, http: httpx2.Client, fields: dict[str, Any]
) -> None:
    alone = server.engine.generate(PROMPT, SamplingParams(max_tokens=16, **fields))[0]

    assert text_of(http, **fields) == alone.text


def test_given_every_sampling_field_then_it_can_change_the_text(http: httpx2.Client) -> None:
    """The control of the test above: fields that were dropped on the way would be found."""
    texts = {json.dumps(fields): text_of(http, **fields) for fields in SAMPLING}

    assert len(set(texts.values())) >= 6, texts


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_given_speculation_off_then_text_and_logprobs_are_the_same_and_nothing_is_drafted(
    client: openai.OpenAI, temperature: float
) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "prompt": PROMPT, "max_tokens": 40, "temperature": temperature, "seed": 4,
        "logprobs": 3,
    }  # fmt: skip
    drafted = client.completions.create(**asked)
    plain = client.completions.create(**asked, extra_body={"speculation": "off"})

    assert plain.choices == drafted.choices
    assert figures(plain)["num_draft_tokens"] == 0
    assert figures(drafted)["num_draft_tokens"] > 0


def figures(answer: Any) -> Any:
    return answer.metrics["speculative_decoding"]


def test_given_drafts_then_vllm_s_and_llama_cpp_s_figures_agree(client: openai.OpenAI) -> None:
    answer: Any = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=40, temperature=0, extra_body={"ignore_eos": True}
    )

    assert answer.timings["draft_n"] == figures(answer)["num_draft_tokens"]
    assert answer.timings["draft_n_accepted"] == figures(answer)["num_accepted_draft_tokens"]
    assert answer.timings["predicted_n"] == answer.usage.completion_tokens == 40
    assert 0 < figures(answer)["draft_acceptance_rate"] <= 1


@pytest.mark.parametrize("extra", [{}, {"stop": ["b"]}, {"speculation": "off"}], ids=str)
def test_given_drafts_then_the_histogram_of_what_rounds_kept_has_every_round(
    http: httpx2.Client, extra: Any
) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "ignore_eos": True}

    answer = http.post(COMPLETIONS, json={**asked, "forerun": {"trace": True}, **extra}).json()

    told = answer["metrics"]["speculative_decoding"]
    [rounds] = answer["forerun"]["rounds"]
    drafted = [len(one["tokens"]) - 1 for one in rounds]
    kept = [[x["origin"] for x in one["emitted"]].count("draft") for one in rounds]
    histogram = told["acceptance_histogram"]
    assert told["num_spec_tokens"] == max(drafted) == len(histogram) - 1
    assert histogram == [kept.count(at) for at in range(len(histogram))]
    assert sum(histogram) == told["num_spec_steps"]
    assert sum(at * num for at, num in enumerate(histogram)) == told["num_accepted_draft_tokens"]


@pytest.mark.parametrize("as_list", [False, True])
def test_given_a_stop_string_then_the_text_ends_before_it(
    http: httpx2.Client, as_list: bool
) -> None:
    whole = text_of(http, temperature=0, max_tokens=30, ignore_eos=True)
    stop = whole[9:11]

    cut = text_of(
        http,
        temperature=0,
        max_tokens=30,
        ignore_eos=True,
        stop=[stop, "\0never"] if as_list else stop,
    )

    assert cut == whole[: whole.index(stop)]


def test_given_a_bias_then_that_token_is_chosen(http: httpx2.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "z"}).json()

    assert text_of(http, logit_bias={str(answer["tokens"][0]): 100}, max_tokens=5) == "zzzzz"


def test_given_a_stop_token_then_it_ends_the_text(http: httpx2.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": "z"}).json()["tokens"]
    body = {"prompt": PROMPT, "logit_bias": {str(tokens[0]): 100}, "stop_token_ids": tokens}

    answer = http.post(COMPLETIONS, json=body).json()

    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 1


def test_given_several_prompts_and_choices_then_each_is_as_if_alone(http: httpx2.Client) -> None:
    prompts = [PROMPT, [1, 2, 3, 4]]
    fields = {"temperature": 0.9, "seed": 1, "max_tokens": 6, "n": 2}

    several = http.post(COMPLETIONS, json={"prompt": [PROMPT, "xyxy"], **fields}).json()
    alone = [
        http.post(COMPLETIONS, json={"prompt": one, **fields}).json()["choices"]
        for one in (PROMPT, "xyxy")
    ]

    assert [one["text"] for one in several["choices"]] == [
        one["text"] for choices in alone for one in choices
    ]
    assert several["choices"][0]["text"] != several["choices"][1]["text"]
    assert several["metrics"] is None
    assert http.post(COMPLETIONS, json={"prompt": prompts}).status_code == 400  # not of one kind


def test_given_token_ids_then_they_are_the_prompt(http: httpx2.Client) -> None:
    tokens = http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]

    assert text_of(http, prompt=tokens, temperature=0) == text_of(http, temperature=0)
    assert http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": PROMPT}


def test_given_echo_then_the_prompt_comes_first(http: httpx2.Client) -> None:
    plain = text_of(http, temperature=0)

    assert text_of(http, temperature=0, echo=True) == PROMPT + plain


def test_given_logprobs_of_a_completion_then_offsets_lead_to_tokens(http: httpx2.Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 2, "ignore_eos": True}

    choice = http.post(COMPLETIONS, json=body).json()["choices"][0]
    rows = choice["logprobs"]

    assert len(rows["tokens"]) == len(rows["token_logprobs"]) == len(rows["text_offset"]) == 12
    assert all(value <= 0 for value in rows["token_logprobs"])
    assert all(1 <= len(top) <= 2 for top in rows["top_logprobs"])
    assert rows["text_offset"] == sorted(rows["text_offset"])


def test_given_logprobs_of_a_chat_then_a_stream_has_the_same(http: httpx2.Client) -> None:
    body: dict[str, Any] = {
        "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "ignore_eos": True,
        "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    whole = http.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    with http.stream("POST", CHAT, json={**body, "stream": True}) as stream:
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]

    parts = [json.loads(line)["choices"][0] for line in lines]
    assert [row for one in parts if one["logprobs"] for row in one["logprobs"]["content"]] == whole
    assert len(whole) == 12
    assert all(row["top_logprobs"][0]["logprob"] >= row["logprob"] for row in whole)
    assert all(len(row["top_logprobs"]) == 3 for row in whole)
    assert parts[-1]["logprobs"] is None


def test_given_parts_and_a_developer_then_they_are_text_and_a_system(http: httpx2.Client) -> None:
    plain = [{"role": "system", "content": "Be kind."}, *MESSAGES]
    parts = [{"type": "text", "text": PROMPT[:5]}, {"type": "text", "text": PROMPT[5:]}]
    modern = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]

    answers = [
        http.post(CHAT, json={"messages": one, "max_tokens": 8, "temperature": 0}).json()
        for one in (plain, modern)
    ]

    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": 1e-9}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 10_000}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": True}, "seed"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"stop_token_ids": [999_999]}, "stop_token_ids"),
    ({"speculation": "wild"}, "speculation"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"temprature": 1}, "temprature"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=str)
def test_given_a_value_outside_its_range_then_400_names_the_field(
    http: httpx2.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES} | fields)

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.split(".")[0] in error["message"] or "tokens" in error["message"]


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_given_a_field_that_is_not_built_then_400_names_it_unless_it_asks_for_nothing(
    http: httpx2.Client, field: str
) -> None:
    for path, base in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": PROMPT})):
        body: dict[str, Any] = {**base, "max_tokens": 1}

        refused = http.post(path, json={**body, field: {"real": "wish"}})

        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == field
        assert refused.json()["error"]["code"] == "unsupported_parameter"
        for harmless in (None, *REFUSED[field][1]):
            assert http.post(path, json={**body, field: harmless}).status_code == 200


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "messages[0].tool_calls[0]"),
    ],
)
def test_given_messages_that_are_none_then_400_says_which(
    http: httpx2.Client, messages: list[Any], param: str
) -> None:
    answer = http.post(CHAT, json={"messages": messages})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_given_fields_that_change_nothing_then_they_are_taken(http: httpx2.Client) -> None:
    fields = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        "safety_identifier": "s", "prompt_cache_key": "k", "seed": None, "stop": None,
    }  # fmt: skip

    assert http.post(CHAT, json={"messages": MESSAGES, "max_tokens": 1, **fields}).is_success
