"""Grammars by llguidance: what looking says, and whatever is no grammar is refused in time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.grammar_parts import Listed, compiler_of, plainly
from forerun.engine.patterns import Pattern
from forerun.errors import GrammarError
from forerun.tree import TokenTree

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)
pytest.importorskip("llguidance", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def compiler(target_dir):
    with plainly(target_dir) as engine:
        yield compiler_of(engine)


def test_given_a_list_of_choices_then_llguidance_says_what_looking_says(target_dir, compiler):
    words = ["red", "rest", "green", "re", "gold"]
    with plainly(target_dir) as engine:
        encode, vocab = engine.tokenizer.encode, engine._parts.target.spec.vocab
        listed = Listed([encode(word) for word in words], vocab, 256)
    constraint = compiler.compile(Pattern("choice", json.dumps(words))).begin()
    tokens = [1, *encode("re"), *encode("s"), *encode("g"), *encode("o"), 256, *encode("x")]
    tree = TokenTree(np.array(tokens, np.int32), np.array([-1, 0, 1, 2, 0, 4, 2, 0], np.int32))

    for text in ([], encode("r"), encode("gree"), encode("gold")):
        assert np.array_equal(constraint.allowed(text, tree), listed.allowed(text, tree)), text
        assert constraint.forced(text, 9) == listed.forced(text, 9)


HOPELESS = (
    Pattern("json_schema", "{"),
    Pattern("json_schema", '{"type": "robot"}'),
    Pattern("json_schema", '{"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}'),
    Pattern("json_schema", '{"type": "string", "contentEncoding": "base64", "not": {}}'),
    Pattern("regex", "a("),
    Pattern("regex", "(?=a)b"),
    Pattern("lark", "start: start"),
    # what takes minutes is given up
    Pattern("lark", "start: A\nA: " + " & ".join(f"/(.*a.{{{at}}}b.*)/" for at in range(2, 40))),
    Pattern("lark", "start: nobody"),
    Pattern("lark", "start: " + "(" * 20_000),
    Pattern("lark", "x" * (1 << 19)),
    Pattern("json_schema", '{"anyOf": ' * 2000 + "{}" + "}" * 2000),
)


def test_given_rules_that_lead_on_by_the_thousand_then_nothing_breaks(compiler):
    levels = ",".join(f'"{at}":{{"items":{{"$ref":"#/$defs/{at + 1}"}}}}' for at in range(1400))
    pattern = Pattern("json_schema", f'{{"$defs":{{{levels},"1400":{{}}}},"$ref":"#/$defs/0"}}')

    assert compiler.compile(pattern).begin().allowed([], TokenTree.made_chain([0])).any()


@pytest.mark.parametrize("pattern", HOPELESS, ids=lambda one: f"{one.kind} {one.text[:30]}")
def test_given_what_is_no_grammar_then_it_is_refused_in_a_sentence(compiler, pattern):
    with pytest.raises(GrammarError) as refused:
        compiler.compile(pattern)

    assert 10 < len(str(refused.value)) < 300
