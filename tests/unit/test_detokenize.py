"""Text as it comes: whole characters, and stop strings wherever they fall."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from forerun.engine.detokenize import Detokenizer


def push_all(pieces, stop=()):
    detokenizer = Detokenizer(lambda token: pieces[token], tuple(stop))
    texts = []
    for token in range(len(pieces)):
        texts.append(detokenizer.push(token))
        if detokenizer.is_stopped:
            break
    return texts, detokenizer


def test_given_half_characters_then_they_wait_for_their_rest():
    euro = "€".encode()

    texts, detokenizer = push_all([b"a" + euro[:1], euro[1:2], euro[2:] + b"b"])

    assert texts == ["a", "", "€b"]
    assert detokenizer.finish() == ""


def test_given_an_end_within_a_character_then_it_is_replaced():
    texts, detokenizer = push_all(["€".encode()[:2]])

    assert texts == [""]
    assert detokenizer.finish() == "\ufffd"


def test_given_the_beginning_of_a_stop_string_then_it_is_held_back_until_decided():
    texts, detokenizer = push_all([b"x E", b"N", b"T", b" EN"], stop=["END"])

    assert texts == ["x ", "", "ENT", " "]
    assert detokenizer.finish() == "EN"


def test_given_a_stop_string_over_several_tokens_then_the_text_ends_before_it():
    texts, detokenizer = push_all([b"ab", b"cE", b"ND and more", b"never"], stop=["END"])

    assert texts == ["ab", "c", ""]
    assert detokenizer.is_stopped
    assert detokenizer.finish() == ""
    assert detokenizer.push(0) == ""


def test_given_several_stop_strings_in_one_token_then_the_earliest_ends_the_text():
    texts, _ = push_all([b"one two three"], stop=["three", "two"])

    assert texts == ["one "]


@given(
    st.text(alphabet="abc€", max_size=40),
    st.lists(st.text(alphabet="abc€", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_given_any_cut_into_tokens_then_the_text_is_what_comes_before_a_stop_string(
    text, stop, data
):
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    edges = [0, *cuts, len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(edges)]

    texts, detokenizer = push_all(pieces, stop)
    made = "".join(texts) + detokenizer.finish()

    assert text.startswith(made)
    assert not any(one in made for one in stop)
    if not any(one in text for one in stop):
        assert made == text
