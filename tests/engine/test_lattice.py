"""Every drafter with every shape under every rule that may judge it, end to end.

Under `match`: the tokens of plain decoding, whatever else is in the batch. Under sampled rules: the
same seed gives the same tokens, alone and in company, and greedy requests decode plainly. A model
that drafts for itself shows that drafts are coupled and K/V is kept: it is never wrong.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import sys

import numpy as np
import pytest

from engine.conftest import HAS_NATIVE
from engine.engine_parts import with_parts
from engine.lattice import (
    DRAFTERS,
    allowed,
    completions,
    differences,
    opened,
    outcomes,
    overlapped,
    prompt_of,
    requests,
)
from forerun import SamplingParams
from forerun.composition import RULES
from forerun.draft import Verdict
from forerun.engine import drafting
from forerun.protocols import Reads
from forerun.rules.match import Match
from forerun.rules.rejection import Rejection

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")
NUM_COMPOSITIONS = 676
NUM_OVERLAPPED = 240 + 59  # all of match, some of the sampled rules
SAMPLED = tuple(rule for rule in RULES if rule != "match")
ON_TORCH = (
    ("lookup", "tree:5", "match"),
    ("lm", "chain:4", "match"),
    ("lm", "tree:auto", "match"),
    ("lm", "tree:{tree}", "match"),
    ("lm:{other}", "tree:3x2x1", "match"),
    ("nested(lm,tree:2x1,match)", "chain:4", "match"),
    ("lm", "tree:3x2x1:top", "rejection"),
    ("lm", "chain:4", "block"),
    ("lm", "tree:5", "traversal"),
    ("lm:{other}", "tree:5", "kseq"),
    ("dflash:{dflash}", "tree:auto", "match"),
    ("dspark:{dspark}", "chain:auto", "match"),
    ("dspark:{dspark}", "tree:3x2x1", "kseq"),
    ("dspark:{gated}", "tree:5", "match"),
    ("dspark:{rnn}", "tree:{tree}", "match"),
    ("dspark:{rnn}", "tree:5", "traversal"),
    ("eagle3:{eagle3}", "tree:{tree}", "match"),
    ("eagle3:{eagle3}", "chain:4", "block"),
    ("router(dspark:{dspark},eagle3:{eagle3},lm)", "tree:5", "traversal"),
)
ALONE = (4, 5, 8)  # sampled requests, one that repeats itself, one of several chunks
OVERLAPPED_SAMPLED = overlapped(SAMPLED)[::7]  # every shape, rule and schedule is among them
PROVED: set[tuple[str, ...]] = set()
ACCEPTED: dict[str, int] = {}


def named(words):
    return " ".join(words)


def is_measured(shape, rule):
    """Whether the machine's moods decide how much is drafted, which may come to nothing."""
    return rule == "match" and shape in ("auto", "tree:auto")


def note(words, made):
    """Proved; how much was drafted and kept is summed for each drafter."""
    num_drafted = sum(one.stats.num_drafted for one in made)
    assert sum(one.stats.num_failures for one in made) == 0
    if words[0] == "none":
        assert num_drafted == 0
    elif not is_measured(*words[1:3]):
        assert num_drafted > 0
    ACCEPTED[words[0]] = ACCEPTED.get(words[0], 0) + sum(one.stats.num_accepted for one in made)
    PROVED.add(words)


@pytest.mark.parametrize("words", allowed(("match",)), ids=named)
def test_given_match_then_every_token_is_that_of_plain_decoding(places, plain, words):
    with opened(places, words) as engine:
        made = completions(engine, requests())

        assert differences(plain(), outcomes(made)) == []
        assert {one.exactness for one in made} == {"bits"}
    note(words, made)


@pytest.mark.parametrize("words", allowed(SAMPLED), ids=named)
def test_given_a_sampled_rule_then_a_seed_says_all_and_greedy_rows_decode_plainly(
    places, plain, words
):
    asked = requests()
    with opened(places, words) as engine:
        made = completions(engine, asked)
        again = completions(engine, asked[::-2])
        alone = [completions(engine, [asked[place]])[0] for place in ALONE]

    assert {one.exactness for one in made} == {"law"}
    assert differences(outcomes(made)[::-2], outcomes(again)) == []
    assert differences([outcomes(made)[place] for place in ALONE], outcomes(alone)) == []
    greedy = [place for place, (_, params) in enumerate(asked) if params.temperature == 0]
    assert not set(greedy) & set(differences(plain(), outcomes(made)))
    note(words, made + again + alone)


