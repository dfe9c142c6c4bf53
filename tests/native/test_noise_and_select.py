"""Choosing a token: the native `select` and `law` against sampling.py, the float64 definition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from builders import Floats, opened, random_checkpoint, tiny_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forerun import sampling
from forerun.backends.native import NativeBackend
from forerun.errors import BackendError
from forerun.noise import Purpose, words
from forerun.options import SamplingParams
from forerun.protocols import Sampler, Selection

VOCABS = [5, 16, 97, 1000, 50257]


@pytest.fixture(scope="module")
def backend() -> Iterator[NativeBackend]:
    # Choosing looks only at the logits it is given: one model serves all vocabularies.
    with opened(random_checkpoint(tiny_spec(), 0)) as made:
        yield made


def selection(
    samplers: Sequence[Sampler],
    positions: Sequence[int] | None = None,
    paths: Sequence[Sequence[int]] | None = None,
) -> Selection:
    """One sampler, position and path a row."""
    paths = paths or [()] * len(samplers)
    return Selection(
        positions=np.array(positions or range(7, 7 + len(samplers)), np.int64),
        sampler_of=np.arange(len(samplers), dtype=np.int32),
        samplers=samplers,
        path_starts=np.cumsum([0, *map(len, paths)]).astype(np.int32),
        path_tokens=np.array([t for path in paths for t in path], np.int32),
    )


def sampler(seed: int = 1, **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), seed)


def random_sampler(rng: np.random.Generator, vocab: int) -> Sampler:
    """Any mixture of parameters, each off about half of the time."""

    def perhaps(value: Any, off: Any) -> Any:
        return value if rng.random() < 0.5 else off

    def some_ids(most: int) -> list[int]:
        num = int(rng.integers(1, min(most, vocab) + 1))
        return rng.choice(vocab, num, replace=False).tolist()

    params = SamplingParams(
        temperature=perhaps(float(rng.uniform(0.2, 1.5)), 0.0 if rng.random() < 0.3 else 1.0),
        top_k=perhaps(int(rng.integers(1, vocab + 3)), 0),
        top_p=perhaps(float(rng.uniform(0.05, 1.0)), 1.0),
        min_p=perhaps(float(rng.uniform(0.0, 0.5)), 0.0),
        repetition_penalty=perhaps(float(rng.uniform(0.5, 2.0)), 1.0),
        presence_penalty=perhaps(float(rng.uniform(-2, 2)), 0.0),
        frequency_penalty=perhaps(float(rng.uniform(-2, 2)), 0.0),
        logit_bias=perhaps({t: float(rng.uniform(-5, 5)) for t in some_ids(4)}, {}),
        allowed_tokens=perhaps(tuple(some_ids(50)), None),
        choice=int(rng.integers(0, 3)),
    )
    outputs = np.array(some_ids(6), np.int32)
    return Sampler(
        params,
        int(rng.integers(0, 2**63)),
        prompt_ids=np.array(some_ids(6), np.int32),
        output_ids=outputs,
        output_counts=rng.integers(1, 5, len(outputs)).astype(np.int32),
    )


# --- every parameter -----------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", VOCABS)
def test_choices_and_laws_are_those_of_the_definition(backend: NativeBackend, vocab: int) -> None:
    # given rows under random parameters, with paths of drafted tokens
    rng = np.random.default_rng(vocab)
    num_rows = 300 if vocab < 1000 else 60 if vocab < 50000 else 15
    logits = (rng.normal(0, 3, (num_rows, vocab))).astype(np.float32)
    samplers = [random_sampler(rng, vocab) for _ in range(num_rows)]
    positions = rng.integers(0, 2**32, num_rows).tolist()
    paths = [rng.integers(0, vocab, rng.integers(0, 5)).tolist() for _ in range(num_rows)]
    asked = selection(samplers, positions, paths)
    # when the backend chooses
    chosen, laws = backend.select(logits, asked), backend.law(logits, asked)
    # then it chooses what the definition chooses, from the same law
    for row, who in enumerate(samplers):
        expected = sampling.select(logits[row], who, positions[row], paths[row])
        assert chosen[row] == expected, who
        law = sampling.law(sampling.process(logits[row], who, paths[row]))
        np.testing.assert_array_equal(laws[row] > 0, law > 1e-44, err_msg=str(who))
        np.testing.assert_allclose(laws[row], law, rtol=1e-6, atol=1e-37)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.sampled_from([-np.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3e38]), min_size=1, max_size=40
    ).filter(lambda values: max(values) > -np.inf),
    st.sampled_from([0.0, 0.7, 1.0, 100.0]),
    st.sampled_from([0, 1, 2, 5]),
    st.sampled_from([1e-320, 0.3, 0.5, 0.75, 1.0]),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_ties_and_infinities(
    backend: NativeBackend,
    values: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    # given few distinct logits, so that every cut falls between equals
    logits = np.array([values], np.float32)
    who = sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    asked = selection([who])
    # then the lowest ids win, and what is -inf is never chosen
    assert backend.select(logits, asked)[0] == sampling.select(logits[0], who, 7)
    expected = sampling.law(sampling.process(logits[0], who))
    np.testing.assert_allclose(backend.law(logits, asked)[0], expected, rtol=1e-6, atol=1e-37)


def refuses(backend: NativeBackend, logits: Floats, asked: Selection) -> bool:
    """Whether there is no token for the only row: -1 or a BackendError, and no law."""
    try:
        chosen = int(backend.select(logits, asked)[0])
    except BackendError:
        chosen = -1
    try:
        backend.law(logits, asked)
    except BackendError:
        return chosen == -1
    return False


ANYWHERE = [0, 1, 15, 16, 63, 64, 96]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"repetition_penalty": 1.3},
        {"temperature": 0.5, "allowed_tokens": (2, 3)},
    ],
)
def test_nan_anywhere_is_no_token(backend: NativeBackend, params: dict[str, Any]) -> None:
    # given sound rows with broken ones between them
    logits = np.random.default_rng(0).normal(0, 1, (len(ANYWHERE) + 1, 97)).astype(np.float32)
    for row, token in enumerate(ANYWHERE):
        logits[row, token] = np.nan
    asked = selection([sampler(**params)] * len(logits))
    # then the broken rows have no token, the sound one has its own, and there is no law
    chosen = backend.select(logits, asked)
    assert chosen[:-1].tolist() == [-1] * len(ANYWHERE)
    assert chosen[-1] == sampling.select(logits[-1], sampler(**params), 7 + len(ANYWHERE))
    with pytest.raises(BackendError):
        backend.law(logits, asked)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "params", [{}, {"allowed_tokens": (2, 3)}, {"top_k": 3}, {"presence_penalty": 1.0}]
)
def test_no_token_left_is_no_token(
    backend: NativeBackend, temperature: float, params: dict[str, Any]
) -> None:
    logits = np.full((1, 8), -np.inf, np.float32)
    if "allowed_tokens" in params:
        logits[0, 5] = 1.0  # which is not allowed
    who = sampler(temperature=temperature, **params)
    with pytest.raises(BackendError):
        sampling.process(logits[0], who)
    assert refuses(backend, logits, selection([who]))


@pytest.mark.parametrize(
    ("temperature", "row"),
    [(0.8, [0.0, np.inf, 5.0, np.inf]), (1e-6, [np.inf, 5.0, np.inf, np.inf])],
)
def test_infinite_scores_share_the_law_among_them(
    backend: NativeBackend, temperature: float, row: list[float]
) -> None:
    # given two or three scores that overflow
    logits = np.array([row] * 40, np.float32)
    samplers = [sampler(seed, temperature=temperature) for seed in range(40)]
    # then the noise chooses among them
    expected = [sampling.select(logits[i], who, 7 + i) for i, who in enumerate(samplers)]
    assert backend.select(logits, selection(samplers)).tolist() == expected
    law = sampling.law(sampling.process(logits[0], samplers[0]))
    np.testing.assert_allclose(backend.law(logits[:1], selection(samplers[:1]))[0], law)


def test_one_infinite_logit_wins_at_temperature_zero(backend: NativeBackend) -> None:
    logits = np.array([[0.0, 3e38, np.inf, np.inf]], np.float32)
    assert backend.select(logits, selection([sampler()])).tolist() == [2]
    assert backend.law(logits, selection([sampler()])).tolist() == [[0, 0, 1, 0]]


def test_logprobs_are_the_raw_log_softmax(backend: NativeBackend) -> None:
    logits = np.random.default_rng(0).normal(0, 5, (6, 1000)).astype(np.float32)
    logits[2, 10] = -np.inf
    rows = np.array([4, 2, 2], np.int32)
    found = backend.logprobs(logits, rows)
    np.testing.assert_allclose(found, sampling.log_softmax(logits[rows]), rtol=2e-7)


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "choice", "position"),
    [(0, 0, 0), (2**53 - 1, 3, 1), (2**40, 0, 2**31 + 5), (2**64 - 1, 2**16 - 1, 2**32 - 1)],
)
@pytest.mark.parametrize("vocab", [5, 64, 67, 1000])
def test_every_noise_word_is_the_references(
    backend: NativeBackend, seed: int, choice: int, position: int, vocab: int
) -> None:
    # given rows in which only three neighbouring tokens may win, all alike
    windows = [(t, t + 1, t + 2) for t in range(vocab - 2)]
    logits = np.full((len(windows), vocab), -np.inf, np.float32)
    for row, window in enumerate(windows):
        logits[row, window] = 0.0
    who = Sampler(SamplingParams(temperature=1.0, choice=choice), seed)
    asked = selection([who] * len(windows), [position] * len(windows))
    # then the one with the greatest word of the reference wins
    noise = words(seed, choice, Purpose.VERDICT, position, vocab)
    expected = [int(window[int(np.argmax(noise[list(window)]))]) for window in windows]
    assert backend.select(logits, asked).tolist() == expected


@pytest.mark.parametrize("vocab", [5, 97, 50257])
def test_level_logits_choose_the_greatest_word(backend: NativeBackend, vocab: int) -> None:
    logits = np.zeros((50, vocab), np.float32)
    samplers = [sampler(seed, temperature=1.0) for seed in range(50)]
    expected = [
        int(np.argmax(words(seed, 0, Purpose.VERDICT, 7 + seed, vocab))) for seed in range(50)
    ]
    assert backend.select(logits, selection(samplers)).tolist() == expected


# --- the fast path -------------------------------------------------------------------------------


def adversarial_rows(rng: np.random.Generator, num_rows: int, vocab: int) -> Floats:
    """Ordinary, level but for the last bit, one peak, two peaks, huge, deep and mixed logits."""
    logits = rng.normal(0, 3, (num_rows, vocab)).astype(np.float32)
    kind = np.arange(num_rows) % 8
    level = np.float32(1) + rng.integers(0, 3, (num_rows, vocab)).astype(np.float32) * np.float32(
        2**-23
    )
    logits[kind == 1] = level[kind == 1]
    logits[kind == 2, 0] = 1e4
    logits[kind == 3] -= 1e4
    logits[np.ix_(kind == 4, [1, vocab - 1])] = 22.0
    logits[kind == 5] *= 1e6
    logits[kind == 6] = np.where(
        rng.random((np.sum(kind == 6), vocab)) < 0.9, -np.inf, logits[kind == 6]
    )
    logits[kind == 6, 2] = 0.0
    logits[kind == 7] = rng.choice(
        np.array([-3e38, 0.0, 1.0, 2.0], np.float32), (np.sum(kind == 7), vocab)
    )
    return logits


@pytest.mark.parametrize("temperature", [1e-3, 0.2, 0.7, 1.0, 1.5, 100.0])
@pytest.mark.parametrize(("num_rows", "vocab"), [(320, 97), (32, 5003)])
def test_the_filter_never_drops_the_winner(
    backend: NativeBackend, temperature: float, num_rows: int, vocab: int
) -> None:
    # given rows made to mislead an upper bound, without edits or truncation
    logits = adversarial_rows(np.random.default_rng(vocab), num_rows, vocab)
    samplers = [sampler(seed, temperature=temperature) for seed in range(num_rows)]
    # when the fast path chooses
    fast = backend.select(logits, selection(samplers)).tolist()
    # then it is the choice of the full computation, natively and by the definition
    everything = [
        sampler(seed, temperature=temperature, top_k=vocab + 1) for seed in range(num_rows)
    ]
    assert fast == backend.select(logits, selection(everything)).tolist()
    assert fast == [sampling.select(logits[i], who, 7 + i) for i, who in enumerate(samplers)]


def test_mixed_parameters_in_one_call_do_not_mix(backend: NativeBackend) -> None:
    # given two samplers that share rows in any order
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (20, 300)).astype(np.float32)
    samplers = [sampler(3, temperature=0.9, top_p=0.8), sampler(4), sampler(5, temperature=1.2)]
    who = rng.integers(0, 3, 20).astype(np.int32)
    asked = Selection(
        np.arange(20, dtype=np.int64), who, samplers, np.zeros(21, np.int32), np.zeros(0, np.int32)
    )
    expected = [sampling.select(logits[i], samplers[who[i]], i) for i in range(20)]
    assert backend.select(logits, asked).tolist() == expected


def test_the_choice_does_not_depend_on_path_or_threads() -> None:
    logits = adversarial_rows(np.random.default_rng(9), 64, 997)
    asked = selection([sampler(seed, temperature=0.8) for seed in range(64)])
    results = []
    for isa in ("portable", "auto"):
        for threads in (1, 2):
            with opened(random_checkpoint(tiny_spec(), 0), isa=isa, threads=threads) as backend:
                results.append(
                    (
                        backend.select(logits, asked).tolist(),
                        backend.law(logits[:8], selection(asked.samplers[:8])).tobytes(),
                    )
                )
    assert results.count(results[0]) == 4
