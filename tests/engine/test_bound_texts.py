"""Texts that a grammar binds, asked of the engine itself: as over a service, whatever drafts."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.grammar_parts import compiler_of, patterns, plainly
from engine.service_parts import Listener, outcome, prompt_of
from forerun import GrammarError, OptionError, Pattern, SamplingParams
from forerun.engine import round as rounds
from forerun.engine.service import Job, Service

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)
pytest.importorskip("llguidance", reason="the extra `grammar` is not installed")

NUM = 12
COMPOSITIONS = (
    ("lookup", "chain:4"),
    ("{lm}", "tree:8"),
    ("{lm}", "chain:4", "match", "ahead:6"),
)
PERSON = Pattern.json_schema(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 4}, "is_big": {"type": "boolean"}},
        "required": ["name", "is_big"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def asked():
    """Prompts, parameters and patterns, one each, and who checks the texts."""
    found = patterns(NUM, seed=5)
    prompts = [list(prompt_of(5 + 7 * at, at)) for at in range(NUM)]
    params = [
        SamplingParams(seed=at, max_tokens=60, temperature=0.5 * (at % 3)) for at in range(NUM)
    ]
    return prompts, params, [pattern for pattern, _ in found], [check for _, check in found]


@pytest.fixture(scope="module")
def plain(target_dir, asked):
    """Each by itself, without any draft."""
    with plainly(target_dir) as engine:
        return [
            outcome(engine.generate(prompt, params, grammar=pattern)[0])
            for prompt, params, pattern in zip(*asked[:3], strict=True)
        ]


def num_invalid(completions, checks):
    """How many texts are whole and not of their grammars."""
    pairs = zip(completions, checks, strict=True)
    return sum(not _passes(check, one) for one, check in pairs if one.finish_reason == "stop")


def _passes(check, completion) -> bool:
    try:
        return bool(check(completion.text))
    except ValueError:
        return False


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMPOSITIONS, ids="-".join)
def test_given_a_way_to_draft_then_bound_texts_are_those_of_plain_decoding_and_of_their_grammars(
    opened, asked, plain, words
):
    prompts, params, wanted, checks = asked

    found = opened(words).generate(prompts, params, grammar=wanted)

    assert [outcome(one) for one in found] == plain
    assert num_invalid(found, checks) == 0
    assert sum(one.finish_reason == "stop" for one in found) > NUM / 2
    assert sum(one.stats.num_accepted for one in found) > 0


def test_given_a_service_then_it_answers_with_the_same_tokens(target_dir, asked, plain):
    with plainly(target_dir) as engine, Service(engine) as service:
        compiler, found = compiler_of(engine), []
        for prompt, params, pattern in zip(*asked[:3], strict=True):
            listener = Listener()
            service.submit(Job(tuple(prompt), params, grammar=compiler.compile(pattern)), listener)
            found.append(outcome(listener.completion))

    assert found == plain


def test_given_no_masks_then_texts_are_not_of_their_grammars(opened, asked, plain, monkeypatch):
    """The control: what is checked above is the work of masks, at the target and nowhere else."""
    prompts, params, wanted, checks = asked
    monkeypatch.setattr(rounds, "masked", lambda logits, _: np.array(logits))

    with pytest.raises(GrammarError, match="cannot be followed"):
        opened(("lookup", "chain:4")).generate(prompts[0], params[0], grammar=wanted[0])
    free = opened(("lookup", "chain:4")).generate(prompts, params)

    assert [outcome(one) for one in free] != plain
    as_if_whole = [dataclasses.replace(one, finish_reason="stop") for one in free]
    assert num_invalid(as_if_whole, checks) == NUM


def test_given_a_stream_then_its_pieces_are_the_whole_and_free_texts_stay_free(opened, asked):
    engine, params = opened(("{lm}", "tree:8")), SamplingParams(max_tokens=50, seed=1)
    prompts = [[40, 41, 42], [50, 51]]

    bound, free = engine.generate(prompts, params, grammar=[PERSON, None])
    pieces = list(engine.stream(prompts[0], params, grammar=PERSON))

    assert "".join(one.text for one in pieces) == bound.text
    assert pieces[-1].finish_reason == "stop"
    assert set(json.loads(bound.text)) == {"name", "is_big"}
    assert outcome(free) == outcome(engine.generate(prompts[1], params)[0])


def test_given_forced_tokens_then_they_are_drafted(opened):
    long = Pattern.regex("(yes|no), that is exactly how it has always been and will be!")
    params = SamplingParams(max_tokens=80)

    drafted = opened(("lookup", "chain:4")).generate([40, 41], params, grammar=long)[0]

    assert drafted.text.endswith("and will be!")
    assert drafted.stats.num_rounds < len(drafted.token_ids) / 3


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (Pattern.choice(["red", "rest"]), {"red", "rest"}),
        (Pattern.lark('start: "ho" "!"'), {"ho!"}),
        (Pattern.json_schema('{"const": 7}'), {"7"}),
        (Pattern("lark", "start: @one | @two", named=(
            ("one", Pattern.regex("a/b")), ("two", Pattern.choice(["c"])))), {"a/b", "c"}),
        (Pattern("lark", 'start: "<" @one', named=(
            ("one", Pattern.lark('start: "x"')),)), {"<x"}),
    ],
    ids=lambda one: getattr(one, "kind", ""),
)  # fmt: skip
def test_given_each_way_to_write_a_pattern_then_the_text_is_of_it(target_dir, pattern, text):
    with plainly(target_dir) as engine:
        found = engine.generate([40, 41], SamplingParams(max_tokens=9), grammar=pattern)[0]

    assert found.text in text
    assert found.finish_reason == "stop"


# --- what cannot be -------------------------------------------------------------------------------

UNENFORCED = {"type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "maxItems": 2}
WRONG = (
    ({"grammar": Pattern.regex("a(")}, GrammarError, "regex"),
    ({"grammar": Pattern.json_schema(UNENFORCED)}, GrammarError, "is_lenient"),
    ({"grammar": "[a-z]+"}, OptionError, "must be a Pattern, found str"),
    ({"grammar": [PERSON, PERSON]}, OptionError, "1 prompts, 2 grammars"),
    ({"grammar": PERSON, "params": SamplingParams(ignore_eos=True)}, OptionError, "ignore_eos"),
)


@pytest.mark.parametrize(("changes", "kind", "words"), WRONG, ids=lambda one: str(one)[:30])
def test_given_what_cannot_be_then_one_sentence_and_nothing_is_run(
    target_dir, changes, kind, words
):
    with plainly(target_dir) as engine, pytest.raises(kind, match=words):
        engine.generate([[40, 41]], **changes)


@pytest.mark.parametrize(
    ("write", "given", "words"),
    [
        (Pattern.choice, "yes", "a list of one text or more"),
        (Pattern.choice, [], "a list of one text or more"),
        (Pattern.json_schema, SamplingParams, "model_json_schema"),
    ],
)
def test_given_no_pattern_at_all_then_it_is_refused_where_it_is_written(write, given, words):
    with pytest.raises(OptionError, match=words):
        write(given)


def test_given_a_lenient_schema_then_what_cannot_be_enforced_is_left(target_dir):
    pattern = Pattern.json_schema(UNENFORCED, is_lenient=True)
    with plainly(target_dir) as engine:
        found = engine.generate([40, 41], SamplingParams(max_tokens=40), grammar=pattern)[0]

    assert isinstance(json.loads(found.text), list)


def test_given_no_library_then_the_extra_is_named_and_free_texts_still_come(
    target_dir, monkeypatch
):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with plainly(target_dir) as engine:
        with pytest.raises(GrammarError, match=r"pip install 'forerun\[grammar\]'"):
            engine.generate([40, 41], grammar=PERSON)

        assert engine.generate([40, 41], SamplingParams(max_tokens=3))[0].token_ids


def test_given_the_same_pattern_again_then_it_is_not_compiled_anew(target_dir):
    with plainly(target_dir) as engine:
        grammars = engine.inside().grammars

        assert grammars.of(PERSON) is grammars.of(dataclasses.replace(PERSON))
        assert grammars.of(PERSON) is not grammars.of(PERSON, "another")
