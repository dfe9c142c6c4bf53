"""How an answer came about is told truly, and only to who asked."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from forerun import Engine, Speculation
from forerun.serve import provenance
from forerun.serve.provenance import origins

from .live import Live, serving

ASKED: dict[str, Any] = {
    "prompt": "abcabcabcabcabc", "max_tokens": 32, "temperature": 0, "ignore_eos": True, "seed": 5,
}  # fmt: skip
OUTCOMES = ("num_hits", "num_wrong", "num_short", "num_late", "num_cold")
TRACED: dict[str, Any] = {"forerun": {"trace": True}}


def whole(live: Live, **changes: Any) -> dict[str, Any]:
    with live.http() as http:
        answer = http.post("/v1/completions", json=ASKED | changes)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def chunks(live: Live, **changes: Any) -> list[dict[str, Any]]:
    body = ASKED | {"stream": True} | changes
    with live.http() as http, http.stream("POST", "/v1/completions", json=body) as stream:
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def check(rounds: list[dict[str, Any]]) -> None:
    """Each round follows on the one before, and its tokens are those of its verdict."""
    known = rounds[0]["known"]
    for one in rounds:
        assert one["known"] == known
        known += one["kept"]
        path = one["path"]
        assert path[0] == 0
        assert all(one["parents"][b] == a for a, b in pairwise(path))
        told = [*(one["tokens"][node] for node in path[1:]), one["bonus"]][: one["kept"]]
        assert [token["token"] for token in one["emitted"]] == told
        num_drafts = sum(token["origin"] == "draft" for token in one["emitted"])
        assert [token["origin"] for token in one["emitted"]] == origins(num_drafts, one["kept"])
        assert (one["drafter"] == "lookup") == (len(one["tokens"]) > 1)
        assert 0 <= one["verify_s"] <= one["round_s"]


def test_given_origins_then_only_what_came_behind_drafts_is_a_bonus() -> None:
    assert origins(0, 1) == ["target"]
    assert origins(2, 3) == ["draft", "draft", "bonus"]
    assert origins(2, 2) == ["draft", "draft"]  # an end came first
    assert origins(2, 1) == ["draft"]


def test_given_a_stream_then_each_round_comes_with_its_text(server: Live) -> None:
    found = chunks(server, **TRACED)
    rounds = [one["forerun"]["round"] for one in found if "forerun" in one]

    check(rounds)
    assert any(token["origin"] == "draft" for one in rounds for token in one["emitted"])
    for one in found:
        if "forerun" in one:
            texts = [token["text"] for token in one["forerun"]["round"]["emitted"]]
            assert "".join(texts) == one["choices"][0]["text"]
    figures = found[-1]["metrics"]["speculative_decoding"]
    assert len(rounds) == figures["num_spec_steps"]
    assert sum(len(one["tokens"]) - 1 for one in rounds) == figures["num_draft_tokens"]


def test_given_a_whole_answer_then_all_rounds_of_each_choice_come_with_it(server: Live) -> None:
    found = whole(server, n=2, temperature=1.0, **TRACED)

    assert len(found["forerun"]["rounds"]) == 2
    for choice, rounds in zip(found["choices"], found["forerun"]["rounds"], strict=True):
        check(rounds)
        text = "".join(token["text"] for one in rounds for token in one["emitted"])
        assert text == choice["text"]


def test_given_nobody_asked_then_nothing_is_told_and_the_text_is_the_same(server: Live) -> None:
    asked, unasked = whole(server, **TRACED), whole(server)

    assert "forerun" not in unasked
    assert unasked["choices"] == asked["choices"]
    assert not any("forerun" in one for one in chunks(server))


def test_given_speculation_off_then_every_token_is_the_target_s(server: Live) -> None:
    drafted, plain = whole(server, **TRACED), whole(server, speculation="off", **TRACED)

    [rounds] = plain["forerun"]["rounds"]
    check(rounds)
    assert all(len(one["tokens"]) == 1 for one in rounds)
    assert {token["origin"] for one in rounds for token in one["emitted"]} == {"target"}
    assert plain["choices"] == drafted["choices"]


def test_given_logprobs_then_each_token_has_the_one_that_the_answer_has(server: Live) -> None:
    found = whole(server, logprobs=2, **TRACED)

    [rounds] = found["forerun"]["rounds"]
    told = [token["logprob"] for one in rounds for token in one["emitted"]]
    assert told == pytest.approx(found["choices"][0]["logprobs"]["token_logprobs"], rel=1e-6)


@pytest.fixture(scope="module")
def sampled(chat_model):
    with (
        Engine(
            chat_model,
            speculate=Speculation("lookup", "chain:3", rule="rejection"),
            threads=1,
            kv_positions=4096,
        ) as engine,
        serving(engine) as live,
    ):
        yield live


def test_given_a_rule_that_reads_laws_then_each_draft_has_its_chance(sampled: Live) -> None:
    [rounds] = whole(sampled, temperature=1.0, **TRACED)["forerun"]["rounds"]

    drafted = [one for one in rounds if len(one["tokens"]) > 1]
    assert drafted
    for one in drafted:
        assert one["p"][0] is None
        assert all(0 <= chance <= 1 and math.isfinite(chance) for chance in one["p"][1:])


@pytest.fixture(scope="module")
def embedded():
    """The embedded model with a drafter that has laws."""
    with (
        Engine(speculate=Speculation("lm", "chain:3"), threads=1) as engine,
        serving(engine) as live,
    ):
        yield live


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("composition", ["lm + chain:3", "lm + tree:6"])
def test_given_a_drafter_with_laws_then_who_watches_is_told_margins_and_chances(
    embedded: Live, composition: str, temperature: float
) -> None:
    asked = {"prompt": "def f(x):\n", "temperature": temperature, "speculation": composition}
    watched, unwatched = whole(embedded, **asked, **TRACED), whole(embedded, **asked)

    [rounds] = watched["forerun"]["rounds"]
    drafted = [one for one in rounds if len(one["tokens"]) > 1]
    assert drafted
    for one in drafted:
        assert one["p"] is None  # `match` compares tokens, and computes no law of the target
        assert one["margins"][0] is one["q"][0] is None
        assert all(math.isfinite(margin) for margin in one["margins"][1:])
        assert all(0 < q <= 1 for q in one["q"][1:])
        for node in range(len(one["tokens"])):
            chances = zip(one["q"], one["parents"], strict=True)
            assert sum(q for q, parent in chances if parent == node) <= 1 + 1e-5
    if temperature == 0:  # without noise both order siblings alike
        assert all(is_sorted_by_margin(one) for one in drafted)
    # Watching changes nothing but what is told: neither the text nor what a chain drafts. (A tree
    # grows by what its drafter has learned meanwhile.)
    assert watched["choices"] == unwatched["choices"]
    if composition == "lm + chain:3":
        for count in ("draft_n", "draft_n_accepted"):
            assert watched["timings"][count] == unwatched["timings"][count]


def is_sorted_by_margin(one: dict[str, Any]) -> bool:
    """Whether of two siblings the one with the higher margin has the higher chance."""
    children = zip(one["parents"], one["margins"], one["q"], strict=True)
    told = [child for child in children if child[0] >= 0]
    return all(
        (q >= other_q) == (margin >= other_margin)
        for parent, margin, q in told
        for other_parent, other_margin, other_q in told
        if parent == other_parent and margin != other_margin and q != other_q
    )


def test_given_an_answer_of_many_rounds_then_a_whole_one_tells_the_first(
    server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    [before] = whole(server, **TRACED)["forerun"]["rounds"]
    monkeypatch.setattr(provenance, "MAX_ROUNDS", 2)
    [after] = whole(server, **TRACED)["forerun"]["rounds"]

    assert [one["emitted"] for one in after] == [one["emitted"] for one in before[:2]]
    assert len([one for one in chunks(server, **TRACED) if "forerun" in one]) == len(before) > 2


def test_given_a_router_then_each_round_names_who_was_asked(chat_model: Path) -> None:
    speculation = Speculation("router(lookup,none)", "chain:3")
    with (
        Engine(chat_model, speculate=speculation, threads=1, kv_positions=4096) as engine,
        serving(engine) as live,
    ):
        [rounds] = whole(live, **TRACED)["forerun"]["rounds"]

    assert {one["drafter"] for one in rounds if len(one["tokens"]) > 1} == {"lookup"}


@pytest.mark.alone
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two lanes need two cores")
def test_given_a_schedule_that_works_ahead_then_its_lane_is_told() -> None:
    target, drafter = sorted(os.sched_getaffinity(0))[:2]
    with (
        Engine(
            speculate=Speculation("lm", "chain:3", schedule="ahead:8"),
            target_cores=(target,),
            draft_cores=(drafter,),
        ) as engine,
        serving(engine) as live,
    ):
        [rounds] = whole(live, prompt="def f(x):\n", **TRACED)["forerun"]["rounds"]

    busy = [one["lane"] for one in rounds if one["lane"]["busy_s"] > 0]
    assert busy
    assert all(lane["num_branches"] >= 1 for lane in busy)
    assert any(lane["began_s"] < one["began_s"] for one in rounds if (lane := one["lane"]) in busy)
    assert all(sum(one["lane"][name] for name in OUTCOMES) <= 1 for one in rounds)


@pytest.mark.parametrize("body", [{"trace": "yes"}, {"trace": True, "more": 1}, [True]])
def test_given_what_is_no_option_then_it_is_refused_by_its_name(server: Live, body: Any) -> None:
    with server.http() as http:
        answer = http.post("/v1/completions", json=ASKED | {"forerun": body})

    assert answer.status_code == 400
    assert "forerun" in answer.text
