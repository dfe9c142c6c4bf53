"""A timeline of lanes as a picture: SVG as text of our own, PNG where matplotlib is installed.

Knows where things lie on a picture. What they are is `timeline.py`.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import floor, log10
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from forerun.errors import OptionError
from forerun.tools.timeline import (
    DRAFT,
    FORECAST,
    MEANINGS,
    REDRAFT,
    TARGET,
    VERIFY,
    WAIT,
    Bar,
    Mark,
    Timeline,
    caption,
    causes_in,
)

# Colours that remain apart for all eyes; every mark has a shape of its own too.
FILLS = {VERIFY: "#3b6fb6", FORECAST: "#e8a33d", WAIT: "#d5d5d5", REDRAFT: "#9c5fb5"}
KINDS = {
    VERIFY: "verify",
    WAIT: "the target waits",
    FORECAST: "draft ahead",
    REDRAFT: "draft while the target waits",
}
INKS = {
    "hit": "#1a7f37",
    "wrong": "#c62828",
    "short": "#b26a00",
    "late": "#8e24aa",
    "cold": "#00838f",
    "none": "#777777",
}
_WIDTH, _LEFT, _RIGHT = 1160.0, 92.0, 20.0
_BAR = 26.0
_LANES = {TARGET: 96.0, DRAFT: 138.0}
_MARKS, _TOKENS, _GHOST, _AXIS, _LEGEND, _HEIGHT = 76.0, 190.0, 222.0, 250.0, 284.0, 344.0
_INK, _FAINT = "#1c1c1c", "#6a6a6a"


def refuse_other_pictures(path: Path) -> None:
    """Raises OptionError for a kind of picture that cannot be drawn here."""
    if path.suffix not in (".svg", ".png"):
        raise OptionError(f"the timeline {path} must end in .svg or .png")
    if path.suffix == ".png" and find_spec("matplotlib") is None:
        raise OptionError(
            f"{path} needs the package matplotlib: pip install matplotlib, or write a .svg"
        )


def write_picture(path: Path, timeline: Timeline, title: str) -> None:
    """Write the picture that the name asks for.

    Raises:
        OptionError: the directory is not there, or may not be written to.
    """
    try:
        if path.suffix == ".svg":
            path.write_text(svg_of(timeline, title), encoding="utf-8")
        else:
            _write_png(path, timeline, title)
    except OSError as error:
        raise OptionError(f"the timeline {path} cannot be written: {error}") from error


def svg_of(timeline: Timeline, title: str) -> str:
    """The picture as SVG: a `rect` of class `span` for each span, a shape of class `mark` for each
    round, a `line` of class `ghost` for each token of plain decoding."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{_WIDTH:g}" height="{_HEIGHT:g}" fill="#ffffff"/>',
        _text(16, 26, title, size=16, weight="600"),
        _text(16, 46, caption(timeline), ink=_FAINT),
        *[_text(16, y + 18, name) for y, name in ((_LANES[TARGET], "target"), (138.0, "drafter"))],
        _text(16, _TOKENS + 5, "tokens"),
        _text(16, _GHOST + 5, "plain", ink=_FAINT),
        *[_span(bar, timeline.length_s) for bar in timeline.bars],
        *[part for mark in timeline.marks for part in _round(mark, timeline.length_s)],
        *[_ghost(at, timeline.length_s) for at in timeline.ghost],
        *_axis(timeline.length_s),
        *_legend(timeline),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def step_of(length_s: float) -> float:
    """Seconds between two ticks: 1, 2 or 5 times a power of ten, at most ten of them."""
    power = 10.0 ** floor(log10(length_s / 10))
    return next(at for at in (power, 2 * power, 5 * power, 10 * power) if at * 10 >= length_s)


def _x(second: float, length_s: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (second / length_s if length_s > 0 else 0.0)


def _text(x: float, y: float, text: str, **style: Any) -> str:
    ink, size = style.get("ink", _INK), style.get("size", 13)
    weight, anchor = style.get("weight", "400"), style.get("anchor", "start")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink}" font-size="{size}" font-weight="{weight}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )


