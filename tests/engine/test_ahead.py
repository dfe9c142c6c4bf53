"""Drafting while the target verifies: the same tokens, and a real overlap.

The product of all compositions is in `test_lattice.py`; here are the ways to sample, requests that
come and go, both backends, and what a forecast is worth: a drafter that is always right is never
wrong for having been asked early.
"""

from __future__ import annotations

import dataclasses

import pytest

from engine.ahead_parts import (
    Patient,
    broken,
    caught_up,
    in_time,
    lane_sums,
    overlapped_of,
    without_spares,
)
from engine.conftest import HAS_NATIVE
from engine.lattice import SCHEDULES, completions, opened, prompt_of, requests, unstopped
from engine.lattice import differences as places_that_differ
from engine.lattice import outcomes as ends_of
from engine.test_lattice import OF_ITSELF, LastChild, is_measured, num_misses
from engine.test_lattice import watched as watched_paths
from engine.test_same_tokens import differences, outcomes
from engine.test_same_tokens import requests as ways_to_sample
from forerun import SamplingParams
from forerun.drafters.lm import LM
from forerun.rules.match import Match

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")
ON_TORCH = (  # a sample: what differs is the backend's own way to grow further
    ("lm", "chain:5", "match", "ahead:8"),
    ("lm", "tree:9", "match", "parallel"),
    ("dspark:{dspark}", "tree:3x2x1", "match", "ahead:8"),
    ("dspark:{rnn}", "tree:3x2x1", "match", "ahead:8"),
    ("dspark:{gated}", "chain:4", "match", "parallel"),
    ("eagle3:{eagle3}", "chain:4", "match", "ahead"),
)


@pytest.fixture(scope="module")
def plain_alone(places):
    """Every way to sample, alone, one token a round; by backend, computed when asked for."""
    known = {}

    def of(backend="native"):
        if backend not in known:
            with opened(places, ("none", "auto", "match"), backend) as engine:
                known[backend] = [outcomes(engine, [one])[0] for one in ways_to_sample()]
        return known[backend]

    return of


# --- the same tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", ["chain:5", "tree:9", "tree:auto"])
def test_given_every_way_to_sample_then_drafting_ahead_changes_nothing(
    places, plain_alone, shape, schedule
):
    # penalties, filters, bias, stop strings and ids, logprobs: in one batch, and one by one
    with opened(places, ("lm", shape, "match", schedule)) as engine:
        assert differences(plain_alone(), outcomes(engine, ways_to_sample())) == []
        alone = [outcomes(engine, [one])[0] for one in ways_to_sample()]
        assert differences(plain_alone(), alone) == []


@pytest.mark.parametrize("rule", ["rejection", "block", "traversal", "kseq"])
def test_given_a_sampled_rule_then_tokens_are_those_of_drafting_in_between(places, rule):
    # every way to sample: draws for an outcome count as if it had come, penalties included
    with opened(places, ("lm", "chain:4", rule)) as engine:
        in_between = outcomes(engine, ways_to_sample())
    for schedule in ("parallel", "ahead:8"):
        with opened(places, ("lm", "chain:4", rule, schedule)) as engine:
            assert differences(in_between, outcomes(engine, ways_to_sample())) == []


@pytest.mark.parametrize("words", ON_TORCH, ids=" ".join)
def test_given_the_torch_backend_then_drafting_ahead_changes_nothing(places, plain_alone, words):
    pytest.importorskip("torch").set_num_threads(1)
    with opened(places, words, "torch") as engine:
        assert differences(plain_alone("torch"), outcomes(engine, ways_to_sample())) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_given_requests_that_wait_for_memory_then_they_join_and_leave_and_come_out_the_same(
    places, plain, schedule
):
    for words in (("lm", "tree:5", "match"), ("lookup", "chain:4", "match")):
        with opened(places, (*words, schedule), kv_positions=256) as engine:
            assert places_that_differ(plain(), ends_of(completions(engine, requests()))) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_given_other_lengths_each_then_rows_leave_one_after_another(places, schedule):
    asked = [
        (prompt_of(10, at), SamplingParams(temperature=0.7, seed=at, max_tokens=1 + 5 * at))
        for at in range(8)
    ]
    with opened(places, ("none", "auto", "match")) as engine:
        plain = [ends_of(completions(engine, [one]))[0] for one in asked]
    for shape in ("chain:4", "tree:5"):
        with opened(places, ("lm", shape, "match", schedule)) as engine:
            assert places_that_differ(plain, ends_of(completions(engine, asked))) == []


