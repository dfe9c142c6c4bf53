"""Compositions of one engine that draft with the same model: its weights are in memory once."""

from __future__ import annotations

import dataclasses
import gc
from collections import defaultdict
from weakref import WeakValueDictionary

import pytest

from engine.conftest import HAS_NATIVE, KV_POSITIONS
from engine.service_parts import Listener, jobs
from engine.ways_parts import asked_of, counts, outcomes, write_model
from forerun import Engine, SamplingParams, Speculation
from forerun.backends.sharing import OpenModels
from forerun.engine.service import Service, ServiceLimits

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)

LIMITS = ServiceLimits(max_compositions=8)
# Two ways or more for each model that is packed, and one that has two of them.
TEXTS = (
    "lm + chain:2",
    "lm + tree:6",
    "lm + chain:3 + rejection",
    "dspark + chain:3",
    "dspark + tree:5",
    "eagle3 + chain:2",
    "eagle3 + tree:3x2x1",
    "router(lm,dspark) + chain:4",
)


class NothingKept(WeakValueDictionary):
    """Weights that nobody finds again: every backend packs for itself."""

    def get(self, key, default=None):
        return default


@pytest.fixture(scope="module")
def model(tmp_path_factory, target_dir, lm_name):
    return write_model(tmp_path_factory.mktemp("shared"), target_dir, lm_name.removeprefix("lm:"))


def opened(model, speculate="none", *, shares=True):
    engine = Engine(
        model, speculate=Speculation.parse(speculate), threads=1, kv_positions=KV_POSITIONS,
        backend="native",
    )  # fmt: skip
    if not shares:
        engine._models._weights = NothingKept()
    return engine


def asked(text, seed=0):
    params = SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.8, seed=seed)
    return asked_of(dataclasses.replace(jobs(1)[0], prompt=(5, 6, 7, 5, 6), params=params), text)


def served(service, text, seed=0):
    listener = Listener()
    service.submit(asked(text, seed), listener)
    return listener.completion


def grown(engine, texts=TEXTS):
    """What is drafted and said in these ways, one after another, and by how many bytes of weights
    the first way of each model, and each later one, have made the engine larger."""
    completions, added = [], []
    with Service(engine, LIMITS) as service:
        for text in texts:
            before = engine.weight_bytes
            completions.append(served(service, text))
            added.append(engine.weight_bytes - before)
    return completions, dict(zip(texts, added, strict=True))


def bytes_alone(model, name):
    """Bytes of a drafter's weights: what an engine with it has beside its target's."""
    with opened(model, f"{name} + chain:2") as drafts, opened(model) as plain:
        return drafts.weight_bytes - plain.weight_bytes


def test_given_many_ways_then_each_model_is_packed_by_the_first_that_drafts_with_it(model):
    sizes = {name: bytes_alone(model, name) for name in ("lm", "dspark", "eagle3")}

    with opened(model) as engine:
        _, added = grown(engine)

    assert min(sizes.values()) > 0
    firsts = {"lm + chain:2": "lm", "dspark + chain:3": "dspark", "eagle3 + chain:2": "eagle3"}
    assert added == {text: sizes[firsts[text]] if text in firsts else 0 for text in TEXTS}


def test_given_weights_that_nobody_finds_again_then_each_way_has_its_own(model):
    # the control of the test above
    with opened(model, shares=False) as engine:
        _, added = grown(engine)

    assert min(added.values()) > 0
    assert added["router(lm,dspark) + chain:4"] == added["lm + tree:6"] + added["dspark + tree:5"]


def test_given_shared_weights_then_every_draft_and_token_is_as_without(model):
    with opened(model) as engine:
        shared, _ = grown(engine)
    with opened(model, shares=False) as engine:
        apart, _ = grown(engine)

    assert outcomes(shared) == outcomes(apart)
    assert counts(shared) == counts(apart)
    assert all(one.stats.num_drafted > 0 for one in shared)


def test_given_a_way_that_is_closed_then_those_on_the_same_weights_go_on(model):
    # one way is held at a time: each request closes the way of the one before
    with opened(model, "lm + chain:4") as engine:
        whole = engine.weight_bytes
        with Service(engine, ServiceLimits(max_compositions=1)) as service:
            found = [served(service, text) for text in (None, "lm + chain:2", "lm + tree:6", None)]
            held = engine.weight_bytes

    assert held == whole
    assert outcomes(found[:1]) == outcomes(found[3:])
    assert counts(found[:1]) == counts(found[3:])
    assert counts(found[:1])[0][1] > 0


def test_given_the_last_way_is_closed_then_the_memory_goes(model):
    with opened(model) as engine:
        target = engine.weight_bytes
        grown(engine)  # whose service closes all ways
        gc.collect()
        assert engine.weight_bytes == target
    gc.collect()
    assert engine.weight_bytes == 0


def test_given_the_engine_s_own_drafter_then_ways_beside_it_read_its_weights(model):
    with opened(model, "lm + chain:4") as engine:
        _, added = grown(engine, ("lm + chain:2", "router(lm,lookup) + chain:3"))

    assert set(added.values()) == {0}


def test_given_k_v_memory_for_less_text_then_weights_are_shared_all_the_same(model, monkeypatch):
    # ways beside the engine's own have less K/V memory, which says nothing of weights
    asked_for = defaultdict(list)
    model_of = OpenModels.model

    def noted(models, checkpoint, options, cores):
        asked_for[checkpoint.directory.name].append(options.kv_positions)
        return model_of(models, checkpoint, options, cores)

    monkeypatch.setattr(OpenModels, "model", noted)
    with Engine(
        model, speculate=Speculation.parse("lm + chain:4"), threads=1, backend="native"
    ) as engine:
        _, added = grown(engine, ("lm + chain:2",))

    assert asked_for["lm"][0] is None
    assert asked_for["lm"][1] is not None
    assert set(added.values()) == {0}
