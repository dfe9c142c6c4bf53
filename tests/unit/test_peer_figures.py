"""The race against other engines: which settings are chosen, and where its figures come from."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forerun.tools.pairs import Pair, Round, Run, Speedup, speedup

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module", autouse=True)
def peers_on_the_path():
    sys.path.insert(0, str(PEERS))
    yield
    sys.path.remove(str(PEERS))


@pytest.fixture
def plan(tmp_path):
    from entrants import Plan

    return Plan(
        model=tmp_path,
        drafters={},
        made=tmp_path,
        prompts=[[1], [1, 2]],
        max_tokens=8,
        repeat=1,
        context=64,
        threads=[1, 2],
    )


def engine(name, *modes):
    from catalogue import PLAIN, Mode, Peer

    return Peer(name, name, "none", (), (PLAIN, *(Mode(mode, is_swept=True) for mode in modes)))


class Clockwork:
    """An engine without a process, whose tokens take exactly the seconds it is given."""

    resident_bytes = 1
    cpu_s = 0.0

    def __init__(self, token_s, asked):
        self.token_s = token_s
        self.asked = asked

    def ask(self, question, timeout_s):
        from environments import PeerError

        self.asked.append(question)
        if question["do"] == "load":
            self.threads = question["threads"]
            return {"versions": {}}
        seconds = self.token_s(self.threads, question["options"].get("num_draft", 1))
        if seconds is None:
            raise PeerError("not with these settings")
        num_tokens = question["max_tokens"]
        rest_s = seconds * (num_tokens - 1)
        return {"token_ids": [1] * num_tokens, "num_first": 1, "first_s": 0.1, "rest_s": rest_s}

    def close(self):
        pass


def swept(plan, token_s, *modes, asked=None):
    """What a sweep chooses for an engine that takes `token_s(threads, num_draft)`."""
    from entrants import Desk
    from sweep import Sweep

    asked = [] if asked is None else asked
    desk = Desk(plan, lambda *_: Clockwork(token_s, asked), lambda _: None)
    peer = engine("engine", *modes)
    return Sweep(desk, peer).chosen(), desk.outcomes


@pytest.mark.parametrize("best", [1, 2])
def test_given_an_engine_with_a_favourite_then_its_threads_and_length_are_chosen(plan, best):
    """Each of the two is the control of the other: neither first, nor last, nor most will do."""

    def token_s(threads, num_draft):
        return 0.01 * (1 + abs(threads - best)) * (1 + abs(num_draft - 4 // best))

    entrants, outcomes = swept(replace(plan, lengths=[2, 4, 8]), token_s, "drafts")

    assert [(one.threads, one.options) for one in entrants] == [
        (best, {}),
        (best, {"num_draft": 4 // best}),
    ]
    tried = [one["num_draft"] for one in outcomes["engine", "drafts"].trials]
    assert tried == [2, 4, 8]
    assert outcomes["engine", "drafts"].options == {"num_draft": 4 // best}
    assert {one["threads"] for one in outcomes["engine", "plain"].trials} == {1, 2}


def test_given_settings_that_fail_then_they_lose_and_say_why(plan):
    def token_s(threads, num_draft):
        return None if threads == 1 or num_draft > 4 else 0.01 / num_draft

    entrants, outcomes = swept(replace(plan, lengths=[4, 8]), token_s, "drafts")

    assert [(one.threads, one.options) for one in entrants] == [(2, {}), (2, {"num_draft": 4})]
    assert outcomes["engine", "drafts"].reason is None
    assert outcomes["engine", "drafts"].trials[1]["reason"] == "not with these settings"


def test_given_no_setting_that_works_then_every_mode_says_why(plan):
    entrants, outcomes = swept(plan, lambda *_: None, "drafts")

    assert entrants == []
    assert {one.reason for one in outcomes.values()} == {"not with these settings"}


def test_given_long_runs_then_the_sweep_is_short_and_leaves_the_longest_prompts_out(plan):
    asked = []
    long = replace(plan, max_tokens=500, trial_tokens=8, prompts=[[1], [1] * 9, [1] * 10, [1] * 99])

    swept(long, lambda *_: 0.01, "drafts", asked=asked)

    runs = [one for one in asked if one["do"] == "generate"]
    assert {one["max_tokens"] for one in runs} == {8}
    assert {len(one["prompt"]) for one in runs} == {1, 9, 10}


def timed_runs(*seconds, num_repeats=2):
    """Runs of prompts 0, 1, …: each prompt's seconds for eight tokens, repeat by repeat."""
    return {
        (0, repeat, prompt): {
            "token_ids": list(range(9)),
            "num_first": 1,
            "first_s": 0.1,
            "rest_s": own[repeat],
            "arrivals": [[8, own[repeat]]],
        }
        for prompt, own in enumerate(seconds)
        for repeat in range(min(num_repeats, len(own)))
    }


def rows_for(runs, baseline, categories=()):
    from catalogue import PLAIN
    from entrants import Outcome
    from report import rows_of

    ours, theirs = engine("forerun"), engine("other")
    outcomes = {
        ("forerun", "plain"): Outcome(ours, PLAIN, runs=baseline),
        ("other", "plain"): Outcome(theirs, PLAIN, runs=runs),
    }
    return rows_of(outcomes, categories)


