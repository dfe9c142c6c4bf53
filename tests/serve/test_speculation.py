"""What a request may ask of speculation: the same text another way, or 400 naming the field."""

from __future__ import annotations

import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from forerun import Engine, Speculation
from forerun.errors import OptionError

from .live import MODEL, Live

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BODY = {"prompt": "abcabcabcabcabc", "max_tokens": 40, "temperature": 0.7, "seed": 4}
MESSAGES: Any = [{"role": "user", "content": "abcabcabc"}]


@pytest.fixture(scope="module")
def engine(
    chat_model: Path, tiny_checkpoint_dir: Callable[..., Path], tmp_path_factory: Any
) -> Iterator[Engine]:
    """Of a model with a small one beside it."""
    model = tmp_path_factory.mktemp("beside") / "tiny-chat"
    shutil.copytree(chat_model, model)
    near = tiny_checkpoint_dir(
        "qwen3", 4, max_position_embeddings=40_960, near=(chat_model, 0.02), scale=0.6
    )
    shutil.copytree(near, model / "drafters" / "lm")
    speculation = Speculation("lookup", "chain:4")
    with Engine(model, speculate=speculation, threads=1, kv_positions=40_960) as live:
        yield live


def answer_of(http: httpx2.Client, path: str = COMPLETIONS, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


WAYS: list[Any] = [
    "auto",
    "lm",
    "lm + tree:8",
    "tree:6 + lookup + match",
    "exit:1+chain:3",
    "router(lm,lookup)",
    {"drafter": "lm", "shape": "chain:5"},
    {"shape": "tree:3x2", "rule": "match", "schedule": "sequential"},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_given_a_composition_then_the_text_is_that_of_plain_decoding(
    http: httpx2.Client, way: Any
) -> None:
    plain = answer_of(http, **BODY, logprobs=2, speculation="off")

    drafted = answer_of(http, **BODY, logprobs=2, speculation=way)

    assert drafted["choices"] == plain["choices"]
    assert plain["timings"]["draft_n"] == 0
    assert drafted["timings"]["draft_n"] > 0


DRAFTERS = ("none", "lookup", "lm", "exit:1", "router(lm,lookup)", "nested(lookup,chain:2,match)")
SHAPES = ("auto", "chain:3", "tree:5", "tree:auto", "tree:2x2", "tree:4:top", "tree:4:likeliest")
RULES = ("match", "rejection", "block", "traversal", "kseq")
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.2, "seed": 1, "top_p": 0.7, "logprobs": 2},
    {"temperature": 0.9, "seed": 2, "top_k": 5, "presence_penalty": 1.0},
    {"temperature": 1.0, "seed": 3, "min_p": 0.1, "repetition_penalty": 1.2, "stop": ["ab"]},
    {"temperature": 0.7, "seed": 4, "frequency_penalty": 0.5, "n": 2},
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_given_any_composition_and_sampling_then_it_works_or_400_names_the_field(
    http: httpx2.Client, drafter: str, rule: str
) -> None:
    """What is refused is what `Speculation` refuses, and nothing else."""
    for at, shape in enumerate(SHAPES):
        names = {"drafter": drafter, "shape": shape, "rule": rule}
        body = {**BODY, "max_tokens": 6, **SAMPLING[at % len(SAMPLING)]}
        answer = http.post(COMPLETIONS, json={**body, "speculation": names})
        try:
            Speculation(**names)
        except OptionError:
            assert answer.status_code == 400, names
            assert answer.json()["error"]["param"] == "speculation"
            continue
        assert answer.status_code == 200, answer.text
        if rule == "match":
            plain = answer_of(http, **body, speculation="off")
            assert answer.json()["choices"] == plain["choices"], names


def test_given_a_sampled_rule_then_its_law_is_the_same_and_its_text_repeats(
    http: httpx2.Client,
) -> None:
    texts = [
        answer_of(http, **BODY, speculation="lm + chain:4 + rejection")["choices"][0]["text"]
        for _ in range(3)
    ]

    assert len(set(texts)) == 1


def test_given_a_schema_then_a_composition_and_a_prediction_leave_the_answer_as_it_is(
    http: httpx2.Client,
) -> None:
    pytest.importorskip("llguidance", reason="the extra `serve` is not installed")
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 30]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": schema}}
    asked: dict[str, Any] = {
        "messages": MESSAGES, "max_tokens": 60, "temperature": 0.8, "seed": 2,
        "response_format": form,
    }  # fmt: skip
    plain = answer_of(http, CHAT, **asked, speculation="off")["choices"]
    text = plain[0]["message"]["content"]

    for way in ("auto", "lm + tree:6", "exit:1 + chain:4"):
        for content in (text, "[" + text):
            prediction = {"type": "content", "content": content}
            answer = answer_of(http, CHAT, **asked, speculation=way, prediction=prediction)
            assert answer["choices"] == plain


