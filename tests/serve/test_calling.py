"""Calls of tools are read out of a text whatever pieces it comes in, and written only as taught."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("llguidance", reason="the extra `serve` is not installed")

from forerun import Engine
from forerun.engine.grammar import Compiler
from forerun.engine.patterns import Pattern
from forerun.serve.calling import (
    BARE,
    MARKED,
    CallForm,
    CallReader,
    TextPlace,
    calls_or,
    forced_calls,
    free_calls,
)
from forerun.serve.tool_fields import Function
from forerun.tree import TokenTree

TRICKY = {"a": 'no "end}" here', "b": {"c": [1, {"d": "\\"}]}, "e": "é\n"}
CALLS = [("look_up", TRICKY), ("stop", {}), ("look_up", {"a": "]}"})]


def spelled(form: CallForm, calls: list[tuple[str, object]]) -> str:
    bodies = [
        f'{{"name": "{name}", "arguments": {json.dumps(arguments)}}}' for name, arguments in calls
    ]
    return "\n".join(form.opening + body + form.closing for body in bodies)


def read(form: CallForm, pieces: list[str], place: TextPlace) -> tuple[str, list[tuple[str, str]]]:
    reader, text = CallReader(form, place), ""
    names: list[str] = []
    arguments: list[str] = []
    for said in [*map(reader.push, pieces), reader.finish()]:
        text += said.text
        for part in said.calls:
            if part.id is not None:
                assert part.index == len(names)
                names.append(part.name or "")
                arguments.append("")
            arguments[part.index] += part.arguments
    return text, list(zip(names, arguments, strict=True))


@pytest.mark.parametrize("form", [BARE, MARKED], ids=["bare", "marked"])
def test_given_calls_cut_anywhere_then_they_are_read_the_same(form: CallForm) -> None:
    text = spelled(form, CALLS)
    wanted = [(name, json.dumps(arguments)) for name, arguments in CALLS]

    for at in range(len(text) + 1):
        assert read(form, [text[:at], text[at:]], "nowhere") == ("", wanted)
    assert read(form, list(text), "nowhere") == ("", wanted)


def test_given_text_before_marked_calls_then_it_is_text_and_no_part_of_a_mark_is_told() -> None:
    words = "1 < 2, <tool is not <tool_cal"
    text = words + spelled(MARKED, CALLS)

    for step in (1, 2, 3, 7, 100):
        pieces = [text[at : at + step] for at in range(0, len(text), step)]
        said, calls = read(MARKED, pieces, "before")
        assert said == words
        assert [name for name, _ in calls] == [name for name, _ in CALLS]
    assert read(MARKED, list(words), "before") == (words, [])


@pytest.mark.parametrize("end", range(1, 40, 3))
def test_given_a_call_that_was_cut_then_what_came_of_it_is_told(end: int) -> None:
    text = spelled(BARE, CALLS[:1])[:-end]

    said, calls = read(BARE, list(text), "nowhere")

    assert said == ""
    assert [name for name, _ in calls] == ["look_up"]
    assert json.dumps(TRICKY).startswith(calls[0][1])


def test_given_text_instead_of_calls_then_its_beginning_says_which_of_the_two_it_is() -> None:
    for words in ('{"a": "<tool_call>"}', "<tool", "<", "1 <tool_call>\n{", ""):
        for step in (1, 2, 5, 100):
            pieces = [words[at : at + step] for at in range(0, len(words), step)]
            assert read(MARKED, pieces, "instead") == (words, [])
    text = spelled(MARKED, CALLS)
    for at in range(len(text) + 1):
        said, calls = read(MARKED, [text[:at], text[at:]], "instead")
        assert said == ""
        assert [name for name, _ in calls] == [name for name, _ in CALLS]


# --- what the grammars let through ----------------------------------------------------------------

ARGUMENTS = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}
FUNCTIONS = [
    Function.model_validate({"name": "look_up", "parameters": ARGUMENTS}),
    Function.model_validate({"name": "stop"}),
]
FORCED = '{"name": "look_up", "arguments": {"a": "x"}}'
STOP = '{"name": "stop", "arguments": {}}'


@pytest.fixture(scope="module")
def compiler(engine: Engine) -> Compiler:
    spec = engine.inside().parts.target.spec
    return Compiler(engine.tokenizer, spec.vocab, frozenset(spec.eos_ids))


def is_of(engine: Engine, compiler: Compiler, pattern: object, text: str) -> bool:
    """Whether a grammar lets a whole text through, token by token, and lets it end there."""
    constraint = compiler.compile(pattern).begin()  # type: ignore[arg-type]
    tokens = [0, *engine.tokenizer.encode(text), *engine.inside().parts.target.spec.eos_ids]
    tree = TokenTree.made_chain(tokens)
    masks = constraint.allowed([], tree)
    return all(masks[at, token] for at, token in enumerate(tokens[1:]))


def test_given_forced_calls_then_only_they_pass(engine: Engine, compiler: Compiler) -> None:
    one = forced_calls(FUNCTIONS, BARE, 1)
    many = forced_calls(FUNCTIONS, MARKED, 3)
    marked = [f"<tool_call>\n{text}\n</tool_call>" for text in (FORCED, STOP)]

    assert is_of(engine, compiler, one, FORCED)
    assert is_of(engine, compiler, one, STOP)
    assert is_of(engine, compiler, many, "\n".join(marked))
    for wrong in ("hello", f"{FORCED}\n{STOP}", FORCED.replace("look_up", "other"), FORCED[:-1],
                  FORCED.replace('"x"', "1"), STOP.replace("{}", '{"a": 1}')):  # fmt: skip
        assert not is_of(engine, compiler, one, wrong), wrong
    assert not is_of(engine, compiler, many, "\n".join([*marked, *marked]))
    assert not is_of(engine, compiler, many, STOP)


def test_given_free_calls_then_text_passes_and_what_begins_like_a_call_must_be_one(
    engine: Engine, compiler: Compiler
) -> None:
    free = free_calls(FUNCTIONS, MARKED, 2)
    call = f"<tool_call>\n{FORCED}\n</tool_call>"

    for right in ("hello {", "", "1 < 2\n<tool", call, f"I look: {call}", f"so\n{call}\n{call}"):
        assert is_of(engine, compiler, free, right), right
    for wrong in ("<tool_call>", f"{call} and more", f"{call}\n{call}\n{call}", call[:-1],
                  call.replace("look_up", "other")):  # fmt: skip
        assert not is_of(engine, compiler, free, wrong), wrong


FORMATS = (
    (Pattern.json_schema(ARGUMENTS), '{"a": "<tool_call>"}', '{"b": 1}'),
    (Pattern.regex("a/b+"), "a/bb", "a/"),
    (Pattern.choice(["yes", "no"]), "no", "yesno"),
    (Pattern.lark('start: f0 | "x" start\nf0: "y"'), "xxy", "xx"),
)


@pytest.mark.parametrize(("text", "right", "wrong"), FORMATS, ids=lambda one: str(one)[:20])
def test_given_calls_or_a_text_then_an_answer_is_wholly_one_of_them(
    engine: Engine, compiler: Compiler, text: Pattern, right: str, wrong: str
) -> None:
    either = calls_or(text, FUNCTIONS, MARKED, 2)
    call = f"<tool_call>\n{FORCED}\n</tool_call>"

    for one in (right, call, f"{call}\n{call}"):
        assert is_of(engine, compiler, either, one), one
    for one in (wrong, f"{right}{call}", f"{call}{right}", "hello", f"{call}\n{call}\n{call}",
                call.replace("look_up", "other")):  # fmt: skip
        assert not is_of(engine, compiler, either, one), one
    assert not compiler.may_begin(text, "<tool_call>")


@pytest.mark.parametrize(
    "text",
    [
        Pattern.regex("(.|\n)*"),
        Pattern.choice(["<tool_call>s"]),
        Pattern.lark('start: "<" /.*/'),
    ],
)
def test_given_a_text_that_may_begin_like_a_call_then_that_is_found_out(
    compiler: Compiler, text: Pattern
) -> None:
    assert compiler.may_begin(text, "<tool_call>")


def test_given_masks_then_the_walk_is_what_a_walk_anew_says(
    engine: Engine, compiler: Compiler
) -> None:
    """A matcher that goes back and forth stands where one that came straight there stands."""
    pattern = forced_calls(FUNCTIONS, MARKED, 3)
    tokens = engine.tokenizer.encode(spelled(MARKED, [("look_up", {"a": "xy"}), ("stop", {})]))
    wandering = compiler.compile(pattern).begin()
    tree = TokenTree.made_chain([0])
    rng = np.random.default_rng(0)

    for at in [*rng.integers(0, len(tokens), 40).tolist()]:
        straight = compiler.compile(pattern).begin()
        assert np.array_equal(
            wandering.allowed(tokens[:at], tree), straight.allowed(tokens[:at], tree)
        )
