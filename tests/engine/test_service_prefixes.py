"""What is kept of earlier texts is not read again, and changes no token of later ones."""

from __future__ import annotations

import dataclasses
import random

import pytest

from engine.conftest import HAS_NATIVE
from engine.service_parts import SAMPLING, Listener, alone, outcome, played, prompt_of
from forerun import SamplingParams
from forerun.backends.prefixes import Prefixes
from forerun.engine.service import Began, Job, Service
from forerun.protocols import BLOCK_LEN

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

COMPOSITIONS = (
    ("none", "chain:1"),
    ("lookup", "tree:6"),
    ("{lm}", "tree:8"),
    ("{lm}", "chain:3", "rejection"),
    ("dspark:{dspark}", "chain:4"),
    ("dspark:{dspark}", "tree:5", "traversal"),
    ("eagle3:{eagle3}", "tree:3x2x1"),
    ("exit:1", "chain:3"),
    ("{lm}", "chain:4", "match", "ahead:6"),
    ("dflash:{dflash}", "chain:4", "match", "ahead:6"),
)
IDS = ["-".join(words).replace(":{", " {") for words in COMPOSITIONS]


def related(num=30):
    """Requests whose prompts begin alike: three stems, cut and continued anywhere."""
    rng = random.Random(5)
    stems = [prompt_of(350, seed) for seed in range(3)]
    stems.append((*stems[0][BLOCK_LEN : 2 * BLOCK_LEN], *stems[0][:300]))  # the same blocks, moved
    asked = []
    for at in range(num):
        start = stems[at % 4][: rng.choice((30, 64, 65, 200, 256, 257, 350))]
        sampling = SAMPLING[at % len(SAMPLING)]
        params = SamplingParams(seed=at, max_tokens=rng.randrange(2, 40), **sampling)
        asked.append(Job((*start, *prompt_of(rng.choice((1, 40, 100)), at)), params))
    return asked


def began(listener):
    return next(event for event in listener.events if isinstance(event, Began))


@pytest.mark.parametrize("words", COMPOSITIONS, ids=IDS)
def test_given_texts_that_begin_alike_then_they_come_out_as_if_alone(opened, words):
    engine = opened(words)
    asked = related()
    expected = alone(engine, asked)

    with Service(engine) as service:
        first = played(service, asked, seed=1)
        again = played(service, asked, seed=2)
        load = service.load()

    for listeners in (first, again):
        assert [outcome(one.completion) for one in listeners] == expected
    cached = [began(one).num_cached for one in again]
    for job, num in zip(asked, cached, strict=True):
        assert num == (len(job.prompt) - 1) // BLOCK_LEN * BLOCK_LEN
    assert load.num_cached_tokens >= sum(cached)
    assert engine._parts.slots.num_free == engine._parts.slots.num_blocks


@pytest.mark.parametrize("words", COMPOSITIONS[2:5], ids=IDS[2:5])
def test_given_little_memory_then_what_is_kept_gives_way(opened, words):
    engine = opened(words, kv_positions=1024)
    asked = related()
    expected = alone(engine, asked)

    with Service(engine) as service:
        listeners = played(service, asked + asked, seed=1)
        assert [outcome(one.completion) for one in listeners] == expected * 2
        beside = alone(engine, asked[:3])
        assert 0 < service._prefixes.num_blocks <= 32

    assert beside == expected[:3]
    assert engine._parts.slots.num_free == engine._parts.slots.num_blocks


def test_given_drafters_on_features_then_a_kept_prefix_costs_them_nothing(opened):
    engine = opened(("dspark:{dspark}", "chain:4"))
    job = Job(prompt_of(300, 1), SamplingParams(max_tokens=40, ignore_eos=True))
    with Service(engine) as service:
        made = []
        for _ in range(2):
            listener = Listener()
            service.submit(job, listener)
            made.append((listener.completion.stats, began(listener).num_cached))

    (fresh, none), (cached, most) = made
    assert (none, most) == (0, 288)
    assert cached.num_drafted == fresh.num_drafted > 0
    assert cached.num_accepted == fresh.num_accepted


def test_given_another_partition_then_nothing_of_it_is_found(opened):
    engine = opened()
    job = Job(prompt_of(300, 1), SamplingParams(max_tokens=4), partition="one")
    with Service(engine) as service:
        found = []
        for partition in ("one", "two", "one", "two"):
            listener = Listener()
            service.submit(dataclasses.replace(job, partition=partition), listener)
            assert listener.completion
            found.append(began(listener).num_cached)

    assert found == [0, 0, 288, 288]


def test_given_an_answer_that_is_asked_about_then_it_is_not_read_again(opened):
    engine = opened(("{lm}", "tree:8"))
    with Service(engine) as service:
        first = Listener()
        prompt = prompt_of(40, 2)
        params = SamplingParams(max_tokens=80, ignore_eos=True, temperature=0.8, seed=4)
        service.submit(Job(prompt, params), first)
        text = (*prompt, *first.completion.token_ids, 65, 66)
        second = Listener()
        service.submit(Job(text, params), second)
        assert outcome(second.completion) == alone(engine, [Job(text, params)])[0]

    assert began(second).num_cached == 96  # 120 tokens, of which 119 have K/V


def test_given_many_choices_of_one_prompt_then_it_is_read_about_once(opened):
    engine = opened()
    params = [SamplingParams(max_tokens=4, choice=at, temperature=1.0, seed=1) for at in range(6)]
    asked = [Job(prompt_of(450, 1), one) for one in params]
    expected = alone(engine, asked)
    counted = Counted(engine._parts.target)
    engine._parts = dataclasses.replace(engine._parts, target=counted)

    with Service(engine) as service:
        listeners = [Listener() for _ in asked]
        for job, listener in zip(asked, listeners, strict=True):
            service.submit(job, listener)
        assert [outcome(one.completion) for one in listeners] == expected

    assert counted.num_nodes < 3 * 450


class Counted:
    """A target that counts the nodes of its passes."""

    def __init__(self, target):
        self._target = target
        self.num_nodes = 0

    def __getattr__(self, name):
        return getattr(self._target, name)

    def forward(self, batch):
        self.num_nodes += len(batch.token_ids)
        return self._target.forward(batch)


class OwnTokensOnly(Prefixes):
    """The control: finds a block by its own tokens, whatever came before them."""

    def _add(self, parent, tokens, block):
        node = super()._add(0, tokens, block)
        node.number = 0
        return node

    def _path(self, partition, tokens):
        self._roots[partition] = 0
        return super()._path(partition, tokens)


def test_given_prefixes_that_confuse_texts_then_the_comparison_sees_it(opened, monkeypatch):
    monkeypatch.setattr("forerun.engine.service.Prefixes", OwnTokensOnly)
    engine = opened()
    asked = related()
    expected = alone(engine, asked)

    with Service(engine) as service:
        listeners = played(service, asked, seed=1)

    assert [outcome(one.completion) for one in listeners] != expected