@pytest.mark.parametrize("words", [("lm", "chain:4", "match"), ("lm", "tree:5", "rejection")])
def test_given_two_streams_in_turns_then_both_come_out_the_same_and_both_have_hits(places, words):
    # each round of one comes between two of the other; what was prepared for it is kept meanwhile
    asked = unstopped((20, 40), max_tokens=40)
    with opened(places, words) as engine:
        expected = [one.token_ids for one in completions(engine, asked)]
    with opened(places, (*words, "ahead:8")) as engine:
        overlapped_of(engine)._waits = Patient()
        in_time(overlapped_of(engine))
        hits = Hits()
        engine._parts = dataclasses.replace(engine._parts, witness=hits)
        taken = in_turns([engine.stream(prompt, params) for prompt, params in asked])

    assert taken == expected
    assert len(hits.of) == 2
    assert all(num > 0 for num in hits.of.values())


def in_turns(streams):
    """The tokens of several streams, a piece of each after another."""
    taken = [[] for _ in streams]
    open_ones = list(range(len(streams)))
    while open_ones:
        for at in list(open_ones):
            piece = next(streams[at], None)
            if piece is None:
                open_ones.remove(at)
            else:
                taken[at] += piece.token_ids
    return [tuple(tokens) for tokens in taken]


class Hits:
    """A witness of which row's rounds began with a prepared draft."""

    def __init__(self):
        self.of, self.ids = {}, []

    def saw(self, rows, drafts, said, starts, verdicts):
        self.ids = [row.id for row in rows]

    def settled(self, stats):
        for sequence_id in self.ids:
            self.of[sequence_id] = self.of.get(sequence_id, 0) + stats.lane.num_hits


def only_the_first_row(drafts, grown):
    """Prepares nothing for all other rows, which then miss each time."""
    return [grown[0], *drafts[1:]]


def lanes_of_a_hit_beside_a_miss(engine):
    """What became of the rows, of all rounds in which one row hit and another missed."""
    broken(engine).breaks(only_the_first_row, num_calls=1000)
    made = completions(engine, unstopped((20, 40), max_tokens=60))
    rounds = {id(one): one.lane for done in made for one in done.stats.rounds}
    return [lane for lane in rounds.values() if lane.num_hits and lane.num_wrong]


def test_given_a_row_that_hits_beside_one_that_misses_then_it_waits_for_no_new_draft(places):
    # given a verifier who would draft anew after every miss
    with opened(places, ("lm", "chain:4", "match", "ahead:24")) as engine:
        lanes = lanes_of_a_hit_beside_a_miss(engine)

    assert len(lanes) >= 3
    assert sum(lane.num_redrafted for lane in lanes) == 0


def test_control_given_one_who_minds_no_hits_then_they_wait_for_new_drafts(places):
    with opened(places, ("lm", "chain:4", "match", "ahead:24")) as engine:
        overlapped = overlapped_of(engine)
        make_good = overlapped._made_good
        overlapped._made_good = lambda *rows, delays_hits: make_good(*rows, delays_hits=False)
        lanes = lanes_of_a_hit_beside_a_miss(engine)

    assert sum(lane.num_redrafted for lane in lanes) == len(lanes) >= 3


def test_given_a_sampled_rule_then_a_row_that_hits_waits_for_one_that_must_be_drawn(places):
    with opened(places, ("lm", "chain:4", "rejection", "ahead:24")) as engine:
        lanes = lanes_of_a_hit_beside_a_miss(engine)

    assert sum(lane.num_redrafted for lane in lanes) == len(lanes) >= 3


def test_given_a_prompt_of_several_chunks_then_the_lane_reads_it_in_its_own_time(places):
    asked = unstopped((400, 300, 1), max_tokens=12)
    with opened(places, ("none", "auto", "match")) as engine:
        plain = [ends_of(completions(engine, [one]))[0] for one in asked]
    for drafter in ("lm", "dspark:{dspark}", "dspark:{rnn}", "eagle3:{eagle3}", "lm:{other}"):
        with opened(places, (drafter, "chain:4", "match", "ahead")) as engine:
            assert places_that_differ(plain, ends_of(completions(engine, asked))) == []


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_given_almost_no_room_then_nothing_is_drafted_beyond_it(places, max_tokens):
    asked = unstopped(max_tokens=max_tokens)
    with opened(places, ("none", "auto", "match")) as engine:
        plain = ends_of(completions(engine, asked))
    with opened(places, ("lm", "tree:5", "match", "ahead")) as engine:
        made = completions(engine, asked)

        assert places_that_differ(plain, ends_of(made)) == []
        assert {len(one.token_ids) for one in made} == {max_tokens}
        assert sum(one.stats.num_failures for one in made) == 0


