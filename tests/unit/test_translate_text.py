"""One text in two vocabularies: that it is the same text, and what telling it costs."""

from __future__ import annotations

import random

import pytest
from translate_cases import CODE, byte_tokenizer, other_tokenizer, wrapped

from forerun.drafters import translate_text
from forerun.drafters.translate_text import (
    LEAST_TAIL,
    LONGEST_TAIL,
    Retold,
    Spelling,
    continuation,
    num_whole,
)
from forerun.models.resolve import EMBEDDED_NAME, resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def target():
    family = resolve_model(EMBEDDED_NAME)
    return Spelling(load_tokenizer(family, read_spec(family)))


@pytest.fixture(scope="module")
def other():
    return Spelling(other_tokenizer())


def streamed(retold, tokens, seed=0):
    """The tokens in random portions, as rounds bring them."""
    rng = random.Random(seed)
    at = 0
    while at < len(tokens):
        size = rng.randint(1, 5)
        yield retold.extend(tokens[at : at + size])
        at += size


# --- the text ------------------------------------------------------------------------------------


def test_given_text_in_portions_then_it_is_told_as_the_whole_would_be(target, other):
    retold = Retold(target, other)

    list(streamed(retold, target.encode(CODE)))

    assert other.join(retold.ids).decode() == CODE
    assert retold.ids == other.encode(CODE)


def test_control_given_no_known_text_before_each_portion_then_it_is_told_otherwise(target, other):
    tokens = target.encode(CODE)

    apart = [
        told
        for token in tokens
        for told in other.encode(target.join([token]).decode(errors="replace"))
    ]

    assert apart != other.encode(CODE)


def test_given_portions_then_what_stays_and_what_goes_is_said_truly(target, other):
    retold, line = Retold(target, other), []

    for num_same, removed in streamed(retold, target.encode(CODE)):
        assert line[num_same:] == removed
        assert line[:num_same] == retold.ids[:num_same]
        line = list(retold.ids)


def test_given_single_bytes_then_half_characters_are_held_back(other):
    source = Spelling(wrapped(byte_tokenizer()))
    ids = {source[i]: i for i in range(256)}
    retold = Retold(source, other)

    for byte, held in zip("né並".encode(), (0, 1, 0, 1, 2, 0), strict=True):
        retold.extend([ids[bytes([byte])]])
        assert len(retold.held) == held
        assert other.join(retold.half()) == retold.held

    assert other.join(retold.ids).decode() == "né並"


def test_given_bytes_that_are_no_text_then_the_rest_is_still_told(other):
    source = Spelling(wrapped(byte_tokenizer()))
    ids = {source[i]: i for i in range(256)}
    retold = Retold(source, other)

    for byte in b"good \xff\xfe bad \xe4 end":
        retold.extend([ids[bytes([byte])]])

    assert other.join(retold.ids).decode() == "good �� bad � end"


def test_given_special_tokens_then_the_drafter_has_its_own_or_none(target, other):
    end = target.tokenizer.eos_ids[0]
    retold = Retold(target, other)

    retold.extend([*target.encode("return x"), end, *target.encode("def f")])

    assert retold.ids == [*other.encode("return x"), 0, *other.encode("def f")]


def test_given_a_long_text_then_a_round_encodes_its_end_only(target, other):
    retold = Retold(target, other)
    retold.extend(target.encode(CODE * 60))
    assert retold.num_encoded_bytes == len((CODE * 60).encode())

    costs = []
    for token in target.encode(CODE):
        before = retold.num_encoded_bytes
        retold.extend([token])
        costs.append(retold.num_encoded_bytes - before)

    assert max(costs) < 8 * LEAST_TAIL
    assert sum(costs) / len(costs) < 2 * LEAST_TAIL
    assert retold.ids == other.encode(CODE * 61)


def test_given_one_endless_word_then_a_round_still_costs_a_bounded_tail(target, other):
    retold = Retold(target, other)
    words = target.encode("merged" * 2000)
    retold.extend(words)
    start = retold.num_encoded_bytes

    for token in words[:50]:
        retold.extend([token])

    longest = 4 * LONGEST_TAIL  # every tail that is tried, and the edges of tokens
    assert (retold.num_encoded_bytes - start) / 50 < longest
    assert other.join(retold.ids) == target.join([*words, *words[:50]])


def test_control_given_tails_without_end_then_the_bound_breaks(target, other, monkeypatch):
    monkeypatch.setattr(translate_text, "LEAST_TAIL", 1 << 30)
    retold = Retold(target, other)
    retold.extend(target.encode(CODE * 60))
    start = retold.num_encoded_bytes

    retold.extend(target.encode("x"))

    assert retold.num_encoded_bytes - start > 8 * LEAST_TAIL


# --- back into the target's tokens ---------------------------------------------------------------


def test_given_a_known_text_then_a_draft_is_told_as_its_continuation(target):
    tokens = target.encode(CODE)

    for cut in range(1, len(tokens) - 8):
        drafted = target.join(tokens[cut : cut + 8])
        told = continuation(target, tokens[:cut], drafted)
        assert target.join(told) == drafted[: num_whole(drafted)] or told == []
        if (
            target.encode(target.join(tokens[: cut + 8]).decode(errors="replace"))
            == tokens[: cut + 8]
        ):
            assert told == tokens[cut : cut + 8]


def test_given_known_tokens_that_are_no_canonical_encoding_then_the_draft_fits_behind(target):
    single = {target[i]: i for i in range(target.tokenizer.vocab_size)}
    known = [*target.encode("def "), *[single[bytes([byte])] for byte in b"merge(left"]]
    assert known != target.encode("def merge(left")

    assert continuation(target, known, b", right):") == target.encode(", right):")


def test_given_a_draft_that_would_change_the_known_tokens_then_nothing_is_proposed(target):
    known = target.encode("    ret")
    assert target.encode("    return")[: len(known)] != known

    assert continuation(target, known, b"urn") == []


def test_given_half_a_character_at_the_end_then_it_is_cut(target):
    known = target.encode("x = '")
    told = continuation(target, known, "é並".encode()[:-1])

    assert target.join(told).decode() == "é"


def test_given_a_special_token_just_before_then_a_draft_begins_a_text(target):
    known = [*target.encode("pass"), *target.tokenizer.eos_ids]

    assert continuation(target, known, b"import os") == target.encode("import os")


@pytest.mark.parametrize("text", ["", "a", "é", "並", "𝄞", "a𝄞"])
def test_given_any_cut_of_a_text_then_whole_characters_are_counted(text):
    data = text.encode()
    for cut in range(len(data) + 1):
        whole = data[: num_whole(data[:cut])]
        assert whole.decode() == data[:cut].decode(errors="ignore")
