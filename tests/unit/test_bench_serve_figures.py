"""The load tool's arithmetic on made-up times, its schedules, and what it reads of drafts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from forerun.tools.bench_serve_client import Outcome
from forerun.tools.bench_serve_drafts import (
    Drafts,
    acceptance,
    drafts_of_answer,
    drafts_of_metrics,
)
from forerun.tools.bench_serve_figures import (
    Slo,
    Window,
    first_errors,
    row_of,
    sameness,
    spread_of,
    time_to_first,
    token_time,
    tokens_in,
)
from forerun.tools.bench_serve_load import Send, closed_loop, open_loop, poisson_times
from forerun.tools.bench_serve_show import verdict


def outcome(prompt: int = 0, left_s: float = 0.0, **changes: Any) -> Outcome:
    """A good answer: text after 1 s and after 1.5 s, six tokens, over at 2 s."""
    known = {"due_s": left_s, "ended_s": left_s + 2.0, "num_tokens": 6, "text": "abc",
             "arrivals_s": (left_s + 1.0, left_s + 1.5)}  # fmt: skip
    return Outcome(prompt, left_s=left_s, **{**known, **changes})


def test_given_times_then_latencies_are_from_when_a_request_was_due() -> None:
    late = outcome(left_s=10.0, due_s=9.0)
    assert time_to_first(late) == 2.0
    # Two pieces of three tokens each: three came in the half second after the first piece.
    assert token_time(late) == pytest.approx(0.5 / 3)
    assert token_time(outcome(arrivals_s=(1.0,))) is None
    assert time_to_first(outcome(arrivals_s=())) is None


def test_given_values_then_percentiles_are_those_of_numpy_and_none_of_nothing() -> None:
    found = spread_of([None, *range(101)])
    assert found == {"mean": 50.0, "p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert spread_of([None]) is None


def test_given_a_window_then_only_tokens_inside_it_count() -> None:
    window = Window(0.0, 4.0)
    inside, across, after = outcome(), outcome(left_s=2.6), outcome(left_s=5.0)
    assert tokens_in(window, [inside]) == 6
    assert tokens_in(window, [across]) == 3  # its second piece came at 4.1
    assert tokens_in(window, [after]) == 0


@pytest.mark.parametrize(
    ("slo", "is_met"),
    [
        (Slo(), True),
        (Slo(ttft_s=1.0), True),
        (Slo(ttft_s=0.99), False),
        (Slo(itl_s=0.17), True),
        (Slo(itl_s=0.16), False),
        (Slo(ttft_s=1.0, itl_s=0.16), False),
    ],
)
def test_given_a_promise_then_a_request_keeps_it_or_not(slo: Slo, is_met: bool) -> None:
    assert slo.is_met(outcome()) is is_met
    assert not slo.is_met(outcome(error="timeout"))


def test_given_outcomes_then_the_row_has_rates_goodput_and_errors() -> None:
    # Given: a good one, a slow one that left late, one that ends outside the window, two failures.
    outcomes = [
        outcome(),
        outcome(left_s=1.0, due_s=0.5),
        outcome(left_s=3.0),
        outcome(error="timeout", arrivals_s=(), num_tokens=0),
        outcome(error="http_503", arrivals_s=(), num_tokens=0),
    ]
    # When
    row = row_of(outcomes, Window(0.0, 4.0), Slo(ttft_s=1.2))
    # Then
    assert (row["num_requests"], row["num_ok"], row["num_tokens"]) == (5, 3, 18)
    assert row["errors"] == {"http_503": 1, "timeout": 1}
    assert (row["num_late"], row["latest_s"]) == (1, 0.5)
    assert row["tokens_per_s"] == pytest.approx((6 + 6 + 0) / 4)
    assert row["requests_per_s"] == pytest.approx(2 / 4)
    assert row["goodput"] == {"requests_per_s": pytest.approx(1 / 4), "share": pytest.approx(2 / 5)}
    assert row["ttft_s"]["p50"] == 1.0
    assert row["itl_s"]["p99"] == pytest.approx(0.5)
    assert row["request_s"]["p50"] == 2.0


def test_given_nothing_that_ended_then_the_row_is_still_json() -> None:
    row = row_of([outcome(error="connect", arrivals_s=())], Window(0.0, 1.0), Slo())
    assert json.loads(json.dumps(row, allow_nan=False))["ttft_s"] is None
    assert row_of([], Window(0.0, 0.0), Slo())["tokens_per_s"] == 0.0


def test_given_errors_then_the_first_of_each_kind_is_told() -> None:
    found = [outcome(), outcome(error="a", detail="1"), outcome(error="a", detail="2")]
    assert first_errors(found) == {"a": "1"}


def test_given_the_same_texts_everywhere_then_they_are_the_same() -> None:
    points = {"1": [outcome(0), outcome(1)], "2": [outcome(0), outcome(0), outcome(1)]}
    found = sameness(points)
    assert (found["identical"], found["num_compared"], found["num_everywhere"]) == (True, 2, 2)


def test_given_one_text_that_differs_then_it_is_found_with_its_place() -> None:
    points = {"1": [outcome(0, text="abcd")], "8": [outcome(0, text="abXd"), outcome(1)]}
    found = sameness(points)
    assert not found["identical"]
    assert found["different"] == [
        {"prompt": 0, "points": ["1", "8"], "at_char": 2, "texts": ["cd", "Xd"]}
    ]
    assert "'cd'" in verdict(found)


def test_given_a_text_that_ends_sooner_then_it_differs() -> None:
    found = sameness({"1": [outcome(0, text="abc")], "2": [outcome(0, text="ab")]})
    assert found["different"][0]["at_char"] == 2


def test_given_nothing_to_compare_then_nothing_is_claimed() -> None:
    failed = outcome(0, text="other", error="timeout")
    found = sameness({"1": [outcome(0), failed], "2": [outcome(1)]})
    assert (found["identical"], found["num_compared"], found["different"]) == (False, 0, [])
    assert "nothing was compared" in verdict(found)


def test_given_a_seed_then_arrivals_are_poisson_and_the_same() -> None:
    times = poisson_times(50.0, 200.0, seed=1)

    assert times == poisson_times(50.0, 200.0, seed=1)
    assert times != poisson_times(50.0, 200.0, seed=2)
    assert all(0 <= time < 200.0 for time in times)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.04)
    assert gaps.min() > 0
    # An exponential law's deviation is its mean; that of evenly spaced arrivals would be zero.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    counts = np.histogram(times, bins=200, range=(0, 200))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.3)


def unhurried(num_awaited: int) -> Send:
    """Answers nothing before so many requests have left."""
    have_left, numbers = asyncio.Event(), set()

    async def send(number: int, due_s: float) -> Outcome:
        numbers.add(number)
        if len(numbers) == num_awaited:
            have_left.set()
        await have_left.wait()
        return outcome(number, due_s)

    return send


def test_given_an_open_loop_then_arrivals_do_not_wait_for_answers() -> None:
    async def scene() -> list[Outcome]:
        times = [number / 1000 for number in range(20)]
        return await asyncio.wait_for(open_loop(unhurried(20), times), timeout=300)

    assert [one.prompt for one in asyncio.run(scene())] == list(range(20))


def test_given_the_same_server_and_a_closed_loop_then_it_waits_for_ever() -> None:
    async def scene() -> list[Outcome]:
        return await asyncio.wait_for(closed_loop(unhurried(20), 4, 60.0), timeout=0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(scene())


def test_given_a_closed_loop_then_so_many_are_under_way_and_each_number_leaves_once() -> None:
    running: list[int] = []
    widths: list[int] = []

    async def send(number: int, due_s: float) -> Outcome:
        running.append(number)
        widths.append(len(running))
        await asyncio.sleep(0.001)
        running.remove(number)
        return outcome(number, due_s)

    found = asyncio.run(closed_loop(send, 8, 60.0, num_requests=30))

    assert max(widths) == 8
    assert sorted(one.prompt for one in found) == list(range(30))


def test_given_a_time_then_a_closed_loop_stops_asking_and_hears_the_rest() -> None:
    now = 0.0

    async def send(number: int, due_s: float) -> Outcome:
        nonlocal now
        now += 1.0
        return outcome(number, due_s)

    found = asyncio.run(closed_loop(send, 1, 5.0, now_s=lambda: now))
    assert [one.left_s for one in found] == [0.0, 1.0, 2.0, 3.0, 4.0]


METRICS = """# HELP vllm:spec_decode_num_drafts_total x
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{model_name="m"} 10.0
vllm:spec_decode_num_draft_tokens_total{model_name="m",engine="0"} 40.0
vllm:spec_decode_num_draft_tokens_total{model_name="m",engine="1"} 2e1
vllm:spec_decode_num_draft_tokens_created{model_name="m"} 1.7e9
vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="0"} 9.0
"""


def test_given_what_servers_say_then_drafts_are_counted() -> None:
    assert drafts_of_metrics(METRICS) == Drafts(10, 60, 30)
    assert drafts_of_metrics("up 1\n") is None
    assert drafts_of_answer({"timings": {"draft_n": 8, "draft_n_accepted": 5}}) == Drafts(0, 8, 5)
    assert drafts_of_answer({"timings": {"predicted_n": 8}, "metrics": None}) is None


def test_given_answers_and_metrics_then_answers_come_first_and_metrics_are_a_difference() -> None:
    before, after = Drafts(10, 60, 30), Drafts(14, 70, 38)
    told = acceptance([None, Drafts(1, 4, 2), Drafts(1, 4, 4)], before, after)
    scraped = acceptance([None], before, after)
    assert told is not None
    assert scraped is not None
    assert (told["source"], told["rate"], told["tokens_per_step"]) == ("answers", 0.75, 4.0)
    assert (scraped["source"], scraped["rate"], scraped["tokens_per_step"]) == ("metrics", 0.8, 3.0)
    assert (told["num_steps"], told["drafted_per_step"]) == (2, 4.0)
    assert (scraped["num_steps"], scraped["drafted_per_step"]) == (4, 2.5)
    assert acceptance([None], None, after) is None
    undrafted = acceptance([Drafts()], None, None)
    assert undrafted is not None
    assert undrafted["rate"] is undrafted["drafted_per_step"] is None
