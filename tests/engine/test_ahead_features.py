"""A drafter on features that breaks in the middle of a request drafts again for it: what the target
said of the text is told to it anew."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ahead_parts import (
    Faulty,
    Patient,
    in_time,
    killed,
    lane_sums,
    overlapped_of,
    raises,
)
from engine.conftest import HAS_NATIVE
from engine.lattice import completions, differences, opened, outcomes, unstopped
from engine.test_ahead_faults import watched
from forerun.drafters.lane_side import LaneSide
from forerun.drafters.told import Told

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="the native core is not built")
VOCAB, LENGTH, FIRST_REST = 272, 80, 8
DRAFTERS = ("dspark:{dspark}", "dspark:{rnn}", "dflash:{dflash}", "eagle3:{eagle3}")


class FaultyFeatured(Faulty):
    """The same around a drafter that reads features."""

    @property
    def tap_layers(self):
        return self.inner.tap_layers

    def absorb(self, sequence_id, features):
        self.inner.absorb(sequence_id, features)


def run_of(places, drafter, fault, monkeypatch=None, rows=(20, 45)):
    """A run whose drafter breaks in its fifth round: texts and figures."""
    with opened(places, (drafter, "chain:3", "match", "ahead:8")) as engine:
        overlapped = overlapped_of(engine)
        faulty = FaultyFeatured(overlapped._drafter)
        overlapped._drafter, overlapped._side = faulty, LaneSide(faulty, VOCAB)
        overlapped._waits = Patient()
        in_time(overlapped)
        if monkeypatch is not None:
            monkeypatch.setattr(overlapped, "_told", Told(0))
        if fault is not None:
            watched(engine, 5, lambda: faulty.breaks(fault))
        made = completions(engine, unstopped(rows, max_tokens=LENGTH))
        return outcomes(made), lane_sums(made)


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("fault", [raises, killed])
def test_given_a_restart_in_the_middle_then_the_same_request_is_drafted_for_again(
    places, drafter, fault
):
    healthy, usual = run_of(places, drafter, None)
    texts, lane = run_of(places, drafter, fault)

    assert differences(healthy, texts) == []
    # what is lost is the rest and a round or two around it, of each row
    assert usual["hits"] > 0
    assert usual["hits"] - lane["hits"] <= 2 * (FIRST_REST + 6)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_control_given_nothing_told_again_then_the_rest_of_the_request_is_not_drafted_for(
    places, drafter, monkeypatch
):
    told = run_of(places, drafter, raises)
    untold = run_of(places, drafter, raises, monkeypatch)

    assert differences(*[one[0] for one in (told, untold)]) == []
    assert untold[1]["hits"] < told[1]["hits"] // 2


def test_given_features_then_they_are_kept_in_order_and_forgotten():
    told = Told(64)
    parts = [np.full((2, 2), at, np.float32) for at in range(3)]
    told.begin(1)
    for part in parts:
        told.add(1, part)
    told.add(2, parts[0])  # nobody began it

    assert [one[0, 0] for one in told.of(1)] == [0, 1, 2]
    assert told.of(2) == ()
    told.forget(1)
    assert told.of(1) == ()


def test_given_more_than_there_is_room_for_then_a_sequence_is_kept_whole_or_not_at_all():
    told = Told(64)
    part = np.zeros((2, 2), np.float32)  # 16 bytes
    for sequence_id in (1, 2):
        told.begin(sequence_id)
        for _ in range(2):
            told.add(sequence_id, part)
    told.add(1, part)

    assert len(told.of(1)) == 0
    assert len(told.of(2)) == 2
    told.add(1, part)
    assert len(told.of(1)) == 0  # what comes behind a gap is of no use
    told.begin(3)
    told.add(3, part)
    assert len(told.of(3)) == 1  # the room is there again
