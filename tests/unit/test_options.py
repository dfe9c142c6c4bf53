"""What a caller may ask for: every limit is named when it is passed."""

from __future__ import annotations

import os

import pytest

from forerun.errors import OptionError
from forerun.options import EngineOptions, SamplingParams, Speculation


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3.0),
        ("max_tokens", 0),
        ("choice", 1 << 16),
        ("seed", -1),
        ("seed", 2**64),
        ("logprobs", 21),
    ],
)
def test_given_a_value_out_of_range_then_the_message_names_it_and_its_range(name, value):
    with pytest.raises(OptionError, match=rf"{name} must be .* in [\[(].*found"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logit_bias": {3: 101.0}}, r"logit_bias\[3\]"),
        ({"allowed_tokens": ()}, "allowed_tokens is empty"),
        ({"stop": "END"}, "tuple of strings"),
        ({"stop": ("",)}, "must not be empty"),
    ],
)
def test_given_a_malformed_collection_then_the_message_says_what_to_write(changes, message):
    with pytest.raises(OptionError, match=message):
        SamplingParams(**changes)


def test_given_an_option_error_then_it_is_a_value_error_too():
    with pytest.raises(ValueError, match="top_p"):
        SamplingParams(top_p=2.0)


def test_given_an_empty_name_then_speculation_is_refused():
    with pytest.raises(OptionError, match="drafter"):
        Speculation(drafter="")


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "tpu"},
        {"dtype": "float8"},
        {"threads": 0},
        {"kv_positions": 0},
        {"target_cores": ()},
        {"draft_cores": (1, 1)},
    ],
)
def test_given_an_engine_option_out_of_range_then_it_is_named(changes):
    with pytest.raises(OptionError, match=next(iter(changes))):
        EngineOptions(**changes)


def test_given_threads_then_both_lanes_have_the_first_allowed_cores():
    allowed = tuple(sorted(os.sched_getaffinity(0)))

    options = EngineOptions(threads=1)

    assert options.cores_of("target") == options.cores_of("draft") == allowed[:1]
    assert EngineOptions().cores_of("target") is None
    assert EngineOptions(target_cores=(0,), threads=1).cores_of("target") == (0,)
    with pytest.raises(OptionError, match=f"may use {len(allowed)} cores"):
        EngineOptions(threads=1024).cores_of("draft")
