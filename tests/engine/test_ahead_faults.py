"""A drafter that breaks while the target verifies: nothing is lost but speed, and not for long.

Each fault is injected behind a real drafter, on the lane's real thread. Whatever it does, the text
is that of plain decoding; how long anybody waits is counted in rounds and calls, not in seconds.
"""

from __future__ import annotations

import dataclasses
import logging

import pytest

from engine.ahead_parts import (
    LOUD,
    SILENT,
    SOON_S,
    broken,
    garbage,
    killed,
    lane_sums,
    lane_threads,
    late_by,
    overlapped_of,
    raises,
    that_stops,
)
from engine.conftest import HAS_NATIVE
from engine.lattice import completions, differences, opened, outcomes, prompt_of
from engine.test_lattice import num_misses
from engine.test_lattice import watched as watched_paths
from forerun import SamplingParams
from forerun.drafters import overlapped as overlapped_module
from forerun.drafters.overlapped import Overlapped

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")
SHAPES = ("chain:4", "tree:5")
FIRST_REST = 8  # rounds


def asked(num_rows=3, max_tokens=60):
    """Requests that go on for a while, at three temperatures."""
    return [
        (
            prompt_of(20 + 7 * at, at),
            SamplingParams(
                temperature=(0.0, 0.7, 1.0)[at % 3], seed=at, max_tokens=max_tokens + at,
                ignore_eos=True,
            ),
        )
        for at in range(num_rows)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(places):
    with opened(places, ("none", "auto", "match")) as engine:
        return [outcomes(completions(engine, [one]))[0] for one in asked()]


@pytest.fixture
def lines(caplog):
    """The lines that a user would see."""
    caplog.set_level(logging.WARNING, "forerun")
    return Lines(caplog)


@dataclasses.dataclass
class Lines:
    caplog: pytest.LogCaptureFixture

    def __iter__(self):
        return iter(self.caplog.messages)

    def __len__(self):
        return len(self.caplog.messages)

    def clear(self):
        self.caplog.clear()


class Rounds:
    """Calls `then` once `num` rounds have gone by."""

    def __init__(self, num, then):
        self.num_left, self.then = num, then

    def saw(self, rows, drafts, said, starts, verdicts):
        """Nothing is kept."""

    def settled(self, stats):
        self.num_left -= 1
        if self.num_left == 0:
            self.then()


def watched(engine, num, then):
    engine._parts = dataclasses.replace(engine._parts, witness=Rounds(num, then))


# --- one fault, and what follows ------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOUD)
def test_given_a_fault_then_one_line_a_rest_and_the_drafter_is_back(
    places, expected, lines, name, shape
):
    with opened(places, ("lm", shape, "match", "ahead:8")) as engine:
        drafter = broken(engine)
        healthy = lane_sums(completions(engine, asked()))

        watched(engine, 3, lambda: drafter.breaks(LOUD[name]))
        with_fault = completions(engine, asked())
        after = completions(engine, asked())

        assert differences(expected, outcomes(with_fault)) == []
        assert differences(expected, outcomes(after)) == []
        assert len(lines) == 1
        assert f"rests for {FIRST_REST} rounds" in next(iter(lines))
        assert not engine.drafter_is_disabled
    assert lane_sums(with_fault)["hits"] > 0  # in the same requests, behind the rest
    assert lane_sums(after)["hits"] >= 0.8 * healthy["hits"]
    assert lane_threads() == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SILENT)
def test_given_forecasts_of_no_use_then_they_are_no_hits_and_nobody_fails(
    places, expected, lines, name, shape
):
    with opened(places, ("lm", shape, "match", "ahead:8")) as engine:
        drafter = broken(engine)
        healthy = lane_sums(completions(engine, asked()))

        drafter.breaks(SILENT[name], 1000)
        with_fault = completions(engine, asked())
        drafter.num_left = 0
        after = completions(engine, asked())

        assert differences(expected, outcomes(with_fault)) == []
        assert differences(expected, outcomes(after)) == []
        assert all("outcomes was in its forecasts" in line for line in lines)
    assert lane_sums(after)["hits"] >= 0.8 * healthy["hits"]


@pytest.mark.parametrize("fruitless", [32, 10_000], ids=["as it is", "never tired of it"])
def test_given_forecasts_that_never_hold_what_comes_then_the_drafter_rests_ever_longer(
    places, expected, lines, monkeypatch, fruitless
):
    """The control is a lane that goes on for nothing."""
    monkeypatch.setattr(overlapped_module, "_FRUITLESS", fruitless)
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter = broken(engine)
        drafter.breaks(garbage, 1000)
        made = [completions(engine, asked()) for _ in range(3)]
        assert all(differences(expected, outcomes(one)) == [] for one in made)

    rests = [f"rests for {FIRST_REST * 2**at} rounds" for at in range(len(lines))]
    assert all(rest in line for rest, line in zip(rests, lines, strict=True))
    assert (len(lines) >= 2) is (fruitless == 32)


