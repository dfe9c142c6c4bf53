"""Speculation on or off: the same tokens, text and end, for every request, whatever drafts.

One comparison, `differences`, serves the tests that must pass and the mutants that must not.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.engine_parts import with_parts
from forerun import SamplingParams
from forerun.draft import Draft, Draw, Verdict
from forerun.protocols import Reads
from forerun.rules.match import Match
from forerun.tree import TokenTree

MAX_TOKENS = 24
PROMPTS = ["def f(x):\n    return", "aaaa" * 12, [65, 66, 67, 65, 66, 67, 65, 66], "x"]
SAMPLING = {
    "greedy": {"temperature": 0.0},
    "cool": {"temperature": 0.7},
    "plain law": {"temperature": 1.0},
    "hot": {"temperature": 1.5},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.0, "min_p": 0.05},
    "top-k": {"temperature": 0.9, "top_k": 5},
    "all filters": {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    "repetition": {"temperature": 0.7, "repetition_penalty": 1.3},
    "presence": {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.5},
    "bias": {"temperature": 0.8, "logit_bias": {65: 4.0, 66: 4.0, 256: -100.0}},
    "allowed": {"temperature": 1.0, "allowed_tokens": tuple(range(60, 90))},
    "stop string": {"temperature": 0.9, "stop": ("e", "AB", "zz"), "allowed_tokens": (36, 37, 68)},
    "stop id": {"temperature": 1.0, "stop_token_ids": tuple(range(0, 250, 9))},
    "past the end": {"temperature": 1.5, "ignore_eos": True, "logit_bias": {256: 5.0}},
    "other choice": {"temperature": 1.0, "choice": 3},
    "logprobs": {"temperature": 1.0, "logprobs": 2},
}


def requests():
    """Every way to sample, over all prompts in turn, each with a seed of its own."""
    return [
        (PROMPTS[place % len(PROMPTS)], SamplingParams(max_tokens=MAX_TOKENS, seed=place, **one))
        for place, one in enumerate(SAMPLING.values())
    ]


def outcomes(engine, asked):
    """What each request came to, all in one call."""
    prompts, params = zip(*asked, strict=True)
    return [
        (one.token_ids, one.text, one.finish_reason, one.seed, one.logprobs)
        for one in engine.generate(list(prompts), list(params))
    ]


def differences(plain, other):
    """Places in two lists of outcomes that are not equal in every respect."""
    assert len(plain) == len(other)
    return [
        place for place, pair in enumerate(zip(plain, other, strict=True)) if pair[0] != pair[1]
    ]


@pytest.fixture(scope="module")
def known():
    """What was computed once for each backend."""
    return {}


@pytest.fixture
def plain(open_engine, backend, known):
    """Each request alone, one token a round."""
    if backend not in known:
        engine = open_engine("none")
        known[backend] = [outcomes(engine, [one])[0] for one in requests()]
    return known[backend]


def test_given_lookup_then_every_request_comes_out_the_same(open_engine, plain):
    engine = open_engine("lookup")

    assert differences(plain, outcomes(engine, requests())) == []


@pytest.mark.parametrize("shape", ["auto", "chain:1", "chain:13"])
def test_given_a_model_that_drafts_then_every_request_comes_out_the_same(
    open_engine, plain, lm_name, shape
):
    engine = open_engine(lm_name, shape)

    completions = [outcomes(engine, [one])[0] for one in requests()]

    assert differences(plain, completions) == []
    assert differences(plain, outcomes(engine, requests())) == []


@pytest.mark.parametrize("drafter", ["lookup", "lm"])
def test_given_a_measured_length_then_every_request_comes_out_the_same(
    open_engine, plain, lm_name, drafter
):
    # how long drafts are depends on this machine's moods; the tokens do not
    engine = open_engine(lm_name if drafter == "lm" else drafter, "auto")

    assert differences(plain, outcomes(engine, requests())) == []
    assert differences(plain, outcomes(engine, requests())) == []


def test_given_a_model_that_drafts_then_it_is_often_right_and_often_wrong(open_engine, lm_name):
    engine = open_engine(lm_name)

    stats = engine.generate(PROMPTS, SamplingParams(temperature=0.7, seed=1, max_tokens=60))

    drafted = sum(one.stats.num_drafted for one in stats)
    accepted = sum(one.stats.num_accepted for one in stats)
    assert 0.05 * drafted < accepted < 0.95 * drafted


def test_given_plain_decoding_in_one_batch_then_batch_mates_change_nothing(open_engine, plain):
    assert differences(plain, outcomes(open_engine("none"), requests())) == []


def test_given_long_prompts_then_chunks_and_mates_change_nothing(open_engine, lm_name):
    lengths = (1, 31, 32, 33, 127, 128, 129, 300)
    asked = [
        ([(7 * place) % 251 for place in range(length)], SamplingParams(max_tokens=6, seed=length))
        for length in lengths
    ]

    alone = [outcomes(open_engine("none"), [one])[0] for one in asked]

    assert differences(alone, outcomes(open_engine("none"), asked)) == []
    assert differences(alone, outcomes(open_engine(lm_name), asked)) == []


def test_given_little_memory_then_requests_wait_and_come_out_the_same(open_engine, plain, lm_name):
    engine = open_engine(lm_name, kv_positions=256)

    assert differences(plain, outcomes(engine, requests())) == []


# --- drafters nobody should write ----------------------------------------------------------------


class Drafts:
    """A drafter that answers every row with `tokens_of(row)` below the pending token."""

    def __init__(self, tokens_of):
        self.tokens_of = tokens_of

    def admit(self, sequence_id, prompt):
        pass

    def propose(self, rows):
        return [self.draft(row) for row in rows]

    def draft(self, row):
        tokens = np.array([row.tokens[-1], *self.tokens_of(row)])
        tree = object.__new__(TokenTree)
        object.__setattr__(tree, "tokens", tokens)
        object.__setattr__(tree, "parents", np.arange(-1, len(tokens) - 1, dtype=np.int32))
        return Draft(tree, Draw.POINT)

    def observe(self, sequence_id, commit):
        pass

    def release(self, sequence_id):
        pass

    def close(self):
        pass


class Forks(Drafts):
    """Every drafted token has a sibling."""

    def draft(self, row):
        rng = np.random.default_rng(len(row.tokens))
        tokens, parents = [row.tokens[-1]], [-1]
        for node in range(row.max_drafted):
            parents.append(node // 2)
            tokens.append(int(rng.integers(30, 60)) * 2 + node % 2)
        return Draft(TokenTree(np.array(tokens), np.array(parents)), Draw.POINT)


class RaisesNowAndThen(Drafts):
    def draft(self, row):
        if len(row.tokens) % 3 == 0:
            raise RuntimeError("no idea")
        return super().draft(row)


def seeded(row):
    return np.random.default_rng(len(row.tokens)).integers(0, 270, row.max_drafted).tolist()


HOSTILE = {
    "random": Drafts(seeded),
    "constant": Drafts(lambda row: [65] * row.max_drafted),
    "forks": Forks(None),
    "NaN": Drafts(lambda row: [float("nan")] * row.max_drafted),
    "out of vocabulary": Drafts(lambda row: [10**6] * row.max_drafted),
    "negative": Drafts(lambda row: [-1] * row.max_drafted),
    "over-long": Drafts(lambda row: [65] * 500),
    "raising": Drafts(lambda row: 1 // 0),
    "raising now and then": RaisesNowAndThen(seeded),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_given_a_hostile_drafter_then_every_request_comes_out_the_same(open_engine, plain, name):
    engine = with_parts(open_engine("none"), drafter=HOSTILE[name])

    assert differences(plain, outcomes(engine, requests())) == []


def test_given_a_drafter_that_only_fails_then_it_is_switched_off_and_stats_say_so(open_engine):
    engine = with_parts(open_engine("none"), drafter=HOSTILE["raising"])

    stats = engine.generate("abc", SamplingParams(max_tokens=10, ignore_eos=True))[0].stats

    assert engine.drafter_is_disabled
    assert (stats.num_failures, stats.num_drafted, stats.num_rounds) == (3, 0, 10)


class Oracle(Drafts):
    """Knows the text, and drafts it as the second of two siblings at every depth."""

    def draft(self, row):
        tokens, parents = [row.tokens[-1]], [-1]
        at = len(row.tokens) - row.prompt_len
        for place, token in enumerate(self.tokens_of[at : at + row.max_drafted // 2]):
            tokens += [(token + 1) % 250, token]
            parents += [2 * place, 2 * place]
        return Draft(TokenTree(np.array(tokens), np.array(parents)), Draw.POINT)


@pytest.mark.parametrize("name", ["greedy", "plain law", "repetition", "presence", "logprobs"])
def test_given_the_right_branch_of_every_fork_then_it_is_kept_and_all_is_the_same(
    open_engine, plain, name
):
    place = list(SAMPLING).index(name)
    engine = with_parts(open_engine("none"), drafter=Oracle(plain[place][0]), num_steps=8)

    assert differences([plain[place]], outcomes(engine, [requests()[place]])) == []
    stats = engine.generate(*requests()[place])[0].stats
    assert stats.num_rounds <= MAX_TOKENS // 5 + 3
    assert stats.num_accepted == MAX_TOKENS - stats.num_rounds


# --- the same comparison must catch what is wrong ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AcceptsOneTooMany:
    """Keeps one drafted token that the target did not choose."""

    reads = Reads.CHOICES

    def judge(self, draft, choices, noise):
        verdict = Match().judge(draft, choices, noise)
        if len(verdict.path) == len(draft.tree):
            return verdict
        node = len(verdict.path)
        return Verdict((*verdict.path, node), int(choices[node]))


@dataclasses.dataclass(frozen=True)
class ShiftedByOne:
    """Reads each node's choice at the node before it."""

    reads = Reads.CHOICES

    def judge(self, draft, choices, noise):
        return Match().judge(draft, np.roll(choices, 1), noise)


@pytest.mark.parametrize("rule", [AcceptsOneTooMany(), ShiftedByOne()])
def test_given_a_mutant_rule_then_the_comparison_notices(open_engine, plain, lm_name, rule):
    engine = with_parts(open_engine(lm_name), rule=rule)

    assert len(differences(plain, outcomes(engine, requests()))) > len(plain) // 2


def test_given_a_seed_off_by_one_then_the_comparison_notices(open_engine, plain):
    other = [
        (prompt, dataclasses.replace(params, seed=params.seed + 1)) for prompt, params in requests()
    ]
    made = [(*one[:3], one[3] - 1, one[4]) for one in outcomes(open_engine("none"), other)]

    sampled = [place for place, (_, params) in enumerate(requests()) if params.temperature > 0]
    assert len(differences(plain, made)) > len(sampled) // 2