@pytest.mark.parametrize("words", overlapped(("match",)), ids=named)
def test_given_match_and_drafting_ahead_then_every_token_is_that_of_plain_decoding(
    places, plain, words
):
    with opened(places, words) as engine:
        made = completions(engine, requests())

        assert differences(plain(), outcomes(made)) == []
    note(words, made)


@pytest.mark.parametrize("words", OVERLAPPED_SAMPLED, ids=named)
def test_given_a_sampled_rule_and_drafting_ahead_then_tokens_are_those_of_drafting_in_between(
    places, words
):
    # what is drawn for an outcome counts its draws as if that had come
    asked = requests()
    with opened(places, words[:3]) as engine:
        in_between = outcomes(completions(engine, asked))
    with opened(places, words) as engine:
        made = completions(engine, asked)
        alone = [completions(engine, [asked[place]])[0] for place in ALONE]

    assert differences(in_between, outcomes(made)) == []
    assert differences([in_between[place] for place in ALONE], outcomes(alone)) == []
    note(words, made + alone)


@pytest.mark.parametrize("words", ON_TORCH, ids=named)
def test_given_the_torch_backend_then_a_sample_of_compositions_holds(places, plain, words):
    pytest.importorskip("torch")
    asked = requests()
    with opened(places, words, "torch") as engine:
        made = completions(engine, asked)

    greedy = [place for place, (_, params) in enumerate(asked) if params.temperature == 0]
    expected = range(len(asked)) if words[2] == "match" else greedy
    assert not set(expected) & set(differences(plain("torch"), outcomes(made)))
    assert sum(one.stats.num_failures for one in made) == 0
    assert sum(one.stats.num_accepted for one in made) > 0


def test_given_little_memory_then_requests_wait_and_come_out_the_same(places, plain):
    for words in (("lm", "tree:16", "match"), ("nested(lm,tree:2x1,match)", "chain:4", "match")):
        with opened(places, words, kv_positions=256) as engine:
            assert differences(plain(), outcomes(completions(engine, requests()))) == []


# --- a model that drafts for itself ---------------------------------------------------------------


@dataclasses.dataclass
class Paths:
    """A witness of where every verdict ended."""

    ends: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

    def saw(self, rows, drafts, said, starts, verdicts):
        for draft, verdict in zip(drafts, verdicts, strict=True):
            tree = draft.tree
            num_below = int(np.sum(tree.parents == verdict.path[-1]))
            self.ends.append((num_below, verdict.num_accepted, int(tree.depths().max())))

    def settled(self, stats):
        """Nothing is measured."""


TEMPERATURES = (0.0, 0.7, 1.3)
OF_ITSELF = [
    (shape, rule)
    for drafter, shape, rule in allowed()
    if drafter == "lm:{target}" and not shape.endswith((":top", ":likeliest"))
]


def watched(engine):
    """Where verdicts end while the target drafts for itself, beside block borders."""
    paths = Paths()
    engine._parts = dataclasses.replace(engine._parts, witness=paths)
    lengths = (1, 31, 33, 60)
    asked = [
        (
            prompt_of(length, length),
            SamplingParams(temperature=one, seed=length, max_tokens=40, ignore_eos=True),
        )
        for length, one in itertools.product(lengths, TEMPERATURES)
    ]
    made = completions(engine, asked)
    assert sum(one.stats.num_failures for one in made) == 0
    return paths.ends


def num_misses(ends):
    """Verdicts that end above a child of their node: the drafter was wrong, once it must not be."""
    return sum(num_below > 0 for num_below, _, _ in ends)


@pytest.mark.parametrize(("shape", "rule"), OF_ITSELF, ids=lambda one: one)
def test_given_the_target_as_its_own_drafter_then_it_is_never_wrong(places, shape, rule):
    with opened(places, ("lm:{target}", shape, rule)) as engine:
        ends = watched(engine)

    assert num_misses(ends) == 0
    assert is_measured(shape, rule) or sum(num_accepted for _, num_accepted, _ in ends) > 0
    if shape.startswith("chain") or "x" in shape:  # elsewhere the deepest path may be a hedge
        assert all(num_accepted == depth for _, num_accepted, depth in ends)


