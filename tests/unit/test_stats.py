"""Spans, rounds and requests add up."""

from __future__ import annotations

import json

from forerun.stats import GenerationStats, RoundMeter, RoundStats, Span, Tally


def test_given_several_uses_then_a_span_sums_them(own_time):
    span = Span()
    for _ in range(2):
        with span:
            own_time.sleep(2.0)
        own_time.sleep(100.0)

    assert span.seconds == 4.0


def test_given_a_round_then_engine_time_is_what_backends_leave():
    meter = RoundMeter()
    meter.round.seconds, meter.verify.seconds, meter.model.seconds = 10.0, 6.0, 3.0
    meter.draft.seconds, meter.num_drafted, meter.num_accepted = 3.5, 4, 2

    stats = meter.stats(2)
    meter.restart()

    assert stats == RoundStats(2, 4, 2, 10.0, 3.5, 6.0, 1.0)
    assert meter.stats(1) == RoundStats(1, 0, 0, 0.0, 0.0, 0.0, 0.0)


def test_given_a_request_then_its_figures_are_those_of_its_rounds():
    tally = Tally(prefill_s=1.0, num_drafted=6, num_accepted=3)
    tally.rounds += [
        RoundStats(1, 3, 1, 2.0, 0.5, 1.0, 0.5),
        RoundStats(1, 3, 2, 2.0, 0.5, 1.0, 0.5),
    ]

    stats = tally.freeze(num_generated=8)

    assert (stats.num_rounds, stats.decode_s, stats.tokens_per_s) == (2, 4.0, 2.0)
    assert (stats.draft_s, stats.verify_s, stats.engine_s) == (1.0, 2.0, 1.0)


def test_given_stats_then_their_dict_is_json_and_has_the_promised_keys():
    keys = {"num_rounds", "num_drafted", "num_accepted", "prefill_s", "decode_s", "tokens_per_s"}

    made = json.loads(json.dumps(GenerationStats().as_dict()))

    assert keys <= made.keys()
    assert "rounds" not in made
