"""Two lanes as a picture: what lies where, in values, in SVG, in lines of text and as PNG."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from forerun.errors import OptionError
from forerun.stats import LaneStats, RoundStats
from forerun.tools.lane_report import LaneRun
from forerun.tools.timeline import (
    DRAFT,
    FORECAST,
    MARKS,
    REDRAFT,
    TARGET,
    VERIFY,
    WAIT,
    Timeline,
    caption,
    lines_of,
    timeline_of,
    typical,
)
from forerun.tools.timeline_pictures import (
    INKS,
    refuse_other_pictures,
    shape_of,
    step_of,
    svg_of,
    write_picture,
)

START = 100.0


def made(at: int, lane: LaneStats | None) -> RoundStats:
    """A round of ten seconds: one drafts, eight verify."""
    return RoundStats(1, 3, 2, 10.0, 1.0, 8.0, 1.0, 3, START + 10.0 * at, lane)


@pytest.fixture
def ahead() -> LaneRun:
    """The prompt's round, then a hit, a miss that waited and was drafted anew, and a hit."""
    hit = LaneStats(num_hits=1, began_s=START + 1.5, busy_s=7.0)
    miss = LaneStats(
        num_wrong=1, num_redrafted=1, began_s=START + 11.0, busy_s=9.5, wait_s=0.5, redraft_s=0.4
    )
    last = LaneStats(num_hits=1, began_s=START + 21.0, busy_s=7.0)
    lanes = (LaneStats(num_cold=1), hit, miss, last)
    return LaneRun(tuple(made(at, lane) for at, lane in enumerate(lanes)), (1, 3, 1, 4))


@pytest.fixture
def plain() -> LaneRun:
    """A token every six seconds."""
    one = RoundStats(1, 0, 0, 6.0, 0.0, 6.0, 0.0)
    return LaneRun((one,) * 20, (1,) * 20)


def test_given_rounds_then_spans_lie_where_they_were(ahead: LaneRun, plain: LaneRun) -> None:
    # When: the picture begins with the second round, ten seconds later.
    found = timeline_of(ahead, plain)
    spans = {(one.lane, one.kind, one.began_s, round(one.ended_s, 6)) for one in found.bars}
    # Then: the forecast that the second round collected was made before the picture begins.
    assert spans == {
        (TARGET, VERIFY, 1.0, 9.0),
        (TARGET, VERIFY, 11.0, 19.0),
        (TARGET, VERIFY, 21.0, 29.0),
        (DRAFT, FORECAST, 1.0, 10.5),
        (DRAFT, FORECAST, 11.0, 18.0),
        (TARGET, WAIT, 10.0, 10.9),
        (DRAFT, REDRAFT, 10.5, 10.9),
    }
    assert [(one.cause, one.num_tokens) for one in found.marks] == [
        ("hit", 3), ("wrong", 1), ("hit", 4),
    ]  # fmt: skip
    assert found.length_s == 30.0
    assert found.num_tokens == 8


def test_given_plain_decoding_then_its_ghost_begins_at_the_same_token(
    ahead: LaneRun, plain: LaneRun
) -> None:
    found = timeline_of(ahead, plain)
    assert found.ghost == (6.0, 12.0, 18.0, 24.0, 30.0)
    assert "2 of 3 began with a prepared draft; 8 tokens, plain decoding 5" in caption(found)


def test_given_a_window_then_only_its_rounds_are_drawn(ahead: LaneRun, plain: LaneRun) -> None:
    found = timeline_of(ahead, plain, first=0, num_rounds=2)
    assert [one.cause for one in found.marks] == ["cold", "hit"]
    # And: the forecast of the last round drawn, which the next one collects.
    forecasts = [bar.began_s for bar in found.bars if bar.kind == FORECAST]
    assert forecasts == [1.5, 11.0]
    assert timeline_of(ahead, plain, first=9) == Timeline((), (), ())


def test_given_many_rounds_then_the_typical_ones_are_drawn(ahead: LaneRun) -> None:
    # Given: two hits of three rounds; a request without drafts, and one that only hits.
    idle = LaneRun(tuple(made(at, LaneStats()) for at in range(4)), (1,) * 4)
    hits = LaneRun(tuple(made(at, LaneStats(num_hits=1)) for at in range(4)), (1,) * 4)
    # Then: as many drafts as can be, and of those the share of hits of all (5 of 6).
    assert typical([idle, hits, ahead], 3) == (1, 1)
    assert typical([idle, ahead, ahead], 3) == (1, 1)
    assert typical([ahead], 2) == (0, 1)
    assert typical([], 2) == (0, 1)


