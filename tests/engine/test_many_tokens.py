"""Volume: hundreds of requests of 128 tokens and more, and prompts of 4k, on and off."""

from __future__ import annotations

import random

import pytest

from engine.conftest import HAS_NATIVE
from forerun import Engine, SamplingParams, Speculation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built"),
]
NUM_REQUESTS = 208
CONTEXT = 8192


@pytest.fixture(scope="module")
def directories(tiny_checkpoint_dir):
    target = tiny_checkpoint_dir("qwen3", 0, max_position_embeddings=CONTEXT)
    drafter = tiny_checkpoint_dir("qwen3", 1, near=(target, 0.02), max_position_embeddings=CONTEXT)
    return target, drafter


@pytest.fixture(params=["lookup", "lm", "lm, chain:16"])
def speculation(request, directories):
    name, _, shape = request.param.partition(", ")
    return Speculation(f"lm:{directories[1]}" if name == "lm" else name, shape or "auto")


def opened(directories, speculation):
    return Engine(
        directories[0], speculate=speculation, backend="native", kv_positions=12 * CONTEXT
    )


def requests():
    rng = random.Random(2025)
    asked = []
    for seed in range(NUM_REQUESTS):
        prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 200))]
        repeats = prompt[: rng.randrange(1, 20)] * rng.randrange(1, 6)
        asked.append(
            (
                prompt + repeats,
                SamplingParams(
                    temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
                    top_p=rng.choice([1.0, 0.9]),
                    top_k=rng.choice([0, 0, 40]),
                    min_p=rng.choice([0.0, 0.0, 0.05]),
                    repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
                    frequency_penalty=rng.choice([0.0, 0.0, 0.3]),
                    max_tokens=128 + rng.randrange(40),
                    ignore_eos=True,
                    seed=seed,
                ),
            )
        )
    return asked


def tokens_of(engine, asked):
    prompts, params = zip(*asked, strict=True)
    return [one.token_ids for one in engine.generate(list(prompts), list(params))]


@pytest.fixture(scope="module")
def plain(directories):
    with opened(directories, Speculation("none")) as engine:
        return [tokens_of(engine, [one])[0] for one in requests()]


def test_given_hundreds_of_requests_then_every_token_is_the_same(directories, speculation, plain):
    with opened(directories, speculation) as engine:
        made = tokens_of(engine, requests())

    assert [place for place, tokens in enumerate(made) if tokens != plain[place]] == []
    assert sum(map(len, plain)) >= 200 * 128


def test_given_prompts_of_4k_then_every_token_is_the_same(directories, speculation):
    rng = random.Random(7)
    asked = [
        (
            [rng.randrange(256) for _ in range(length)],
            SamplingParams(temperature=temperature, max_tokens=128, ignore_eos=True, seed=length),
        )
        for length in (4000, 4096, 4111)
        for temperature in (0.0, 0.7)
    ]
    with opened(directories, Speculation("none")) as engine:
        alone = [tokens_of(engine, [one])[0] for one in asked]

    with opened(directories, speculation) as engine:
        assert tokens_of(engine, asked) == alone
