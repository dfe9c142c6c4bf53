"""A conversation as one text: whose lines end where, and how calls stand in it."""

from __future__ import annotations

from forerun.models.conversation import plain_text

ASKED = {"role": "user", "content": "one"}


def test_given_turns_then_what_was_asked_has_lines_of_its_own() -> None:
    half = {"role": "assistant", "content": "two, cut"}
    whole = {"role": "assistant", "content": "three\n"}

    assert plain_text([ASKED]) == "one\n"
    assert plain_text([ASKED, half, ASKED]) == "one\ntwo, cut\none\n"
    assert plain_text([ASKED, whole, ASKED]) == "one\nthree\none\n"
    assert plain_text([]) == ""


def test_given_calls_then_each_is_a_line_as_the_model_is_made_to_write_it() -> None:
    calls = [{"function": {"name": "f", "arguments": {"à": 1}}}, {"function": {"name": "g"}}]
    called = {"role": "assistant", "content": "", "tool_calls": calls}

    text = plain_text([ASKED, called])

    assert text == 'one\n{"name": "f", "arguments": {"à": 1}}\n{"name": "g"}\n'