@pytest.mark.parametrize("num_late", [1, 2, 5])
def test_given_forecasts_of_earlier_rounds_then_they_are_compared_with_the_text(
    places, expected, lines, num_late
):
    # all that was kept since is asked of them, so one that comes late is of less use, never wrong
    with opened(places, ("lm:{target}", "chain:4", "match", "ahead:8")) as engine:
        broken(engine)
        late = late_by(engine, num_late)
        made = outcomes(completions(engine, asked()))
        ends = watched_paths(engine)

    assert differences(expected, made) == []
    assert late.num_late_answers > 10
    assert num_misses(ends) == 0
    assert all("outcomes was in its forecasts" in line for line in lines)


@pytest.mark.parametrize("rule", ["rejection", "traversal"])
@pytest.mark.parametrize("name", ["raises", "kills its thread", "NaN", "too few"])
def test_given_a_fault_under_a_sampled_rule_then_greedy_rows_are_plain_and_all_rows_end(
    places, expected, lines, name, rule
):
    with opened(places, ("lm", "chain:4", rule, "ahead:8")) as engine:
        drafter = broken(engine)
        watched(engine, 3, lambda: drafter.breaks(LOUD[name]))
        made = completions(engine, asked())
        after = completions(engine, asked())

    with opened(places, ("lm", "chain:4", rule)) as engine:
        in_between = outcomes(completions(engine, asked()))
    assert outcomes(made)[0] == expected[0]
    assert [len(one.token_ids) for one in made] == [60, 61, 62]
    assert differences(in_between, outcomes(after)) == []
    assert len(lines) == 1


def test_given_a_drafter_that_only_fails_then_it_rests_twice_as_long_each_time(places, lines):
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter = broken(engine)
        drafter.breaks(raises, 1000)

        [made] = completions(engine, asked(1, max_tokens=300))

        num_rounds = made.stats.num_rounds
        rests = [int(line.split("rests for ")[1].split()[0]) for line in lines]
        assert rests == [FIRST_REST * 2**at for at in range(len(rests))]
        assert drafter.num_foreseen == len(rests) <= 6
        assert sum(rests[:-1]) <= num_rounds
        assert not engine.drafter_is_disabled


def test_given_a_drafter_that_recovered_then_its_next_rest_is_short_again(places, lines):
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter = broken(engine)
        for _ in range(3):
            drafter.breaks(raises)
            completions(engine, asked(1, max_tokens=100))

    assert len(lines) == 3
    assert all(f"rests for {FIRST_REST} rounds" in line for line in lines)


def test_given_a_thread_that_dies_then_another_takes_its_place(places, expected):
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter = broken(engine)
        for num_deaths in range(1, 4):
            drafter.breaks(killed)
            assert differences(expected, outcomes(completions(engine, asked()))) == []
            assert overlapped_of(engine)._lane.num_starts == 1 + num_deaths


@pytest.mark.parametrize("name", ["raises", "kills its thread"])
def test_given_a_drafter_that_cannot_be_told_then_the_same_holds(places, expected, lines, name):
    # a fault where a commit is observed, and where a sequence is admitted or released
    for verb in ("observe", "admit", "release"):
        lines.clear()
        with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
            drafter = broken(engine)
            usual = getattr(drafter, verb)

            def once(*arguments, verb=verb, usual=usual, drafter=drafter):
                setattr(drafter, verb, usual)
                LOUD[name]([], [])

            setattr(drafter, verb, once)
            made = [outcomes(completions(engine, asked())) for _ in range(3)]
            last = lane_sums(completions(engine, asked()))

        assert all(differences(expected, one) == [] for one in made)
        assert len(lines) == 1, verb
        assert last["hits"] > 0, verb


# --- a drafter that stops -------------------------------------------------------------------------


def test_given_a_drafter_that_stops_then_it_is_waited_for_once_and_used_when_it_is_back(
    places, expected, lines
):
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter, stopped = that_stops(engine)
        waits = overlapped_of(engine)._waits
        healthy = lane_sums(completions(engine, asked()))
        drafter.breaks(stopped)
        waits.num_waits = 0
        num_waits = []

        def comes_back():
            num_waits.append(waits.num_waits)
            stopped.goes_on()

        watched(engine, 25, comes_back)
        made = completions(engine, asked())
        after = completions(engine, asked())

    assert stopped.num_stops == 1
    assert num_waits == [2]  # in 25 rounds: for a draft before it stopped, and where it stopped
    assert differences(expected, outcomes(made)) == []
    assert differences(expected, outcomes(after)) == []
    assert lane_sums(made)["late"] > 0
    assert lane_sums(after)["hits"] >= 0.8 * healthy["hits"]
    assert lane_threads() == []


