"""What working ahead brought: figures of made-up rounds, worked out by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_costs import DRAFTER, TARGET

from forerun.options import Speculation
from forerun.stats import LaneStats, RoundStats
from forerun.tools.costs import RoundCount, pass_bytes, pass_flops
from forerun.tools.feature_costs import node_flops
from forerun.tools.lane_costs import LaneCount, ahead_costs
from forerun.tools.lane_report import (
    LaneRun,
    cause_of,
    causes_of,
    hidden_s,
    lane_report,
    published,
)
from forerun.tools.lane_table import AHEAD, PLAIN, SEQUENTIAL_AUTO, entrants_of, verdict
from forerun.tools.lane_watch import LaneWatch, together
from forerun.tools.other_work import OtherWork, busy_seconds

HIT, WRONG, SHORT = LaneStats(num_hits=1), LaneStats(num_wrong=1), LaneStats(num_short=1)
LATE, COLD = LaneStats(num_late=1), LaneStats(num_cold=1)


def round_at(began_s: float, lane: LaneStats | None, **changes: float) -> RoundStats:
    """A round of ten seconds: one drafts, eight verify, one is the engine's."""
    one = RoundStats(1, 3, 2, 10.0, 1.0, 8.0, 1.0, 3, began_s, lane)
    return replace(one, **changes)


def run_of(*lanes: LaneStats | None, tokens: tuple[int, ...] = ()) -> LaneRun:
    rounds = tuple(round_at(10.0 * at, lane) for at, lane in enumerate(lanes))
    return LaneRun(rounds, tokens or (1,) * len(rounds))


def test_given_every_cause_then_shares_add_up() -> None:
    found = causes_of([HIT, HIT, HIT, WRONG, SHORT, LATE, COLD, COLD])
    assert found.num_asked == 8
    assert found.hit_rate == 3 / 8
    assert found.shares() == {"hit": 0.375, "wrong": 0.125, "short": 0.125, "late": 0.125,
                              "cold": 0.25}  # fmt: skip
    assert sum(found.shares().values()) == pytest.approx(1.0)


def test_given_no_row_that_could_draft_then_there_is_no_rate_to_divide() -> None:
    assert causes_of([]).hit_rate == 0.0
    assert cause_of(LaneStats()) == "none"
    assert [cause_of(one) for one in (HIT, WRONG, SHORT, LATE, COLD)] == [
        "hit", "wrong", "short", "late", "cold",
    ]  # fmt: skip


def test_given_cold_first_rounds_then_the_steady_rate_is_without_them() -> None:
    # Given: two requests; a drafter that rests in the second's middle is part of steady state.
    requests = [run_of(COLD, COLD, HIT, WRONG), run_of(COLD, HIT, COLD, HIT)]
    # When
    report = lane_report(requests)
    # Then
    assert report is not None
    assert report.causes.hit_rate == 3 / 8
    assert report.steady.num_asked == 5
    assert report.steady.hit_rate == 3 / 5


def test_given_only_cold_rounds_then_nothing_is_steady() -> None:
    report = lane_report([run_of(COLD, COLD)])
    assert report is not None
    assert report.steady.num_asked == 0
    assert report.steady.hit_rate == 0.0


def test_given_nothing_that_worked_ahead_then_there_is_no_report() -> None:
    assert lane_report([run_of(None, None)]) is None
    assert lane_report([]) is None


def test_given_a_forecast_then_what_passed_beside_verification_is_hidden() -> None:
    # Given: verified from 1 to 9 and from 11 to 19; a forecast from 2 to 12, so 7 + 1 are hidden.
    job = replace(HIT, began_s=2.0, busy_s=10.0)
    rounds = [round_at(0.0, COLD), round_at(10.0, job)]
    # Then
    assert hidden_s(rounds) == pytest.approx(8.0)
    # And: one between verifications is not hidden at all, one within is so in full.
    between = replace(HIT, began_s=9.2, busy_s=1.0)
    assert hidden_s([rounds[0], round_at(10.0, between)]) == pytest.approx(0.0)
    within = replace(HIT, began_s=2.0, busy_s=3.0)
    assert hidden_s([rounds[0], round_at(10.0, within)]) == pytest.approx(3.0)


def test_given_drafting_while_the_target_waits_then_it_is_not_hidden() -> None:
    job = replace(WRONG, began_s=2.0, busy_s=6.0, num_redrafted=1, redraft_s=2.0)
    report = lane_report([LaneRun((round_at(0.0, COLD), round_at(10.0, job)), (1, 1))])
    assert report is not None
    assert report.hidden_share == pytest.approx(6.0 / 8.0)


def test_given_prepared_work_then_what_was_not_used_is_a_share() -> None:
    job = replace(HIT, num_branches=8, num_prepared=40, num_taken=5, num_passes=5)
    report = lane_report([run_of(COLD, job, replace(job, num_hits=0, num_wrong=1, num_taken=0))])
    assert report is not None
    assert report.branches_wasted == pytest.approx(15 / 16)
    assert report.nodes_wasted == pytest.approx(75 / 80)
    assert report.as_dict()["nodes_wasted"] == report.nodes_wasted


