"""What two lanes did, round by round, as a value to be drawn; and drawn as lines of text.

Knows spans of time and marks on them; must not know files or engines. Pictures of it are
`timeline_pictures.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from forerun.stats import RoundStats
from forerun.tools.lane_report import LaneRun, cause_of, forecasting, verifying

NUM_ROUNDS = 16  # as many as can be told apart in a picture as wide as a page
TARGET, DRAFT = "target", "draft"
VERIFY, WAIT, FORECAST, REDRAFT = "verify", "wait", "forecast", "redraft"

# How a round may have begun: a shape each, as well as a colour.
MARKS = {
    "hit": ("\N{BLACK CIRCLE}", "green"),
    "wrong": ("\N{MULTIPLICATION X}", "red"),
    "short": ("\N{WHITE DOWN-POINTING TRIANGLE}", "yellow"),
    "late": ("\N{WHITE DIAMOND}", "magenta"),
    "cold": ("\N{WHITE CIRCLE}", "cyan"),
    "none": ("\N{MIDDLE DOT}", "dim"),
}
MEANINGS = {
    "hit": "prepared draft used",
    "wrong": "outcome not prepared",
    "short": "prepared, nothing below it yet",
    "late": "lane still at work",
    "cold": "nothing prepared",
    "none": "nothing to draft",
}
_BLOCKS = {
    VERIFY: ("\N{FULL BLOCK}", "blue"),
    WAIT: ("\N{MIDDLE DOT}", "dim"),
    FORECAST: ("\N{DARK SHADE}", "yellow"),
    REDRAFT: ("\N{LIGHT SHADE}", "magenta"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """Something a lane did; seconds from the first round's beginning."""

    lane: str
    kind: str
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A round: when it began, how, and how many tokens it emitted by its end."""

    began_s: float
    ended_s: float
    cause: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Rounds one after another. `ghost`: when plain decoding would have emitted each token, had it
    begun at the same token at the same time; as far as the last round."""

    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]
    ghost: tuple[float, ...]

    @property
    def length_s(self) -> float:
        """Until the last round has ended."""
        return max((one.ended_s for one in self.marks), default=0.0)

    @property
    def num_tokens(self) -> int:
        """What all rounds emitted."""
        return sum(one.num_tokens for one in self.marks)


def timeline_of(
    ahead: LaneRun, plain: LaneRun, first: int = 1, num_rounds: int = NUM_ROUNDS
) -> Timeline:
    """`num_rounds` rounds of a request from `first` on (the one before it also reads the prompt),
    above plain decoding of the same request."""
    chosen = ahead.rounds[first : first + num_rounds]
    if not chosen:
        return Timeline((), (), ())
    start_s = chosen[0].began_s
    marks = tuple(
        Mark(
            one.began_s - start_s,
            one.began_s + one.round_s - start_s,
            "none" if one.lane is None else cause_of(one.lane),
            num,
        )
        for one, num in zip(chosen, ahead.num_tokens[first:], strict=False)
    )
    length_s = marks[-1].ended_s
    bars = [bar for one in chosen for bar in _bars_of(one, start_s)]
    for one in ahead.rounds[first + num_rounds :][:1]:  # what it collected was made in the last
        bars += [bar for bar in _bars_of(one, start_s) if bar.kind == FORECAST]
    known = sum(ahead.num_tokens[:first])
    ghost = tuple(at for at in _ghost(plain, known) if at <= length_s)
    return Timeline(tuple(bar for bar in bars if 0.0 <= bar.began_s < length_s), marks, ghost)


def typical(requests: Sequence[LaneRun], num_rounds: int = NUM_ROUNDS) -> tuple[int, int]:
    """Which request, and from which round on, is most like all of them: of the windows of so many
    rounds with the most drafts, the first whose share of hits is the nearest to that of all."""
    causes = [
        ["none" if one.lane is None else cause_of(one.lane) for one in request.rounds]
        for request in requests
    ]
    every = [cause for own in causes for cause in own[1:]]
    rate = _hit_rate(every)
    windows = [
        (at, first)
        for at, own in enumerate(causes)
        for first in range(1, max(2, len(own) - num_rounds + 1))
    ]

    def oddity(window: tuple[int, int]) -> tuple[int, float]:
        own = causes[window[0]][window[1] : window[1] + num_rounds]
        return sum(cause == "none" for cause in own) - len(own), abs(_hit_rate(own) - rate)

    return min(windows, key=oddity, default=(0, 1))


def _hit_rate(causes: Sequence[str]) -> float:
    num_asked = sum(cause != "none" for cause in causes)
    return sum(cause == "hit" for cause in causes) / max(1, num_asked)


