"""The order of processors, each against its definition, ties and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.errors import BackendError
from forerun.noise import gumbel, words
from forerun.options import SamplingParams
from forerun.protocols import Sampler
from forerun.sampling import choose, law, log_softmax, process, select


def scores(logits, path=(), output=(), prompt=(), **params):
    ids, counts = np.unique(np.array(output, np.int32), return_counts=True)
    sampler = Sampler(
        SamplingParams(**params), 1, np.array(prompt, np.int32), ids, counts.astype(np.int32)
    )
    return process(np.array(logits, np.float32), sampler, path)


def kept(logits, **params):
    return np.flatnonzero(np.isfinite(scores(logits, **params))).tolist()


def test_given_temperature_0_then_the_lowest_of_the_greatest_is_chosen():
    made = scores([1.0, 3.0, 3.0, 2.0], temperature=0.0)

    assert choose(made, None, 0.0) == 1
    assert law(made).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_given_temperature_0_then_top_k_top_p_and_min_p_do_not_matter():
    made = scores([1.0, 3.0, 2.0], temperature=0.0, top_k=1, top_p=0.1, min_p=0.9)

    assert choose(made, None, 0.0) == 1


def test_given_a_bias_then_it_is_added_before_everything():
    assert choose(scores([1.0, 3.0], logit_bias={0: 2.5}), None, 0.0) == 0


def test_given_allowed_tokens_then_no_other_is_kept():
    assert kept([5.0, 1.0, 2.0], temperature=1.0, allowed_tokens=(1, 2)) == [1, 2]


def test_given_a_repetition_penalty_then_positive_logits_shrink_and_negative_ones_sink_once():
    made = scores(
        [2.0, -2.0, 2.0, 2.0, 2.0],
        path=[2, 2],
        output=[1, 1],
        prompt=[0],
        temperature=1.0,
        repetition_penalty=2.0,
    )

    assert made.tolist() == [1.0, -4.0, 1.0, 2.0, 2.0]


def test_given_presence_and_frequency_then_output_and_path_count_and_the_prompt_does_not():
    made = scores(
        [0.0] * 4,
        path=[1, 3],
        output=[1, 1, 2],
        prompt=[0],
        temperature=1.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )

    assert made.tolist() == [0.0, -1.25, -0.75, -0.75]


def test_given_a_temperature_then_it_divides_what_penalties_left():
    made = scores([2.0, 4.0], prompt=[1], temperature=0.5, repetition_penalty=2.0)

    assert made.tolist() == [4.0, 4.0]


def test_given_ties_at_the_edge_of_top_k_then_lower_ids_stay():
    assert kept([1.0, 2.0, 2.0, 2.0], temperature=1.0, top_k=2) == [1, 2]


def test_given_top_p_then_tokens_stay_while_the_sum_before_them_is_below_it():
    logits = np.log([0.5, 0.25, 0.125, 0.125])

    assert kept(logits, temperature=1.0, top_p=0.49) == [0]
    assert kept(logits, temperature=1.0, top_p=0.6) == [0, 1]
    assert kept(logits, temperature=1.0, top_p=0.8) == [0, 1, 2]


def test_given_top_k_and_top_p_then_top_p_is_of_what_top_k_left():
    logits = np.log([0.4, 0.3, 0.2, 0.1])

    # Of the renormalized 4/7 and 3/7, the first alone reaches one half.
    assert kept(logits, temperature=1.0, top_k=2, top_p=0.5) == [0]
    assert kept(logits, temperature=1.0, top_p=0.5) == [0, 1]


def test_given_min_p_then_tokens_stay_from_that_share_of_the_greatest():
    logits = np.log([0.8, 0.16, 0.04])

    assert kept(logits, temperature=1.0, min_p=0.1) == [0, 1]


def test_given_minus_infinity_then_it_is_never_chosen():
    made = scores([-np.inf, 0.0, -np.inf], temperature=100.0)

    assert law(made).tolist() == [0.0, 1.0, 0.0]


def test_given_plus_infinity_then_it_shares_everything_with_its_equals():
    assert law(scores([np.inf, 0.0, np.inf], temperature=1.0)).tolist() == [0.5, 0.0, 0.5]
    assert choose(scores([0.0, np.inf, np.inf]), None, 0.0) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_given_nan_logits_then_a_backend_error_says_so(temperature):
    with pytest.raises(BackendError, match="NaN"):
        scores([0.0, np.nan, np.inf], temperature=temperature)


def test_given_only_minus_infinity_then_a_backend_error_says_so():
    with pytest.raises(BackendError, match="no token is left"):
        scores([-np.inf, -np.inf], temperature=1.0)


def test_given_noise_then_the_choice_is_the_argmax_of_score_plus_gumbel():
    logits = np.linspace(-1.0, 1.0, 50, dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=0.7, choice=4), seed=11)

    chosen = select(logits, sampler, 23)

    expected = logits.astype(np.float64) / 0.7 + gumbel(words(11, 4, 0, 23, 50))
    assert chosen == int(np.argmax(expected))


def test_given_logits_then_log_softmax_is_of_the_raw_ones():
    values = log_softmax(np.log(np.array([[1.0, 3.0]], np.float32)))

    assert np.allclose(np.exp(values), [[0.25, 0.75]])


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    st.floats(0.05, 5.0),
    st.integers(0, 8),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_given_any_filters_then_the_first_of_the_greatest_survives_and_the_law_sums_to_1(
    logits, temperature, top_k, top_p, min_p
):
    made = scores(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

    assert np.isfinite(made[int(np.argmax(np.array(logits, np.float32)))])
    assert abs(law(made).sum() - 1.0) < 1e-12
    if top_k:
        assert np.count_nonzero(np.isfinite(made)) <= top_k
