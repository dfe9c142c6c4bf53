"""Whatever JSON a client sends: an answer or a refusal in the usual form, the server goes on."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun.serve.body import REFUSED
from forerun.serve.fields import ChatBody, CompletionBody
from forerun.serve.responses_fields import ResponsesBody

from .live import Live
from .test_reliability import until

NUM_BODIES = 60
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.integers(-3, 300),
    st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 2), st.text(max_size=12),
    st.sampled_from(["a", "user", "text", "off", "auto", "abcabc", "message", "input_text"]),
)  # fmt: skip
NAMES = st.one_of(
    st.text(max_size=8), st.sampled_from(["role", "content", "type", "text", "include_usage", "7"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abcab", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/responses": {"input": "abcab", "max_output_tokens": 2},
}
BODIES = {
    "/v1/completions": CompletionBody,
    "/v1/chat/completions": ChatBody,
    "/v1/responses": ResponsesBody,
}
FAMILIAR: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 300),
    "min_p": st.floats(0, 1),
    "n": st.integers(1, 4),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.one_of(st.text(min_size=1, max_size=3), st.lists(st.text(min_size=1), max_size=4)),
    "stream": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(0, 271).map(str), st.floats(-100, 100), max_size=4),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 100),
    "ignore_eos": st.booleans(),
    "echo": st.booleans(),
    "logprobs": st.one_of(st.integers(0, 20), st.booleans()),
    "top_logprobs": st.integers(0, 20),
    "speculation": st.sampled_from(["auto", "off"]),
    "stop_token_ids": st.lists(st.integers(0, 271), max_size=3),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "guided_regex": st.one_of(st.sampled_from(["[ab]{2}", "(", "a*"]), st.text(max_size=6)),
    "guided_choice": st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3),
    "guided_json": st.one_of(VALUES, st.just({"type": "boolean"})),
    "tools": st.just([{"type": "function", "function": {"name": "f"}}]),
    "tool_choice": st.sampled_from(["none", "auto", "required"]),
    "parallel_tool_calls": st.booleans(),
}


def changes_of(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Fields with fitting values, and one or two with anything at all."""
    known = BODIES[path].model_fields
    fitting = {name: values for name, values in FAMILIAR.items() if name in known}
    wild = st.dictionaries(st.sampled_from([*known, *REFUSED, "?"]), VALUES, max_size=2)
    return st.tuples(st.fixed_dictionaries({}, optional=fitting), wild).map(
        lambda both: {**both[0], **both[1]}
    )


@pytest.mark.parametrize("path", GOOD)
def test_given_any_body_then_no_answer_is_a_failure(
    server: Live, http: httpx2.Client, path: str
) -> None:
    statuses: set[int] = set()

    @settings(
        max_examples=NUM_BODIES, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changes=changes_of(path))
    def check(changes: dict[str, Any]) -> None:
        body = {**GOOD[path], **changes}
        if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 20:
            body["max_tokens"] = 20
        answer = http.post(path, json=body)
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 400, 404), (answer.status_code, body)
        if answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        elif body.get("stream"):
            assert '{"error"' not in answer.text, body

    check()

    assert {200, 400} <= statuses
    until(lambda: server.service.load().num_running == 0)
    load = server.service.load()
    assert load.num_free_blocks == load.num_blocks
