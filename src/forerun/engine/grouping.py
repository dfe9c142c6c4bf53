"""Rows that are decoded in ways of their own, in as few passes as their rules allow.

Rows share a pass where the rule that judges them is the same and no two of their drafters read
different layers of the target:

    rows          lookup+match   lm+match   dspark+match   lm+rejection   eagle3+match
    passes        ─────────────── one ────────────────     ──── one ────  ─── one ────

Which rows share one changes no token: what is computed for a row depends on that row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import TypeAlias

from forerun.control.pace import Kept
from forerun.draft import Commit
from forerun.drafters.guard import Guard
from forerun.drafters.mixed import Mixed, Seat, Share, Widest
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence
from forerun.shapes.chain import Chain
from forerun.stats import RoundMeter, RoundStats

Run: TypeAlias = Callable[[Rows[Sequence], Parts, RoundMeter], list[Commit | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows of one pass, and the parts that their round is made of."""

    rows: list[Sequence]
    parts: Parts


def run_groups(
    run: Run, rows: Rows[Sequence], own: Parts, meter: RoundMeter, shares: dict[Guard, Share]
) -> list[Commit | None]:
    """One round of all rows, a pass a group: what each gained, or None for a row that failed.

    `shares` are told what each drafter took, unless all rows are decoded in one way.
    """
    way = one_way(rows, own)
    if way is not None:
        return run(rows, own if way is own else replace(way, witness=own.witness), meter)
    commits: dict[int, Commit | None] = {}
    for group in grouped(rows, own, shares):
        gained = run(group.rows, group.parts, meter)
        commits |= {row.id: commit for row, commit in zip(group.rows, gained, strict=True)}
    return [commits[row.id] for row in rows]


def learn(
    rows: Rows[Sequence],
    own: Parts,
    stats: RoundStats,
    kept: Rows[Kept],
    shares: Mapping[Guard, Share],
    *,
    is_steady: bool,
) -> None:
    """Let every way that draws lengths of its own know what a round cost, and what its rows kept.

    Seconds of drafting are its own; those of passes are everybody's, as their nodes are.
    """
    for members in _by_way(rows).values():
        parts = members[0].parts or own
        if parts.pace is None and parts.shared_prices is None:
            continue
        # What a text brought that somebody expected says nothing of the drafter.
        ids = {row.id for row in members if row.expected is None or not row.expected.is_pending}
        share = shares.get(parts.drafter)
        told = stats
        if share is not None:
            seconds, num_passes = share.span.seconds, share.num_passes
            told = replace(stats, draft_s=seconds, num_draft_passes=num_passes)
        if parts.pace is not None:
            parts.pace.learn(told, [one for one in kept if one[0] in ids], is_steady=is_steady)
        if parts.shared_prices is not None and is_steady:
            num_drafted = sum(one[1] for one in kept if one[0] in ids)
            parts.shared_prices.learn(told, len(members), num_drafted)
    if not is_steady or one_way(rows, own) is not own:
        return
    if own.prices is not None:
        own.prices.learn(stats)
    if own.patience is not None:
        own.patience.learn_round(stats.num_accepted + len(rows), stats.round_s)


def one_way(rows: Rows[Sequence], own: Parts) -> Parts | None:
    """The parts that all rows are decoded with; None where they differ, or an expected text drafts
    beside them."""
    first = rows[0].parts
    is_one = all(row.parts is first and row.expected is None for row in rows)
    return (first or own) if is_one else None


def grouped(rows: Rows[Sequence], own: Parts, shares: dict[Guard, Share]) -> list[Group]:
    """The groups, in the order of their first rows."""
    taps_of: dict[int, tuple[int, ...]] = {}  # the first layers that anybody reads, by rule
    for row in rows:
        parts = row.parts or own
        taps_of[id(parts.rule)] = taps_of.get(id(parts.rule)) or parts.drafter.tap_layers
    groups: dict[tuple[int, tuple[int, ...]], list[Sequence]] = {}
    for row in rows:
        parts = row.parts or own
        # Who reads nothing may ride with whoever does.
        taps = parts.drafter.tap_layers or taps_of[id(parts.rule)]
        groups.setdefault((id(parts.rule), taps), []).append(row)
    return [Group(group, _mixed(group, own, taps, shares)) for (_, taps), group in groups.items()]


def _mixed(
    rows: list[Sequence], own: Parts, taps: tuple[int, ...], shares: dict[Guard, Share]
) -> Parts:
    """What the round of a group is made of."""
    seats = _seats(rows, own)
    shape = Widest(max(seat.widest for seat in seats.values()))
    guard = Guard(Mixed(seats, taps, shares), shape, own.target.spec.vocab)
    for sequence_id in seats:
        guard.admit(sequence_id, ())
    rule = (rows[0].parts or own).rule
    return replace(own, drafter=guard, shape=shape, rule=rule, pace=None, prices=None)


def _seats(rows: list[Sequence], own: Parts) -> dict[int, Seat]:
    """Every row's own guard, and how much that may propose."""
    seats = {row.id: Seat((row.parts or own).drafter, Chain(1), 0, row.expected) for row in rows}
    for members in _by_way(rows).values():
        parts = members[0].parts or own
        asking = [row.id for row in members if row.speculates]
        for at, most in zip(asking, parts.lengths_for(asking, len(rows)), strict=True):
            seats[at] = replace(seats[at], shape=parts.shape, most=most)
    return seats


def _by_way(rows: Rows[Sequence]) -> dict[int, list[Sequence]]:
    ways: dict[int, list[Sequence]] = {}
    for row in rows:
        ways.setdefault(id(row.parts), []).append(row)
    return ways