def test_given_a_timeline_then_its_svg_has_an_element_for_each_thing(
    ahead: LaneRun, plain: LaneRun
) -> None:
    found = timeline_of(ahead, plain)
    root = ET.fromstring(svg_of(found, "lm <b> & ahead:8"))
    classes = [one.get("class", "").split(" ") for one in root.iter()]
    assert [names[1] for names in classes if names[0] == "span"] == [bar.kind for bar in found.bars]
    assert [names[1] for names in classes if names[0] == "mark"] == ["hit", "wrong", "hit"]
    assert sum(names == ["ghost"] for names in classes) == len(found.ghost)
    texts = [one.text for one in root.iter() if one.tag.endswith("text")]
    assert "lm <b> & ahead:8" in texts
    assert {"+3", "+1", "+4"} <= set(texts)


def test_given_no_round_then_the_picture_is_empty_and_whole() -> None:
    nothing = Timeline((), (), ())
    assert ET.fromstring(svg_of(nothing, "nothing")).tag.endswith("svg")
    assert lines_of(nothing, 40)


def test_given_marks_then_each_has_a_shape_and_a_colour_of_its_own() -> None:
    bare = {
        cause: shape_of(cause, 0.0, 0.0).replace(f"mark {cause}", "").replace(INKS[cause], "")
        for cause in MARKS
    }
    assert len(set(bare.values())) == len(MARKS)
    assert len(set(INKS.values())) == len(MARKS)
    assert len({shape for shape, _ in MARKS.values()}) == len(MARKS)
    assert len({colour for _, colour in MARKS.values()}) == len(MARKS)


def test_given_a_width_then_lines_fit_it_and_show_both_lanes(
    ahead: LaneRun, plain: LaneRun
) -> None:
    # When: 30 seconds in 60 cells behind labels of 9.
    lines = [text.plain for text in lines_of(timeline_of(ahead, plain), 69)]
    target, drafter, rounds, tokens, ghost, *_ = lines
    # Then: a cell is half a second.
    assert target[9:29] == "  " + "█" * 16 + "  "
    assert target[29:31] == "··"
    assert drafter[9:30] == "  " + "▓" * 19
    assert (rounds[9], rounds[29], rounds[49]) == ("●", "✕", "●")
    assert (tokens[9], tokens[29], tokens[49]) == ("3", "1", "4")
    assert [at - 9 for at, cell in enumerate(ghost) if cell == "|"] == [12, 24, 36, 48]
    assert max(map(len, lines[:5])) <= 69


@pytest.mark.parametrize(("length_s", "step"), [(1.0, 0.1), (0.0999, 0.01), (0.3, 0.05), (7, 1.0)])
def test_given_a_length_then_there_are_at_most_ten_round_steps(
    length_s: float, step: float
) -> None:
    assert step_of(length_s) == pytest.approx(step)


def test_given_a_kind_of_picture_then_it_is_written_or_refused(
    ahead: LaneRun, plain: LaneRun, tmp_path: Path
) -> None:
    found = timeline_of(ahead, plain)
    write_picture(tmp_path / "a.svg", found, "lanes")
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
    with pytest.raises(OptionError, match="must end in"):
        refuse_other_pictures(tmp_path / "a.pdf")
    with pytest.raises(OptionError, match="cannot be written"):
        write_picture(tmp_path / "none" / "a.svg", found, "lanes")


def test_given_matplotlib_then_the_png_is_drawn_of_the_same_timeline(
    ahead: LaneRun, plain: LaneRun, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    refuse_other_pictures(tmp_path / "a.png")
    write_picture(tmp_path / "a.png", timeline_of(ahead, plain), "lanes")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_given_a_late_round_of_several_rows_then_its_cause_is_the_first_that_fits() -> None:
    both = replace(LaneStats(num_late=1), num_hits=1)
    plain = LaneRun((), ())
    found = timeline_of(LaneRun((made(0, both),), (2,)), plain, first=0)
    assert found.marks[0].cause == "hit"