def lines_of(timeline: Timeline, width: int) -> list[Text]:
    """The timeline as lines of at most so many cells: two lanes, rounds, tokens, plain."""
    label = 9
    num_cells = max(8, width - label)
    scale = num_cells / timeline.length_s if timeline.length_s > 0 else 0.0
    lines = [Text(name.ljust(label)) for name in ("target", "drafter", "rounds", "tokens", "plain")]
    for line, lane in zip(lines, (TARGET, DRAFT), strict=False):
        _append_lane(line, [bar for bar in timeline.bars if bar.lane == lane], scale, num_cells)
    _append_cells(
        lines[2], [(one.began_s, *MARKS[one.cause]) for one in timeline.marks], scale, num_cells
    )
    counts = [(one.began_s, str(one.num_tokens), "bold") for one in timeline.marks]
    _append_cells(lines[3], counts, scale, num_cells)
    _append_cells(lines[4], [(at, "|", "dim") for at in timeline.ghost], scale, num_cells)
    return [*lines, *_legend(timeline, label)]


def causes_in(timeline: Timeline) -> list[str]:
    """The ways that rounds began here, in the order of `MARKS`."""
    there = {one.cause for one in timeline.marks}
    return [cause for cause in MARKS if cause in there]


def caption(timeline: Timeline) -> str:
    """What the picture shows, in figures."""
    hits = sum(one.cause == "hit" for one in timeline.marks)
    asked = sum(one.cause != "none" for one in timeline.marks)
    return (
        f"{len(timeline.marks)} rounds in {timeline.length_s * 1e3:.1f} ms: {hits} of {asked} began"
        f" with a prepared draft; {timeline.num_tokens} tokens, plain decoding"
        f" {len(timeline.ghost)} in the same time"
    )


def _bars_of(one: RoundStats, start_s: float) -> list[Bar]:
    """A round's own spans, and the forecast that it collected."""
    spans = [(TARGET, VERIFY, *verifying(one))]
    lane = one.lane
    if lane is not None:
        waited_s = one.began_s + lane.wait_s
        idle_s = lane.wait_s + lane.redraft_s
        if lane.busy_s > 0:
            spans.append((DRAFT, FORECAST, *forecasting(lane)))
        if idle_s > 0:
            spans.append((TARGET, WAIT, one.began_s, one.began_s + idle_s))
        if lane.redraft_s > 0:
            spans.append((DRAFT, REDRAFT, waited_s, waited_s + lane.redraft_s))
    return [Bar(lane, kind, begin - start_s, end - start_s) for lane, kind, begin, end in spans]


def _ghost(plain: LaneRun, known: int) -> list[float]:
    """When plain decoding emits the tokens behind the first `known`, from when it has those."""
    times, at_s, num = [], 0.0, 0
    for one, more in zip(plain.rounds, plain.num_tokens, strict=True):
        num += more
        if num > known:
            at_s += one.round_s
            times += [at_s] * min(more, num - known)
    return times


def _append_lane(line: Text, bars: Sequence[Bar], scale: float, num_cells: int) -> None:
    """Each cell shows what the lane did for the longest part of it."""
    for cell in range(num_cells):
        shares = dict.fromkeys(_BLOCKS, 0.0)
        for bar in bars:
            inside = min(cell + 1.0, bar.ended_s * scale) - max(float(cell), bar.began_s * scale)
            shares[bar.kind] += max(0.0, inside)
        kind = max(shares, key=lambda one: shares[one])
        line.append(*(_BLOCKS[kind] if shares[kind] > 0.25 else (" ", "")))


def _append_cells(
    line: Text, texts: Sequence[tuple[float, str, str]], scale: float, num_cells: int
) -> None:
    """Short texts at their times; one that has no room is left out."""
    at = 0
    for second, text, style in texts:
        cell = int(second * scale)
        if cell < at or cell + len(text) > num_cells:
            continue
        line.append(" " * (cell - at))
        line.append(text, style)
        at = cell + len(text)


def _legend(timeline: Timeline, label: int) -> list[Text]:
    kinds = [kind for kind in _BLOCKS if any(bar.kind == kind for bar in timeline.bars)]
    lanes, rounds = Text(" " * label), Text(" " * label)
    for kind in kinds:
        lanes.append(*_BLOCKS[kind]).append(f" {kind}  ")
    for cause in causes_in(timeline):
        rounds.append(*MARKS[cause]).append(f" {MEANINGS[cause]}  ")
    return [lanes, rounds]