@dataclasses.dataclass
class KeepsOther:
    """A backend that keeps the K/V of other nodes than it is told to."""

    backend: object

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def commit(self, batch, paths):
        starts = batch.row_starts.tolist()
        rows = [batch.parents[start:end] for start, end in itertools.pairwise(starts)]
        self.backend.commit(batch, list(map(beside, rows, paths)))

    def keep(self, plan, row, path):
        return self.backend.keep(plan, row, path[-1:] * len(path))


def beside(parents, path):
    """The path, but to a sibling of its last node where there is one."""
    if len(path) < 2:
        return path
    siblings = np.flatnonzero(parents == parents[path[-1]]).tolist()
    return [*path[:-1], siblings[siblings.index(path[-1]) - 1]]


@pytest.mark.parametrize("rule", ["match", "rejection"])
def test_control_given_a_drafter_that_keeps_other_k_v_then_it_is_wrong(places, rule):
    with opened(places, ("lm:{target}", "tree:3x2x1", rule)) as engine:
        drafter = engine._parts.drafter._drafter
        drafter._backend = KeepsOther(drafter._backend)
        ends = watched(engine)

    assert num_misses(ends) > len(ends) // 10


# --- the same comparisons must catch what is wrong ------------------------------------------------


def test_control_given_a_target_that_keeps_other_k_v_then_tokens_differ(places, plain):
    with opened(places, ("lm", "tree:3x2x1", "match")) as engine:
        with_parts(engine, target=KeepsOther(engine._parts.target))
        made = completions(engine, requests())

    assert len(differences(plain(), outcomes(made))) > len(made) // 4


@dataclasses.dataclass(frozen=True)
class LastChild:
    """Keeps the last child of the pending token, whatever the target says."""

    rule: object

    @property
    def reads(self):
        return self.rule.reads

    def judge(self, draft, target, noise):
        below = np.flatnonzero(draft.tree.parents == 0)
        if not len(below):
            return self.rule.judge(draft, target, noise)
        node = int(below[-1])
        bonus = target[node] if self.reads is Reads.CHOICES else np.argmax(target[node])
        return Verdict((0, node), int(bonus))


@pytest.mark.parametrize(
    ("shape", "rule"),
    [("chain:4", Match()), ("tree:16", Match()), ("tree:5", Rejection())],
    ids=str,
)
def test_control_given_a_rule_that_keeps_what_it_likes_then_tokens_differ(
    places, plain, shape, rule
):
    name = "match" if rule == Match() else "rejection"
    with opened(places, ("lm", shape, name)) as engine:
        with_parts(engine, rule=LastChild(rule))
        found = differences(plain(), outcomes(completions(engine, requests())))

    greedy = [place for place, (_, params) in enumerate(requests()) if params.temperature == 0]
    assert set(greedy) & set(found)
    assert len(found) > len(requests()) // 2


@pytest.mark.parametrize(
    "words",
    [
        ("router(lookup,lm)", "chain:4", "rejection"),
        ("lm", "auto", "block"),
        ("lm", "tree:auto", "traversal"),
        ("lm", "chain:auto", "kseq"),
    ],
    ids=named,
)
def test_given_a_clock_that_jumps_then_sampled_tokens_do_not(places, monkeypatch, words):
    # who drafts, and how much, may not hang on seconds where tokens hang on the draft
    asked = [
        (prompt_of(20, seed), SamplingParams(temperature=1.0, seed=seed, max_tokens=60))
        for seed in range(4)
    ]
    made = []
    for seed in range(3):
        clock = random.Random(seed)
        monkeypatch.setattr("forerun.stats.perf_counter", clock.random)
        with opened(places, words) as engine:
            made.append(outcomes(completions(engine, asked)))

    assert made[0] == made[1] == made[2]


# --- how much was proved --------------------------------------------------------------------------


def test_given_the_table_of_drafters_then_each_is_in_the_product():
    words = "".join(DRAFTERS)

    assert [name for name in drafting._BUILDERS if name not in words] == []


def test_given_all_of_it_then_so_many_compositions_are_proved(capsys):
    overlapping = {*overlapped(("match",)), *OVERLAPPED_SAMPLED}
    if len(PROVED) < len(allowed()) + len(overlapping):
        pytest.skip("only a part of the product was run")

    assert {*allowed(), *overlapping} == PROVED
    assert (len(allowed()), len(overlapping)) == (NUM_COMPOSITIONS, NUM_OVERLAPPED)
    assert all(num > 0 for drafter, num in ACCEPTED.items() if drafter != "none")
    with capsys.disabled():
        sys.stdout.write(f"\n{len(PROVED)} compositions proved end to end\n")