def test_given_a_drafter_that_stops_for_long_then_one_line_says_so(places, expected, lines):
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter, stopped = that_stops(engine)
        drafter.breaks(stopped)
        watched(engine, 40, stopped.goes_on)
        made = completions(engine, asked())

        assert differences(expected, outcomes(made)) == []
    assert ["no word of the drafter" in line for line in lines] == [True]


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_given_a_drafter_that_stops_under_a_sampled_rule_then_it_rests(
    places, expected, lines, rule
):
    # its draws are needed, so it is waited for longer, but not round by round
    with opened(places, ("lm", "chain:4", rule, "ahead:8")) as engine:
        drafter, stopped = that_stops(engine)
        healthy = lane_sums(completions(engine, asked()))
        drafter.breaks(stopped)
        watched(engine, 20, stopped.goes_on)

        made = completions(engine, asked(max_tokens=80))
        after = lane_sums(completions(engine, asked()))

    assert made[0].token_ids[:60] == expected[0][0]
    rests = [int(line.split("rests for ")[1].split()[0]) for line in lines if "rests" in line]
    assert rests == [FIRST_REST, 2 * FIRST_REST]  # for the job that stopped, and for one behind it
    assert after["hits"] >= 0.8 * healthy["hits"] > 0


def test_given_a_drafter_that_never_comes_back_then_closing_does_not_hang(
    places, expected, lines, monkeypatch
):
    monkeypatch.setattr(overlapped_module, "_CLOSING_S", 0.01)
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter, stopped = that_stops(engine)
        drafter.breaks(stopped)
        assert differences(expected, outcomes(completions(engine, asked()))) == []

    assert stopped.num_stops == 1
    assert any("the drafter's lane does not end" in line for line in lines)
    stopped.goes_on()
    for thread in lane_threads():
        thread.join(SOON_S)
    assert lane_threads() == []


@pytest.mark.parametrize("stops", [True, False])
def test_control_given_a_drafter_that_does_not_stop_then_the_same_clock_makes_none_late(
    places, lines, stops
):
    with opened(places, ("lm", "chain:4", "match", "ahead:8")) as engine:
        drafter, stopped = that_stops(engine)
        drafter.breaks(stopped, num_calls=int(stops))
        watched(engine, 25, stopped.goes_on)
        lane = lane_sums(completions(engine, asked()))

    assert stopped.num_stops == stops
    assert (lane["late"] == 0) is not stops
    assert (len(lines) == 0) is not stops


# --- the same proofs must catch a lane that is trusted --------------------------------------------


class Trusting(Overlapped):
    """Takes whatever was prepared first, for whichever outcome."""

    def _prepared(self, row, forecast):
        if forecast is None or row.max_drafted < 1:
            return super()._prepared(row, forecast)
        guess = forecast.num_verified
        if guess >= len(forecast.grown.tree):
            return super()._prepared(row, forecast)
        path = forecast.grown.tree.path(guess)[1:]
        pretended = dataclasses.replace(forecast, version=len(row.tokens) - len(path))
        tokens = [*row.tokens[: pretended.version], *forecast.grown.tree.tokens[path].tolist()]
        draft = super()._prepared(dataclasses.replace(row, tokens=tokens), pretended)
        if draft is None:
            return None
        tree = draft.tree
        tree.tokens[0] = row.tokens[-1]
        return draft


def test_control_given_a_lane_that_compares_no_text_then_sampled_tokens_differ(places):
    words = ("lm", "chain:4", "rejection")
    with opened(places, words) as engine:
        in_between = outcomes(completions(engine, asked()))
    for kind in (Overlapped, Trusting):
        with opened(places, (*words, "ahead:8")) as engine:
            broken(engine)
            overlapped_of(engine).__class__ = kind
            found = differences(in_between, outcomes(completions(engine, asked())))

            assert (found == []) == (kind is Overlapped)


@pytest.mark.parametrize("kind", [Overlapped, Trusting])
def test_control_given_a_lane_that_compares_no_text_then_a_perfect_drafter_is_wrong(places, kind):
    with opened(places, ("lm:{target}", "chain:4", "match", "ahead:8")) as engine:
        broken(engine)
        late_by(engine, 1)
        overlapped_of(engine).__class__ = kind

        ends = watched_paths(engine)

    assert (num_misses(ends) == 0) == (kind is Overlapped)