def test_given_runs_then_ratio_and_interval_are_those_of_pairs():
    base, own = ((1.0, 1.2), (2.0, 2.1), (1.5, 3.0)), ((0.5, 0.9), (2.0, 1.0), (1.0, 1.0))

    _, row = rows_for(timed_runs(*own), timed_runs(*base))

    def run(seconds):
        return Run(tuple(range(9)), (Round(8, seconds, 0.0, 0.0),))

    pairs = [
        [Pair(run(one), run(other)) for one, other in zip(plain, fast, strict=True)]
        for plain, fast in zip(base, own, strict=True)
    ]
    known = speedup(pairs)
    assert row["ratio_to_forerun_plain"] == known.ratio
    assert row["ratio_ci95"] == [known.low, known.high]
    assert row["tokens_per_s"] == pytest.approx(3 * 8 / (0.7 + 1.5 + 1.0))
    low, high = row["tokens_per_s_ci95"]
    assert low < row["tokens_per_s"] < high


def test_given_another_interval_in_pairs_then_the_report_has_it_too(monkeypatch):
    """The control: a bootstrap of the report's own would not follow."""
    import report

    monkeypatch.setattr(report, "speedup", lambda pairs: Speedup(42.0, 41.0, 43.0))

    _, row = rows_for(timed_runs((1.0, 1.0)), timed_runs((1.0, 1.0)), ["prose"])

    assert row["ratio_ci95"] == row["tokens_per_s_ci95"] == [41.0, 43.0]
    assert row["categories"]["prose"]["ratio_ci95"] == [41.0, 43.0]


def test_given_categories_then_each_has_its_own_ratio():
    base = timed_runs((2.0, 2.0), (2.0, 2.0), (2.0, 2.0))

    _, row = rows_for(
        timed_runs((1.0, 1.0), (2.0, 2.0), (1.0, 1.0)), base, ["edit", "prose", "edit"]
    )

    ratios = {
        name: (one["num_prompts"], one["ratio_to_forerun_plain"])
        for name, one in row["categories"].items()
    }
    assert ratios == {"edit": (2, 2.0), "prose": (1, 1.0)}


def test_given_an_engine_that_stopped_early_then_whole_repeats_are_compared():
    base = timed_runs((2.0, 2.0), (2.0, 2.0))

    _, row = rows_for(timed_runs((1.0, 9.0), (1.0,)), base)

    assert row["ratio_to_forerun_plain"] == 2.0
    assert row["num_runs"] == 3


def page_of(**ratios):
    """The bars of a hand-made file: `engine__mode` and its ratio to our plain without loops."""
    sys.path.insert(0, str(PEERS.parent))
    try:
        from peers_page import end_to_end
    finally:
        sys.path.remove(str(PEERS.parent))
    rows = []
    for name, ratio in ratios.items():
        engine, mode = (part.replace("_", " ") for part in name.split("__"))
        rows.append(
            {"engine": engine, "mode": mode, "same_weights": True, "ratio_without_loops": ratio}
        )
    return "\n".join(end_to_end({"rows": rows}))


def test_given_a_learned_drafter_then_our_best_meets_the_fastest_plain_decoding():
    page = page_of(
        forerun__plain=1.0, forerun__dspark_tree=3.6, llama__plain=0.9, slow__plain=0.5,
        slow__lookup=2.0,
    )  # fmt: skip

    assert "dspark tree ÷ llama plain | ≥ 4 | 4.00 | met |" in page


def test_given_none_then_that_goal_is_not_asked_about():
    assert page_of(forerun__plain=1.0, forerun__lm_auto=9.0, llama__plain=0.9) == ""


def test_given_a_directory_of_drafters_then_modes_that_lack_theirs_are_left_out(plan, tmp_path):
    from catalogue import forerun

    own = forerun(("dspark tree:auto", "eagle3 tree:8", "lm chain", "lookup auto", "lm:DIR auto"))
    assert [mode.drafter for mode in own.modes] == ["", "dspark", "eagle3", "lm", "", ""]
    asked = []
    there = replace(plan, drafters={"dspark": tmp_path / "dspark"})

    from entrants import Desk
    from sweep import Sweep

    desk = Desk(there, lambda *_: Clockwork(lambda *_: 0.01, asked), lambda _: None)
    modes = [one.mode.name for one in Sweep(desk, own).chosen()]

    assert modes == ["plain", "dspark tree:auto", "lookup auto", "lm:DIR auto"]
    loaded = next(one for one in asked if one["do"] == "load")
    assert loaded["drafters"] == {"dspark": str(tmp_path / "dspark")}
    assert loaded["drafter"] is None


def test_given_tokens_of_one_pass_handed_over_singly_then_they_are_one_round():
    from report import _run

    arrivals = [[1, 0.02], [1, 1e-6], [1, 1e-6], [1, 0.03]]
    run = _run({"token_ids": [0] * 5, "arrivals": arrivals})

    assert [one.num_tokens for one in run.rounds] == [3, 1]
    assert run.decode_s == pytest.approx(0.050002)