def test_given_hits_and_misses_then_the_published_formula_has_their_tokens_and_times() -> None:
    # Given: hits of 4 and 2 tokens, a miss of 1 that was drafted anew for 4 of 8 seconds.
    hit = replace(HIT, busy_s=6.0)
    miss = replace(WRONG, busy_s=6.0, redraft_s=4.0)
    found = published([run_of(COLD, hit, hit, miss, tokens=(1, 4, 2, 1))])
    # Then
    assert found is not None
    assert (found.hit, found.on_hit, found.on_miss) == (pytest.approx(2 / 3), 3.0, 1.0)
    assert (found.draft, found.backup) == (0.75, 0.5)
    expected = (2 / 3 * 3 + 1 / 3 * 1) / (2 / 3 * 1.0 + 1 / 3 * 1.5)
    assert found.speed_up == pytest.approx(expected)
    assert published([run_of(COLD, COLD)]) is None


def test_given_a_forecast_then_all_it_read_is_paid_for_whether_used_or_not() -> None:
    # Given: a draft of 3 was verified while 12 nodes were prepared in 4 passes; none was used.
    lane = LaneStats(num_wrong=1, num_prepared=12, num_passes=4)
    count = LaneCount(RoundCount(2, 1, 10, 0), lane, num_verified=3)
    # When
    costs = ahead_costs([count], TARGET, DRAFTER)
    # Then
    assert costs.draft_flops == (1 + 3 + 12) * pass_flops(DRAFTER, 1, 10)
    assert costs.draft_bytes == 4 * pass_bytes(DRAFTER, 10)
    assert costs.target_flops == pass_flops(TARGET, 3, 10)
    # And: drafting anew comes on top; a drafter without weights costs nothing.
    anew = replace(count, lane=replace(lane, num_redrafted=1), round=RoundCount(2, 1, 10, 2))
    more = ahead_costs([anew], TARGET, DRAFTER).draft_flops - costs.draft_flops
    assert more == 3 * node_flops(DRAFTER, 10)
    assert ahead_costs([count], TARGET, None).draft_flops == 0


def test_given_an_asked_schedule_then_its_rivals_have_all_its_cores() -> None:
    asked = Speculation("lm", "chain:4", "match", "ahead:8")
    entrants = {one.name: one for one in entrants_of(asked, {"target": (0, 2), "draft": (3,)})}
    assert entrants[PLAIN].lanes == {"target": (0, 2, 3), "draft": (0, 2, 3)}
    assert entrants[AHEAD].lanes == {"target": (0, 2), "draft": (3,)}
    assert {one.num_cores for one in entrants.values()} == {3}
    assert entrants["sequential"].speculation == replace(asked, schedule="sequential")
    assert entrants[SEQUENTIAL_AUTO].speculation.shape == "auto"
    free = entrants_of(replace(asked, shape="auto"), {"target": (0,), "draft": (1,)})
    assert SEQUENTIAL_AUTO not in {one.name for one in free}


@pytest.mark.parametrize(
    ("interval", "pays", "says"),
    [
        ([1.1, 1.3], True, "ahead:8 pays on this machine"),
        ([0.7, 0.9], False, "ahead:8 does not pay on this machine"),
        ([0.9, 1.1], None, "no sure difference"),
    ],
)
def test_given_an_interval_then_the_verdict_is_as_sure_as_it(
    interval: list[float], pays: bool | None, says: str
) -> None:
    row = {"tokens_per_round": 3.0, "round_s": 2e-2, "draft_s": 1e-3, "verify_s": 1e-2}
    ratio = sum(interval) / 2
    best = {**row, "ahead_ratio": ratio, "ahead_ratio_ci95": interval, "verify_s": 5e-3}
    report = lane_report([run_of(COLD, HIT)])
    assert report is not None
    found = verdict({**row, "schedule": "ahead:8"}, best, report)
    assert found["pays"] is pays
    assert says in found["verdict"]
    assert "because" in found["verdict"]


def test_given_busy_cores_then_only_those_asked_for_count(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  900 0 0 0\ncpu0 100 50 25 999 999 0 0 25 7 7\ncpu11 10 0 0 5\nintr 7\n")
    assert busy_seconds(stat.read_text(), {0}) == 200 / os.sysconf("SC_CLK_TCK")
    assert busy_seconds(stat.read_text(), {11}) == 10 / os.sysconf("SC_CLK_TCK")
    # And: what did not move is nobody's, and a system that does not say counts as quiet.
    assert OtherWork({0}, stat).num_cores() == 0.0
    assert OtherWork({0}, tmp_path / "none").num_cores() == 0.0


def test_given_a_watch_then_it_counts_the_rounds_that_could_draft() -> None:
    watch, other = LaneWatch(), LaneWatch()
    assert together([]) is None
    assert together([watch]) is watch
    both = together([watch, other])
    assert both is not None
    for lane in (None, COLD, HIT, HIT, LaneStats()):
        both.saw([], [], None, [], [])
        both.settled(round_at(0.0, lane))
    assert watch.line() == other.line() == " · hit rate 67%"
    assert LaneWatch().line() == ""