def _span(bar: Bar, length_s: float) -> str:
    left, right = _x(bar.began_s, length_s), _x(min(bar.ended_s, length_s), length_s)
    took = f"{KINDS[bar.kind]}: {(bar.ended_s - bar.began_s) * 1e3:.2f} ms"
    return (
        f'<rect class="span {bar.kind}" x="{left:.2f}" y="{_LANES[bar.lane]:g}" rx="2"'
        f' width="{max(0.5, right - left - 0.5):.2f}" height="{_BAR:g}"'
        f' fill="{FILLS[bar.kind]}"><title>{escape(took)}</title></rect>'
    )


def _round(mark: Mark, length_s: float) -> list[str]:
    """How a round began above it, what it emitted below its end, and a line between rounds."""
    x, end = _x(mark.began_s, length_s), _x(mark.ended_s, length_s)
    return [
        f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{_MARKS + 10:g}" y2="{_TOKENS + 8:g}"'
        ' stroke="#1c1c1c" stroke-opacity="0.25" stroke-dasharray="2 3"/>',
        shape_of(mark.cause, x, _MARKS),
        _text((x + end) / 2, _TOKENS + 5, f"+{mark.num_tokens}", weight="600", anchor="middle"),
    ]


def shape_of(cause: str, x: float, y: float) -> str:
    """The mark of a cause: filled disc, cross, triangle, diamond, ring, or bar."""
    ink, head = INKS[cause], f'class="mark {cause}"'
    paths = {
        "wrong": f"M{x - 5:.1f} {y - 5:.1f} l10 10 m0 -10 l-10 10",
        "short": f"M{x - 6:.1f} {y - 5:.1f} h12 l-6 11 z",
        "late": f"M{x:.1f} {y - 7:.1f} l7 7 l-7 7 l-7 -7 z",
        "none": f"M{x - 4:.1f} {y:.1f} h8",
    }
    if cause == "hit":
        return f'<circle {head} cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{ink}"/>'
    if cause == "cold":
        return (
            f'<circle {head} cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{ink}"'
            ' stroke-width="2"/>'
        )
    return f'<path {head} d="{paths[cause]}" fill="none" stroke="{ink}" stroke-width="2.5"/>'


def _ghost(at: float, length_s: float) -> str:
    x = _x(at, length_s)
    return (
        f'<line class="ghost" x1="{x:.2f}" x2="{x:.2f}" y1="{_GHOST - 6:g}" y2="{_GHOST + 6:g}"'
        ' stroke="#8a8a8a" stroke-width="1.5"/>'
    )


def _axis(length_s: float) -> list[str]:
    if length_s <= 0:
        return []
    step = step_of(length_s)
    ticks = [at * step for at in range(int(length_s / step + 1e-9) + 1)]
    right = _WIDTH - _RIGHT
    parts = [
        f'<line x1="{_LEFT:g}" x2="{right:g}" y1="{_AXIS - 14:g}" y2="{_AXIS - 14:g}"'
        ' stroke="#b0b0b0"/>'
    ]
    return parts + [
        _text(_x(at, length_s), _AXIS + 4, f"{at * 1e3:g} ms", ink=_FAINT, size=11, anchor="middle")
        for at in ticks
    ]


def _legend(timeline: Timeline) -> list[str]:
    """Only what the picture has."""
    parts, x = [], _LEFT
    kinds = {bar.kind for bar in timeline.bars}
    for kind in (one for one in KINDS if one in kinds):
        parts.append(
            f'<rect x="{x:.1f}" y="{_LEGEND - 10:g}" width="16" height="12" rx="2"'
            f' fill="{FILLS[kind]}"/>'
        )
        parts.append(_text(x + 22, _LEGEND, KINDS[kind], size=12))
        x += 46 + 6.6 * len(KINDS[kind])
    parts.append(_text(x, _LEGEND, "| a token of plain decoding", ink=_FAINT, size=12))
    x = _LEFT
    for cause in causes_in(timeline):
        shape = shape_of(cause, x + 8, _LEGEND + 26 - 4).replace('class="mark', 'class="key')
        parts += [shape, _text(x + 22, _LEGEND + 26, MEANINGS[cause], size=12)]
        x += 46 + 6.6 * len(MEANINGS[cause])
    return parts


def _write_png(path: Path, timeline: Timeline, title: str) -> None:
    from matplotlib.figure import Figure

    from forerun.tools.timeline_plot import draw

    figure = Figure(figsize=(11.6, 3.6), dpi=130, layout="constrained")
    draw(figure.add_subplot(), timeline, title)
    figure.savefig(path)
