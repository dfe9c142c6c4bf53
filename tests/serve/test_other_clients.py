"""The clients that frameworks bring, unchanged: LangChain and LiteLLM with a real server."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import openai
import pytest

from .live import MODEL, Live

# What other packages warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT = "abcabcabcabcabc"
CHAT: list[Any] = [{"role": "user", "content": PROMPT}]
ASKED: dict[str, Any] = {"max_tokens": 24, "temperature": 0.7, "seed": 3}
needs_langchain = pytest.mark.skipif(
    find_spec("langchain_openai") is None, reason="langchain-openai is not installed"
)
needs_litellm = pytest.mark.skipif(find_spec("litellm") is None, reason="litellm is not installed")


@pytest.fixture
def expected(client: openai.OpenAI) -> str:
    """What OpenAI's own client is answered."""
    answer = client.chat.completions.create(model=MODEL, messages=CHAT, **ASKED)
    text = answer.choices[0].message.content
    assert text
    return text


# --- LangChain -----------------------------------------------------------------------------------


@pytest.fixture
def langchain(server: Live) -> dict[str, Any]:
    """What each of its classes is built with."""
    return {"model": MODEL, "base_url": f"{server.address}/v1", "api_key": "none", "max_retries": 0}


@needs_langchain
def test_given_langchain_then_a_chat_is_answered_with_its_usage(
    langchain: dict[str, Any], expected: str
) -> None:
    from langchain_openai import ChatOpenAI

    answer = ChatOpenAI(**langchain, **ASKED).invoke([("user", PROMPT)])

    assert answer.content == expected
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 24
    assert answer.response_metadata["finish_reason"] == "length"


@needs_langchain
def test_given_langchain_then_a_stream_is_the_whole_answer_with_its_usage(
    langchain: dict[str, Any], expected: str
) -> None:
    from langchain_openai import ChatOpenAI

    chunks = list(ChatOpenAI(**langchain, **ASKED, stream_usage=True).stream([("user", PROMPT)]))

    assert len(chunks) > 3
    assert "".join(str(one.content) for one in chunks) == expected
    usages = [one.usage_metadata for one in chunks if one.usage_metadata]
    assert sum(one["output_tokens"] for one in usages) == 24


@needs_langchain
def test_given_langchain_then_a_batch_is_each_as_if_alone(
    langchain: dict[str, Any], expected: str
) -> None:
    from langchain_openai import ChatOpenAI

    answers = ChatOpenAI(**langchain, **ASKED).batch([[("user", PROMPT)]] * 6)

    assert [one.content for one in answers] == [expected] * 6


@needs_langchain
def test_given_langchain_then_logprobs_are_those_of_openai_s_client(
    langchain: dict[str, Any], client: openai.OpenAI
) -> None:
    from langchain_openai import ChatOpenAI

    wish: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
    own = client.chat.completions.create(model=MODEL, messages=CHAT, **ASKED, **wish)

    answer = ChatOpenAI(**langchain, **ASKED, **wish).invoke([("user", PROMPT)])

    assert own.choices[0].logprobs is not None
    assert own.choices[0].logprobs.content is not None
    found = answer.response_metadata["logprobs"]["content"]
    assert found == [one.model_dump() for one in own.choices[0].logprobs.content]


@needs_langchain
def test_given_langchain_s_completions_then_text_and_stream_are_the_same(
    langchain: dict[str, Any], client: openai.OpenAI
) -> None:
    from langchain_openai import OpenAI

    own = client.completions.create(model=MODEL, prompt=PROMPT, **ASKED).choices[0].text
    model = OpenAI(**langchain, **ASKED)

    assert model.invoke(PROMPT) == own
    assert "".join(model.stream(PROMPT)) == own


@needs_langchain
def test_given_langchain_asks_for_embeddings_then_it_hears_that_there_are_none(
    langchain: dict[str, Any],
) -> None:
    from langchain_openai import OpenAIEmbeddings

    with pytest.raises(openai.NotFoundError):
        OpenAIEmbeddings(**langchain, check_embedding_ctx_length=False).embed_query(PROMPT)


# --- LiteLLM -------------------------------------------------------------------------------------


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, told not to fetch its list of prices."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    return litellm


@pytest.fixture
def through(server: Live) -> dict[str, Any]:
    """Where LiteLLM finds the server."""
    return {"api_base": f"{server.address}/v1", "api_key": "none", "num_retries": 0}


@needs_litellm
def test_given_litellm_then_a_chat_and_its_stream_are_answered(
    litellm: Any, through: dict[str, Any], expected: str
) -> None:
    asked = {"model": f"openai/{MODEL}", "messages": CHAT, **ASKED, **through}

    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True))

    assert whole.choices[0].message.content == expected
    assert whole.usage.completion_tokens == 24
    assert whole.choices[0].finish_reason == "length"
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == expected


@needs_litellm
def test_given_litellm_then_own_fields_and_texts_to_continue_come_through(
    litellm: Any, through: dict[str, Any], client: openai.OpenAI
) -> None:
    own = client.completions.create(model=MODEL, prompt=PROMPT, **ASKED).choices[0].text
    asked = {"model": f"text-completion-openai/{MODEL}", "prompt": PROMPT, **ASKED, **through}

    answer = litellm.text_completion(**asked, extra_body={"speculation": "off"})

    assert answer.choices[0].text == own


@needs_litellm
def test_given_litellm_then_refusals_are_its_own_errors(
    litellm: Any, through: dict[str, Any]
) -> None:
    asked = {"model": f"openai/{MODEL}", "messages": CHAT, **through}

    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**asked, temperature=9)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**asked | {"model": "openai/other"})
    with pytest.raises(litellm.BadRequestError, match="no such address"):
        litellm.embedding(model=f"openai/{MODEL}", input=[PROMPT], **through)
