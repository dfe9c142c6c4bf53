"""What drafting ahead holds is given back: K/V blocks, texts, threads, whatever became of requests.

The lane gives back in its own time, so what is looked at is a lane that has caught up.
"""

from __future__ import annotations

import gc

import pytest

from engine.ahead_parts import (
    LOUD,
    Faulty,
    broken,
    caught_up,
    lane_threads,
    overlapped_of,
)
from engine.conftest import HAS_NATIVE
from engine.lattice import SCHEDULES, completions, opened, prompt_of, requests
from forerun import SamplingParams
from forerun.errors import CapacityError, EngineClosed

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")
DRAFTERS = (
    "lm",
    "lm:{other}",
    "lookup",
    "dspark:{dspark}",
    "eagle3:{eagle3}",
    "nested(lm,chain:2,match)",
    "router(dspark:{dspark},lookup,lm)",
)
LONG = SamplingParams(max_tokens=200, ignore_eos=True)


def slots_in(drafter):
    """Every table of K/V blocks that a drafter holds, wherever it keeps it."""
    found, seen, waiting = [], set(), [drafter]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one).__name__ == "Slots":
            found.append(one)
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, Faulty):
            waiting.append(one.inner)
        elif type(one).__module__.startswith("forerun.drafters"):
            names = getattr(one, "__dict__", None) or getattr(one, "__slots__", ())
            waiting += [getattr(one, name, None) for name in names]
    return found


def assert_nothing_is_held(engine):
    caught_up(engine)
    overlapped = overlapped_of(engine)
    assert engine._parts.slots.num_free == engine._parts.slots.num_blocks
    for slots in slots_in(overlapped._drafter):
        assert slots.num_free == slots.num_blocks
    assert overlapped._rows == {}
    assert overlapped._forecasts == {}
    assert overlapped._side._texts == {}
    assert overlapped._side.refused == set()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_given_requests_of_all_kinds_then_nothing_is_left_behind(places, drafter, schedule):
    with opened(places, (drafter, "chain:4", "match", schedule)) as engine:
        for _ in range(2):
            completions(engine, requests())
        for num_pieces in (0, 1, 3):
            cancelled = engine.stream(prompt_of(40, num_pieces), LONG)
            for _ in range(num_pieces):
                next(cancelled)
            cancelled.close()
        with pytest.raises(CapacityError):
            engine.generate(prompt_of(5000, 1))

        assert_nothing_is_held(engine)
    assert lane_threads() == []


@pytest.mark.parametrize("drafter", ["lm", "lm:{other}", "nested(lm,chain:2,match)"])
def test_given_a_stream_that_is_dropped_in_the_middle_of_a_forecast_then_it_is_forgotten(
    places, drafter
):
    with opened(places, (drafter, "chain:4", "match", "ahead:24")) as engine:
        for at in range(20):
            stream = engine.stream(prompt_of(10 + at, at), LONG)
            next(stream)
            next(stream)
            del stream
            gc.collect()

        assert_nothing_is_held(engine)


@pytest.mark.parametrize("rule", ["match", "rejection"])
@pytest.mark.parametrize("name", LOUD)
def test_given_faults_while_requests_come_and_go_then_nothing_is_left_behind(places, name, rule):
    # what a dying thread was asked to forget is forgotten by the next one
    with opened(places, ("lm", "chain:4", rule, "ahead:8")) as engine:
        drafter = broken(engine)
        for at in range(4):
            drafter.breaks(LOUD[name])
            stream = engine.stream(prompt_of(10 + at, at), LONG)
            for _ in range(1 + at):
                next(stream)
            stream.close()
        completions(engine, [(prompt_of(9, 1), LONG)] * 2)  # longer than any rest

        assert_nothing_is_held(engine)
    assert lane_threads() == []


def test_given_a_drafter_without_room_then_a_row_is_decoded_plainly_and_nothing_is_left(places):
    asked = [(prompt_of(100, at), SamplingParams(max_tokens=30, seed=at)) for at in range(6)]
    with opened(places, ("none", "auto", "match")) as engine:
        plain = [one.token_ids for one in completions(engine, asked)]
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        slots = overlapped_of(engine)._drafter._slots
        taken = [-1 - at for at in range(3)]  # somebody else has most of the drafter's memory
        for name in taken:
            slots.reserve(name, 32 * (slots.num_blocks // 3 - 2))

        made = completions(engine, asked)

        assert [one.token_ids for one in made] == plain
        assert sum(one.stats.num_failures for one in made) == 0
        for name in taken:
            slots.release(name)
        assert_nothing_is_held(engine)


def test_given_a_stream_left_open_then_closing_the_engine_ends_the_lane(places):
    engine = opened(places, ("lm", "chain:4", "match", "ahead:8"))
    stream = engine.stream(prompt_of(20, 1), LONG)
    next(stream)

    engine.close()
    engine.close()

    assert lane_threads() == []
    with pytest.raises(EngineClosed):
        next(stream)


def test_given_many_engines_then_no_thread_is_left_of_any(places):
    for _ in range(5):
        with opened(places, ("lm", "tree:5", "match", "ahead")) as engine:
            completions(engine, requests()[:3])
        with opened(places, ("lm", "tree:5", "match", "ahead")):
            """One that is never asked has no thread either."""

    assert lane_threads() == []


def test_control_given_a_lane_that_forgets_to_forget_then_it_is_seen(places):
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter = broken(engine)
        drafter.release = lambda sequence_id: None
        completions(engine, requests()[:3])

        with pytest.raises(AssertionError):
            assert_nothing_is_held(engine)