REFUSALS: list[Any] = [
    "wild",
    "",
    "lm:/etc",
    "lookup:/etc",
    "prediction:/etc/passwd",
    "tree:/etc/tree.json",
    "lm + ahead:4",
    "dspark",
    "exit:99",
    "chain:65",
    "chain:2 + chain:3",
    "router(" * 40,
    "lm + block + tree:4",
    "x" * 5000,
    ["lm"],
    5,
    {"drafter": "lm:/etc"},
    {"shape": 3},
    {"drafter": ""},
    {"model": "lm"},
]


@pytest.mark.parametrize("way", REFUSALS, ids=lambda way: str(way)[:30])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_given_what_cannot_be_then_400_names_the_field_and_tells_no_path(
    http: httpx2.Client, server: Live, way: Any, path: str
) -> None:
    body = {"prompt": "abc"} if path == COMPLETIONS else {"messages": MESSAGES}

    answer = http.post(path, json={**body, "max_tokens": 2, "speculation": way})

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["param"].split(".")[0] == "speculation"
    assert "tiny-chat" not in error["message"]
    assert len(error["message"]) < 600


@pytest.mark.parametrize("streams", [False, True])
def test_given_a_prediction_then_usage_tells_what_became_of_it(
    client: openai.OpenAI, http: httpx2.Client, streams: bool
) -> None:
    letters = http.post("/tokenize", json={"prompt": string.ascii_letters}).json()["tokens"]
    asked: Any = {
        "model": MODEL, "messages": MESSAGES, "max_tokens": 40, "temperature": 0, "seed": 1,
        "logit_bias": {str(token): 100 for token in letters}, "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    text = client.chat.completions.create(**asked).choices[0].message.content
    half = [{"type": "text", "text": text[:12]}, {"type": "text", "text": "#" + text[13:]}]

    usages = []
    for content in (text, half):
        prediction = {"type": "content", "content": content}
        found, usage = told(client, streams, prediction=prediction, **asked)
        assert found == text
        usages.append(usage.completion_tokens_details)

    assert usages[0].accepted_prediction_tokens > 25
    assert usages[0].rejected_prediction_tokens <= 4
    assert usages[1].rejected_prediction_tokens > 0
    assert usages[1].accepted_prediction_tokens > 10


def told(client: openai.OpenAI, streams: bool, **asked: Any) -> tuple[str, Any]:
    """An answer's text and usage, as a stream or whole."""
    if not streams:
        answer: Any = client.chat.completions.create(**asked)
        return answer.choices[0].message.content, answer.usage
    chunks: Any = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in chunks:
        text += "".join(one.delta.content or "" for one in chunk.choices)
        usage = chunk.usage or usage
    return text, usage


@pytest.mark.parametrize(
    "prediction",
    ["text", {"type": "other", "content": "x"}, {"type": "content"},
     {"type": "content", "content": [{"type": "image", "text": "x"}]}],
    ids=str,
)  # fmt: skip
def test_given_a_prediction_that_is_none_then_400_names_it(
    http: httpx2.Client, prediction: Any
) -> None:
    answer = http.post(CHAT, json={"messages": MESSAGES, "prediction": prediction})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("prediction")


def test_given_a_prediction_beside_a_rule_that_cannot_judge_it_then_400_names_it(
    http: httpx2.Client,
) -> None:
    prediction = {"type": "content", "content": "abc"}
    answer = http.post(
        COMPLETIONS, json={**BODY, "prediction": prediction, "speculation": "lm + chain:3 + kseq"}
    )

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prediction"


def test_given_an_empty_prediction_then_nothing_is_proposed_of_it(http: httpx2.Client) -> None:
    answer = answer_of(http, **BODY, prediction={"type": "content", "content": ""})

    assert answer["usage"]["completion_tokens_details"] == {
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }


def test_given_a_trace_then_every_round_says_who_drafted(http: httpx2.Client) -> None:
    plain = answer_of(http, **BODY, ignore_eos=True)["choices"][0]["text"]
    prediction = {"type": "content", "content": plain}
    asked = {**BODY, "ignore_eos": True, "forerun": {"trace": True}}

    names = {
        name: {one["drafter"] for one in answer_of(http, **asked, **more)["forerun"]["rounds"][0]}
        for name, more in {
            "lm": {"speculation": "lm + chain:3"},
            "prediction": {"prediction": prediction},
            "off": {"speculation": "off", "prediction": prediction},
        }.items()
    }

    assert names["lm"] - {""} == {"lm"}
    assert "prediction" in names["prediction"]
    assert names["off"] == {""}


def test_given_compositions_then_metrics_count_those_that_are_held(http: httpx2.Client) -> None:
    answer_of(http, **BODY, speculation="chain:2")
    lines = http.get("/metrics").text.splitlines()
    held = [line for line in lines if line.startswith("forerun:compositions{")]

    assert len(held) == 1
    assert 1 <= float(held[0].split()[-1]) <= 8


ECHO = {"prompt": "hello, world: grüße", "temperature": 0, "logprobs": 2, "ignore_eos": True}


def test_given_echo_and_logprobs_then_the_prompt_s_come_first_and_the_first_has_none(
    http: httpx2.Client,
) -> None:
    alone = answer_of(http, **ECHO, max_tokens=8)["choices"][0]
    choice = answer_of(http, **ECHO, max_tokens=8, echo=True)["choices"][0]
    rows, num = choice["logprobs"], len(choice["logprobs"]["tokens"]) - 8

    assert choice["text"] == ECHO["prompt"] + alone["text"]
    assert rows["token_logprobs"][0] is None
    assert rows["top_logprobs"][0] is None
    assert all(value <= 0 for value in rows["token_logprobs"][1:])
    assert rows["token_logprobs"][num:] == alone["logprobs"]["token_logprobs"]
    assert rows["text_offset"][0] == 0
    assert rows["text_offset"][num] == len(str(ECHO["prompt"]))
    assert [at + len(str(ECHO["prompt"])) for at in alone["logprobs"]["text_offset"]] == (
        rows["text_offset"][num:]
    )


def test_given_a_cut_prompt_then_its_scores_are_those_of_the_answer(http: httpx2.Client) -> None:
    """What was generated, sent as a prompt, is scored as it was when it was chosen."""
    ids = http.post("/tokenize", json={"prompt": "abcabc"}).json()["tokens"]
    body = {"temperature": 0, "logprobs": 1, "ignore_eos": True}
    first = answer_of(http, **body, prompt=ids, max_tokens=6, logit_bias={str(ids[0]): 100})
    whole = answer_of(http, **body, prompt=ids + ids[:1] * 6, max_tokens=0, echo=True)

    scores = whole["choices"][0]["logprobs"]["token_logprobs"]
    assert scores[-6:] == first["choices"][0]["logprobs"]["token_logprobs"]


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_given_a_stream_of_an_echo_then_it_has_the_scores_of_the_whole(
    client: openai.OpenAI, http: httpx2.Client, max_tokens: int
) -> None:
    whole = answer_of(http, **ECHO, max_tokens=max_tokens, echo=True)
    body: Any = {key: value for key, value in ECHO.items() if key != "ignore_eos"}
    chunks: Any = client.completions.create(
        model=MODEL, **body, max_tokens=max_tokens, echo=True, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    choices = [one for chunk in chunks for one in chunk.choices]

    joined: dict[str, list[Any]] = {name: [] for name in whole["choices"][0]["logprobs"]}
    for one in choices:
        for name in joined if one.logprobs is not None else ():
            joined[name] += getattr(one.logprobs, name)
    assert "".join(one.text for one in choices) == whole["choices"][0]["text"]
    assert joined == whole["choices"][0]["logprobs"]
    assert whole["usage"]["completion_tokens"] == max_tokens
    assert choices[-1].finish_reason == whole["choices"][0]["finish_reason"] == "length"


def test_given_nothing_to_generate_then_it_is_an_echo_or_400(http: httpx2.Client) -> None:
    silent = answer_of(http, prompt="abc", max_tokens=0, echo=True, n=2)
    refused = http.post(COMPLETIONS, json={"prompt": "abc", "max_tokens": 0})

    assert [one["text"] for one in silent["choices"]] == ["abc", "abc"]
    assert silent["usage"]["completion_tokens"] == 0
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "max_tokens"
