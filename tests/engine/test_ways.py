"""What requests may have built, how much of it is held, and what is refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import threading

import pytest

from engine.conftest import HAS_NATIVE, KV_POSITIONS
from engine.service_parts import Held, Listener, around, is_whole, jobs
from engine.ways_parts import asked_of, write_model
from forerun import Engine, SamplingParams, Speculation
from forerun.engine.service import Service, ServiceLimits
from forerun.engine.ways import MOST_BUILDING, wanted_of
from forerun.errors import IncompatibleSpeculation, OptionError, QueueFull

if not HAS_NATIVE:
    pytest.skip("the native core is not built", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory, target_dir, lm_name):
    return write_model(tmp_path_factory.mktemp("ways"), target_dir, lm_name.removeprefix("lm:"))


@pytest.fixture
def engine(model):
    with Engine(
        model, speculate=Speculation("lookup", "chain:4"), threads=1, kv_positions=KV_POSITIONS,
        backend="native",
    ) as engine:  # fmt: skip
        yield engine


def job(text):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    return asked_of(dataclasses.replace(jobs(1)[0], prompt=(5, 6, 7), params=params), text)


def served(service, text):
    listener = Listener()
    service.submit(job(text), listener)
    return listener.completion


PLACES = [
    ("lookup:/etc", "place of files"),
    ("lm:/etc", "place of files"),
    ("dspark:/etc", "place of files"),
    ("router(lookup,lm:/etc)", "place of files"),
    ("nested(lookup:/etc,chain:2,match)", "place of files"),
    ("prediction:/etc/passwd", "field prediction"),
    ("lookup + tree:/etc/tree.json", "tree in a file"),
    ("nested(lookup,tree:x.json,match)", "tree in a file"),
    ("lookup + chain:65", "at most 64 nodes"),
    ("nested(lookup,chain:65,match)", "at most 64 nodes"),
    ("router(lookup,lm,exit:1,dspark,eagle3)", "at most 4 drafters"),
    ("router(lm,lookup,lm)", "named twice"),
    ("lm + ahead:4", "lanes"),
    ("lm + parallel", "lanes"),
]


@pytest.mark.parametrize(("text", "reason"), PLACES, ids=[text for text, _ in PLACES])
def test_given_a_place_or_too_much_then_it_is_refused_before_anything_is_opened(
    engine, text, reason
):
    with Service(engine) as service, pytest.raises(OptionError, match=reason):
        served(service, text)
    assert is_whole(engine)


def test_given_what_does_not_fit_then_the_error_tells_no_path(engine, model):
    for text in ("exit:9", "dflash + tree:3 + block", "nested(lm,chain:2,match)"):
        with Service(engine) as service, pytest.raises(OptionError) as caught:
            served(service, text)
        assert str(model) not in str(caught.value)
        assert "/" not in str(caught.value)


@pytest.mark.parametrize("text", ["lookup + chain:4", "chain:4", "match", "lookup", "sequential"])
def test_given_the_engine_s_own_way_by_name_then_nothing_is_built(engine, text):
    own = engine.inside().parts

    assert wanted_of(Speculation.parse(text), own) is None


def test_given_what_is_not_named_then_it_is_as_the_engine_has_it(engine):
    wanted = wanted_of(Speculation.parse("tree:8"), engine.inside().parts)

    assert wanted.drafter.name == "lookup"
    assert (wanted.shape.kind, wanted.shape.size) == ("tree", 8)
    assert wanted.rule == "match"


def test_given_an_engine_whose_drafter_lies_elsewhere_then_its_name_means_that_one(model, lm_name):
    with Engine(
        model, speculate=Speculation(lm_name, "chain:4", "rejection"), threads=1,
        kv_positions=KV_POSITIONS, backend="native",
    ) as engine:  # fmt: skip
        own = engine.inside().parts
        same = wanted_of(Speculation.parse("lm + chain:4"), own)
        other = wanted_of(Speculation.parse("router(lm,lookup) + match"), own)

    assert same is None
    assert other.drafter.parts[0] == own.composition.drafter
    assert other.rule == "match"


def test_given_more_compositions_than_are_held_then_those_nobody_uses_go_first(engine):
    with Service(engine, ServiceLimits(max_compositions=2)) as service:
        for text in ("chain:1", "chain:2", "chain:1", "chain:3"):
            served(service, text)
        held = [one.shape.size for one in service._ways._ways]
        num = service.load().num_compositions
        closed = list(service._ways._ways.values())
    assert held == [1, 3]  # 2 was used least recently
    assert num == 2
    assert service._ways.num_built == 0
    assert len(closed) == 2


def test_given_all_that_are_held_are_in_use_then_others_are_told_to_come_again(engine):
    target = around(engine, Held)
    with Service(engine, ServiceLimits(max_compositions=1)) as service:
        first = Listener()
        service.submit(job("chain:1"), first)
        with pytest.raises(QueueFull) as caught:
            service.submit(job("chain:2"), Listener())
        second = Listener()
        service.submit(job("chain:1"), second)  # the one that is held
        target.gate.set()
        assert first.completion.finish_reason == second.completion.finish_reason == "length"
        assert caught.value.retry_after_s > 0
        assert served(service, "chain:2").finish_reason == "length"


def test_given_a_server_that_holds_none_then_only_its_own_way_and_none_are_taken(engine):
    with Service(engine, ServiceLimits(max_compositions=0)) as service:
        with pytest.raises(OptionError, match="its own way"):
            served(service, "chain:2")
        assert served(service, "chain:4").finish_reason == "length"
        assert served(service, "off").finish_reason == "length"


def test_given_a_request_that_is_refused_or_leaves_then_its_composition_is_given_back(engine):
    target = around(engine, Held)
    limits = ServiceLimits(max_compositions=1, max_waiting=1, max_rows=1)
    with Service(engine, limits) as service:
        listeners, handles = [], []
        for _ in range(5):  # one runs, one waits, the others are refused
            listener = Listener()
            with contextlib.suppress(QueueFull):
                handles.append(service.submit(job("chain:2"), listener))
                listeners.append(listener)
        assert len(handles) < 5
        for handle in handles:
            handle.cancel()
        target.gate.set()
        assert all(one.completion is not None for one in listeners)
        assert served(service, "chain:3").finish_reason == "length"  # took the place of the other


def test_given_many_at_once_then_a_composition_is_built_once_and_few_wait_for_it(engine):
    built, told, can_go_on = [], [], threading.Event()
    with Service(engine) as service:
        build = service._ways._build

        def slowly(wanted):
            built.append(wanted)
            assert can_go_on.wait(300)
            return build(wanted)

        def ask():
            try:
                told.append(served(service, "lm + chain:3").finish_reason)
            except QueueFull:
                told.append("full")
                if told.count("full") == 6 - MOST_BUILDING:
                    can_go_on.set()

        service._ways._build = slowly
        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told.append(served(service, "lm + chain:3").finish_reason)
    assert len(built) == 1
    assert sorted(told) == ["full"] * (6 - MOST_BUILDING) + ["length"] * (MOST_BUILDING + 1)


def test_given_a_drafter_that_was_switched_off_then_the_next_request_gets_a_new_one(engine):
    with Service(engine) as service:
        served(service, "lm + chain:3")
        way = next(iter(service._ways._ways.values()))
        way.parts.drafter.inject_faults(3)
        params = SamplingParams(max_tokens=20, ignore_eos=True)
        listener = Listener()
        service.submit(dataclasses.replace(job("lm + chain:3"), params=params), listener)
        assert listener.completion.stats.num_failures == 3
        assert way.parts.drafter.is_disabled
        assert listener.completion.drafter_state == "disabled"
        assert served(service, "lm + chain:3").stats.num_drafted > 0
        assert service.load().drafter == "healthy"


@pytest.mark.parametrize(
    "text", ["lookup lm", "lm + lookup", "chain:2 + chain:3", "what", "lm +", ""]
)
def test_given_words_that_are_no_composition_then_they_are_refused(text):
    with pytest.raises(OptionError):
        Speculation.parse(text)


def test_given_a_rule_without_a_law_for_it_then_a_prediction_is_refused(engine):
    from forerun.drafters.prediction import RunIndex

    asked = dataclasses.replace(job("lm + chain:3 + kseq"), expected=RunIndex([1, 2]))
    with Service(engine) as service, pytest.raises(IncompatibleSpeculation, match="prediction"):
        service.submit(asked, Listener())
