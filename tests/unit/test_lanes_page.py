"""Lanes that were raced as a page: what is judged, by which bar, and what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("draft_share", "ratio", "says"),
    [
        (0.27, 1.09, ("≥ 1.08", "met")),
        (0.45, 1.19, ("≥ 1.2", "**missed**")),
        (0.88, 1.35, ("≥ 1.35", "met")),
        (0.15, 1.5, ("", "")),
        (1.2, 1.5, ("", "")),
    ],
)
def test_given_a_drafter_in_cache_then_the_bar_is_that_of_the_nearest_s(draft_share, ratio, says):
    from lanes_page import gain_verdict

    row = {"draft_share": draft_share, "drafter_bytes": 25e6, "ahead_over_sequential": ratio}

    assert gain_verdict(row) == says


def test_given_a_drafter_larger_than_the_cache_then_nothing_is_judged():
    from lanes_page import gain_verdict

    row = {"draft_share": 0.5, "drafter_bytes": 96e6, "ahead_over_sequential": 2.0}

    assert gain_verdict(row) == ("", "")
