"""Rows bound by a grammar: the tokens of plain decoding under the same masks, whatever drafts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.grammar_parts import Listed, bound_jobs, compiler_of, is_valid, plainly
from engine.service_parts import Listener, around, jobs, outcome, played, prompt_of
from forerun import SamplingParams
from forerun.engine.grammar import Followed
from forerun.engine.patterns import Pattern
from forerun.engine.service import Job, Service
from forerun.errors import BackendError, GrammarError

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)
pytest.importorskip("llguidance", reason="the extra `serve` is not installed")

NUM, NUM_SAMPLED = 18, 9
COMPOSITIONS = (
    ("lookup", "chain:4"),
    ("lookup", "tree:6"),
    ("{lm}", "chain:4"),
    ("{lm}", "auto"),
    ("{lm}", "tree:8"),
    ("{lm}", "tree:auto"),
    ("{lm}", "tree:3x2x1"),
    ("dspark:{dspark}", "tree:5"),
    ("dspark:{rnn}", "tree:5"),
    ("dflash:{dflash}", "chain:4"),
    ("eagle3:{eagle3}", "tree:3x2x1"),
    ("exit:1", "chain:3"),
    ("router(lookup,{lm})", "chain:4"),
    ("{lm}", "chain:4", "match", "ahead:6"),
    ("{lm}", "tree:5", "match", "parallel"),
)
SAMPLED = (
    ("{lm}", "chain:4", "rejection"),
    ("{lm}", "tree:3x2x1", "traversal"),
    ("{lm}", "chain:3", "block"),
    ("lookup", "chain:4", "rejection"),
    ("{lm}", "chain:4", "rejection", "ahead:6"),
)


def name_of(words):
    return "-".join(words).replace(":{", " {")


def heard(service, job):
    listener = Listener()
    service.submit(job, listener)
    return listener.completion


@pytest.fixture(scope="module")
def compiler(target_dir):
    with plainly(target_dir) as engine:
        yield compiler_of(engine)


@pytest.fixture(scope="module")
def bound(compiler):
    """Requests bound by random grammars, and who checks their texts."""
    return bound_jobs(compiler, NUM)


@pytest.fixture(scope="module")
def expected(target_dir, bound):
    """What every request comes to by itself, decoded plainly under its masks."""
    with plainly(target_dir) as engine, Service(engine) as service:
        return [outcome(heard(service, job)) for job in bound[0]]


def differences(found, expected):
    pairs = zip(found, expected, strict=True)
    return [at for at, (one, other) in enumerate(pairs) if outcome(one) != other]


# --- plain decoding under masks -------------------------------------------------------------------


def test_given_a_grammar_then_a_text_that_ended_is_of_it(bound, expected):
    ended = 0
    for check, (_, text, reason, *_) in zip(bound[1], expected, strict=True):
        assert reason in ("stop", "length")
        if reason == "stop":
            ended += 1
            assert check(text), text
    assert ended > NUM / 2


def test_given_listed_texts_then_each_token_is_that_of_a_request_allowed_no_others(target_dir):
    """An oracle without any mask of a grammar: one token at a time, out of those that may come."""
    texts = [list(text.encode()) for text in ("red", "rest", "green", "re", "gold")]
    with plainly(target_dir) as engine, Service(engine) as service:
        encode = engine.tokenizer.encode
        texts = [encode(bytes(text).decode()) for text in texts]
        listed = Listed(texts, engine._parts.target.spec.vocab, 256)
        for seed in range(12):
            prompt, how = prompt_of(9, seed), {"temperature": 1.4, "seed": seed}
            found = heard(service, Job(prompt, SamplingParams(max_tokens=9, **how), grammar=listed))
            tokens = []
            while len(tokens) < 9 and 256 not in tokens:
                may = tuple(sorted(listed.next(tokens)))
                params = SamplingParams(max_tokens=1, allowed_tokens=may, **how)
                tokens += engine.generate([*prompt, *tokens], params)[0].token_ids
            assert list(found.token_ids) == tokens
            assert found.finish_reason == "stop"
            assert tokens[:-1] in texts


# --- whatever drafts, whoever is there ------------------------------------------------------------


@pytest.mark.parametrize("words", COMPOSITIONS, ids=name_of)
def test_given_a_way_to_draft_then_every_bound_request_comes_out_as_plainly(
    opened, bound, expected, words
):
    with Service(opened(words)) as service:
        found = [heard(service, job) for job in bound[0]]

    assert differences(found, expected) == []
    assert sum(one.stats.num_accepted for one in found) > 0


@pytest.mark.parametrize("words", [COMPOSITIONS[0], COMPOSITIONS[4], COMPOSITIONS[12]], ids=name_of)
def test_given_company_bound_and_free_then_all_come_out_as_alone(opened, bound, expected, words):
    engine, free = opened(words), jobs(12)
    alone = [outcome(engine.generate(list(job.prompt), job.params)[0]) for job in free]
    mixed = [one for pair in zip(bound[0], [*free, *[None] * NUM], strict=False) for one in pair]
    mixed = [one for one in mixed if one is not None]

    with Service(engine) as service:
        listeners = played(service, mixed, seed=3)

    wanted = [one for pair in zip(expected, [*alone, *[None] * NUM], strict=False) for one in pair]
    wanted = [one for one in wanted if one is not None]
    assert differences([one.completion for one in listeners], wanted) == []


@pytest.mark.parametrize("words", SAMPLED, ids=name_of)
def test_given_a_sampled_rule_then_texts_are_of_their_grammars_and_the_same_in_company(
    opened, bound, words
):
    engine = opened(words)
    with Service(engine) as service:
        alone = [heard(service, job) for job in bound[0][:NUM_SAMPLED]]
    with Service(engine) as service:
        together = [one.completion for one in played(service, bound[0][:NUM_SAMPLED], seed=1)]

    assert differences(together, [outcome(one) for one in alone]) == []
    for check, one in zip(bound[1], alone, strict=False):
        assert one.finish_reason != "stop" or check(one.text), one.text


def test_given_a_sampled_rule_then_choices_come_as_often_as_the_masked_law_says(opened, compiler):
    words, prompt, num = ["a", "b", "c"], prompt_of(20, 1), 300
    grammar = compiler.compile(Pattern("choice", json.dumps(words)))
    engine = opened(("{lm}", "chain:3", "rejection"))
    ids = [engine.tokenizer.encode(word)[0] for word in words]
    scores = [
        engine.generate(
            list(prompt), SamplingParams(max_tokens=1, logprobs=0, allowed_tokens=(token,))
        )[0].logprobs[0].logprob
        for token in ids
    ]  # fmt: skip
    law = np.exp(np.array(scores) - max(scores))
    law /= law.sum()

    with Service(engine) as service:
        found = [
            heard(service, Job(prompt, SamplingParams(
                temperature=1.0, seed=seed, max_tokens=3), grammar=grammar)).text
            for seed in range(num)
        ]  # fmt: skip

    counts = np.array([found.count(word) for word in words])
    assert counts.sum() == num
    assert (((counts - num * law) ** 2) / (num * law)).sum() < 18.4  # 1 in 10,000 by chance
    assert (((counts - num / 3) ** 2) / (num / 3)).sum() > 18.4  # the control: no even law


def test_given_the_other_backend_then_bound_requests_come_out_as_plainly(
    open_engine, backend, lm_name, bound, expected
):
    asked, wanted = bound[0][:5], expected[:5]
    if backend == "torch":
        with Service(open_engine("none")) as service:
            wanted = [outcome(heard(service, job)) for job in asked]
    with Service(open_engine(lm_name, "tree:5")) as service:
        found = [heard(service, job) for job in asked]

    assert differences(found, wanted) == []
    for check, one in zip(bound[1], found, strict=False):
        assert one.finish_reason != "stop" or check(one.text), one.text


# --- controls: masks that are off must be found out -----------------------------------------------


def test_given_masks_that_ignore_the_path_then_texts_differ(opened, bound, expected, monkeypatch):
    right = Followed.allowed

    def wrong(self, text, tree):
        return np.repeat(right(self, text, tree)[:1], len(tree), axis=0)

    monkeypatch.setattr(Followed, "allowed", wrong)
    with Service(opened(("{lm}", "tree:8"))) as service:
        found = [heard(service, job) for job in bound[0]]

    assert differences(found, expected)


def test_given_masks_off_by_one_node_then_texts_differ(opened, bound, expected, monkeypatch):
    right = Followed.allowed

    def wrong(self, text, tree):
        masks = right(self, text, tree)
        masks[1:] = np.roll(masks[1:], 1, axis=0)
        return masks

    monkeypatch.setattr(Followed, "allowed", wrong)
    with Service(opened(("{lm}", "tree:8"))) as service:
        found = [heard(service, job) for job in bound[0]]

    assert differences(found, expected)


# --- what is forced, what is scored, what goes wrong ----------------------------------------------


def fixed_schema():
    inner = {"kind": {"const": "measurement"}, "is_big": {"type": "boolean"}}
    return {
        "type": "object", "properties": inner, "required": list(inner),
        "additionalProperties": False,
    }  # fmt: skip


def test_given_forced_tokens_then_they_are_drafted_and_called_grammar(opened, compiler):
    grammar = compiler.compile(Pattern("json_schema", json.dumps(fixed_schema())))
    params = SamplingParams(max_tokens=80, temperature=1.0, seed=1)
    with Service(opened(("lookup", "chain:4"))) as service:
        listener = Listener()
        service.submit(Job((40, 41), params, grammar=grammar, is_watched=True), listener)
        drafted = listener.completion
        plain = heard(service, Job((40, 41), params, speculates=False, grammar=grammar))

    seen = [one.seen for one in listener.events if getattr(one, "seen", None) is not None]
    assert is_valid({"type": "boolean"}, json.loads(drafted.text)["is_big"])
    assert outcome(drafted) == outcome(plain)
    assert plain.stats.num_drafted == 0
    assert "grammar" in [one.drafter for one in seen]
    assert drafted.stats.num_rounds < len(drafted.token_ids) / 3


def test_given_logprobs_then_they_are_those_without_any_mask(opened, compiler):
    engine = opened(("lookup", "chain:4"))
    grammar = compiler.compile(Pattern("regex", "zqzq!"))
    params = SamplingParams(max_tokens=9, logprobs=3)
    with Service(engine) as service:
        bound = heard(service, Job((70, 71, 72), params, grammar=grammar))
    tokens = bound.token_ids[:-1]
    for at, token in enumerate(tokens):
        one = SamplingParams(max_tokens=1, logprobs=3, allowed_tokens=(token,))
        free = engine.generate([70, 71, 72, *tokens[:at]], one)[0]
        assert free.logprobs[0] == bound.logprobs[at]
    assert bound.text == "zqzq!"
    assert all(one.logprob < -0.5 for one in bound.logprobs[:-1])


class Tired:
    """Follows a grammar for some tokens, then no more."""

    def __init__(self, constraint, num_tokens):
        self.inner, self.num_tokens = constraint, num_tokens

    def forced(self, text, most):
        return []

    def allowed(self, text, tree):
        if len(text) >= self.num_tokens:
            raise GrammarError("the grammar grew too complex")
        return self.inner.allowed(text, tree)


class Tiring:
    def __init__(self, grammar):
        self.inner, self.end_ids = grammar, grammar.end_ids

    def begin(self):
        return Tired(self.inner.begin(), 5)


def test_given_a_grammar_that_grows_too_complex_then_only_its_request_fails(
    opened, bound, expected
):
    job = dataclasses.replace(bound[0][0], grammar=Tiring(bound[0][0].grammar))
    with Service(opened(("{lm}", "chain:4"))) as service:
        listeners = [Listener() for _ in range(4)]
        for one, listener in zip([job, *bound[0][1:4]], listeners, strict=True):
            service.submit(one, listener)
        found = [one.completion for one in listeners]

    assert isinstance(found[0].error, GrammarError)
    assert differences(found[1:], expected[1:4]) == []


class Failing:
    """A target that fails once for a whole round, after some passes."""

    def __init__(self, target):
        self.inner, self.num_passes = target, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def commit(self, batch, paths):
        self.num_passes += len(paths) > 1
        if len(paths) > 1 and self.num_passes in (6, 11, 17):
            raise BackendError("once")
        return self.inner.commit(batch, paths)


def test_given_rounds_that_are_undone_then_grammars_go_back_with_them(opened, bound, expected):
    engine = opened(("{lm}", "tree:8"))
    around(engine, Failing)
    with Service(engine) as service:
        found = [one.completion for one in played(service, bound[0], seed=2)]

    assert differences(found, expected) == []


def test_given_drafted_nodes_that_cannot_be_followed_then_texts_are_the_same(
    opened, bound, expected, monkeypatch
):
    right, failed = Followed.allowed, []

    def tired(self, text, tree):
        masks = right(self, text, tree)
        failed.append(len(masks[2::2]))
        masks[2::2] = False
        return masks

    monkeypatch.setattr(Followed, "allowed", tired)
    with Service(opened(("{lm}", "tree:8"))) as service:
        found = [heard(service, job) for job in bound[0]]

    assert sum(failed) > 0
    assert differences(found, expected) == []
