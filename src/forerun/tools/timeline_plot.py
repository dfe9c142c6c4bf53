"""A timeline of lanes on axes of matplotlib, which are handed in: it is imported by who has it."""

from __future__ import annotations

from typing import Any

from forerun.tools.timeline import DRAFT, MEANINGS, TARGET, Timeline, caption, causes_in
from forerun.tools.timeline_pictures import FILLS, INKS, KINDS

_SHAPES = {"hit": "o", "wrong": "x", "short": "v", "late": "D", "cold": "o", "none": "_"}
_HOLLOW = ("short", "late", "cold")
_PLACES = {TARGET: 3.0, DRAFT: 2.0}
_TOKENS, _GHOST, _MARKS = 1.25, 0.6, 3.72


def draw(axes: Any, timeline: Timeline, title: str) -> None:
    """Two lanes, marks above them, tokens and plain decoding beneath."""
    shown = set()
    for bar in timeline.bars:
        label = KINDS[bar.kind] if bar.kind not in shown else None
        shown.add(bar.kind)
        width = (min(bar.ended_s, timeline.length_s) - bar.began_s) * 1e3
        axes.barh(
            _PLACES[bar.lane], width, left=bar.began_s * 1e3, height=0.62, color=FILLS[bar.kind],
            label=label, linewidth=0.8, edgecolor="white",
        )  # fmt: skip
    for cause in causes_in(timeline):
        times = [one.began_s * 1e3 for one in timeline.marks if one.cause == cause]
        face = {"facecolors": "none"} if cause in _HOLLOW else {}
        colour = {"edgecolors": INKS[cause]} if cause in _HOLLOW else {"color": INKS[cause]}
        axes.scatter(
            times, [_MARKS] * len(times), marker=_SHAPES[cause], s=46, linewidths=1.8,
            label=MEANINGS[cause], zorder=3, clip_on=False, **face, **colour,
        )  # fmt: skip
    for one in timeline.marks:
        axes.axvline(one.began_s * 1e3, color="#1c1c1c", alpha=0.18, linewidth=0.8, linestyle=":")
        middle = (one.began_s + one.ended_s) * 0.5e3
        axes.text(middle, _TOKENS, f"+{one.num_tokens}", ha="center", va="center", weight="bold")
    ghost = [at * 1e3 for at in timeline.ghost]
    axes.scatter(
        ghost, [_GHOST] * len(ghost), marker="|", s=60, color="#8a8a8a",
        label="a token of plain decoding",
    )  # fmt: skip
    _dress(axes, timeline, title)


def _dress(axes: Any, timeline: Timeline, title: str) -> None:
    axes.set_yticks([3.0, 2.0, _TOKENS, _GHOST], ["target", "drafter", "tokens", "plain"])
    axes.set_ylim(0.3, 3.95)
    axes.set_xlim(0.0, max(timeline.length_s * 1e3, 1e-3))
    axes.set_xlabel("ms")
    axes.set_title(f"{title}\n{caption(timeline)}", loc="left", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=4, frameon=False, fontsize=8)