# --- a real overlap -------------------------------------------------------------------------------


def by_itself(places, shape, schedule):
    """An engine whose target drafts for itself, ahead; who misses is drafted for by it alone."""
    engine = opened(places, ("lm:{target}", shape, "match", schedule))
    overlapped = overlapped_of(engine)
    overlapped._waits = Patient()
    in_time(overlapped)
    without_spares(overlapped)
    return engine


@pytest.mark.parametrize("schedule", ["parallel", "ahead:1", "ahead:24"])
@pytest.mark.parametrize(
    "shape",
    [shape for shape, rule in OF_ITSELF if rule == "match" and not is_measured(shape, rule)],
)
def test_given_the_target_as_its_own_drafter_then_it_is_never_wrong(places, shape, schedule):
    # the very K/V, noise and text that the verdict will have: were any of them another's, it would
    # draft another token somewhere
    with by_itself(places, shape, schedule) as engine:
        ends = watched_paths(engine)

        assert num_misses(ends) == 0
        assert sum(num_accepted for _, num_accepted, _ in ends) > len(ends) // 2


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_given_the_target_as_its_own_drafter_then_almost_every_outcome_is_a_hit(
    places, temperature
):
    params = SamplingParams(temperature=temperature, seed=5, max_tokens=60, ignore_eos=True)
    with by_itself(places, "chain:4", "ahead:24") as engine:
        lane = lane_sums([engine.generate(prompt_of(20, 1), params)[0]])

    missed = lane["wrong"] + lane["short"] + lane["late"]
    assert lane["hits"] >= 8
    assert missed <= 2  # the last rounds have no room below a guess


def test_given_more_branches_then_more_outcomes_are_hits(places):
    hits = {}
    for schedule in ("parallel", "ahead:1", "ahead:24"):
        with opened(places, ("lm", "chain:4", "match", schedule)) as engine:
            broken(engine)
            made = completions(engine, unstopped(max_tokens=60))
            lane = lane_sums(made)
            hits[schedule] = lane["hits"] / (lane["hits"] + lane["wrong"])

    assert hits["ahead:1"] < hits["ahead:24"]
    assert hits["parallel"] < hits["ahead:24"]


def test_given_rounds_then_the_figures_of_the_lane_say_what_became_of_every_row(places):
    with opened(places, ("lm", "tree:5", "match", "ahead:8")) as engine:
        broken(engine)
        [made] = completions(engine, unstopped((20,), max_tokens=60))
        caught_up(engine)

    lanes = [one.lane for one in made.stats.rounds]
    for lane in lanes:
        causes = lane.num_hits + lane.num_wrong + lane.num_short + lane.num_late + lane.num_cold
        assert causes <= 1  # one row; in a last round without room nothing is asked for
        assert lane.num_redrafted <= causes - lane.num_hits
        assert lane.num_taken <= lane.num_prepared
    assert lanes[0].num_cold == 1
    assert sum(lane.num_branches for lane in lanes) > len(lanes)
    assert sum(lane.busy_s for lane in lanes) > 0


# --- the same comparisons must catch what is wrong ------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_control_given_a_rule_that_keeps_what_it_likes_then_tokens_differ(places, plain, schedule):
    with opened(places, ("lm", "tree:5", "match", schedule)) as engine:
        engine._parts = dataclasses.replace(engine._parts, rule=LastChild(Match()))

        found = places_that_differ(plain(), ends_of(completions(engine, requests())))

    assert len(found) > len(requests()) // 2


@pytest.mark.parametrize("takes_back", [True, False])
def test_control_given_guesses_read_behind_one_another_then_it_is_wrong_now_and_then(
    places, monkeypatch, takes_back
):
    # a lane that does not take back what it read for another outcome has that outcome's K/V
    if not takes_back:
        monkeypatch.setattr("forerun.drafters.asking.rewind", lambda *_: None)
    monkeypatch.setattr(LM, "_below_outcomes", lambda *_: None)  # asked one by one
    words = ("lm", "chain:4", "rejection")
    with opened(places, words) as engine:
        in_between = ends_of(completions(engine, unstopped()))
    with opened(places, (*words, "ahead:8")) as engine:
        in_time(overlapped_of(engine))
        ahead = ends_of(completions(engine, unstopped()))

    assert (places_that_differ(in_between, ahead) == []) is takes_back
