"""Rows that are decoded in ways of their own, in as few passes as their rules allow.

Rows share a pass where the rule that judges them is the same and no two of their drafters read
different layers of the target:

    rows          lookup+match   lm+match   dspark+match   lm+rejection   eagle3+match
    passes        ─────────────── one ────────────────     ──── one ────  ─── one ────

Which rows share one changes no token: what is computed for a row depends on that row.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import TypeAlias

from forerun.draft import Commit
from forerun.drafters.guard import Guard
from forerun.drafters.mixed import Mixed, Seat, Widest
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence
from forerun.protocols import Rule
from forerun.shapes.chain import Chain
from forerun.stats import RoundMeter

Run: TypeAlias = Callable[[Rows[Sequence], Parts, RoundMeter], list[Commit | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows of one pass, and the parts that their round is made of."""

    rows: list[Sequence]
    parts: Parts


def run_groups(
    run: Run, rows: Rows[Sequence], own: Parts, meter: RoundMeter
) -> list[Commit | None]:
    """One round of all rows, a pass a group: what each gained, or None for a row that failed."""
    if one_way(rows, own) is own:
        return run(rows, own, meter)
    commits: dict[int, Commit | None] = {}
    for group in grouped(rows, own):
        gained = run(group.rows, group.parts, meter)
        commits |= {row.id: commit for row, commit in zip(group.rows, gained, strict=True)}
    return [commits[row.id] for row in rows]


def one_way(rows: Rows[Sequence], own: Parts) -> Parts | None:
    """The parts that all rows are decoded with, whose costs their round then tells; None where they
    differ, or somebody drafts beside them."""
    parts = {id(row.parts): row.parts for row in rows}
    is_one = len(parts) == 1 and all(row.expected is None for row in rows)
    return (rows[0].parts or own) if is_one else None


def grouped(rows: Rows[Sequence], own: Parts) -> list[Group]:
    """The groups, in the order of their first rows."""
    taps_of: dict[int, tuple[int, ...]] = {}  # the first layers that anybody reads, by rule
    for row in rows:
        parts = row.parts or own
        taps_of.setdefault(id(parts.rule), parts.drafter.tap_layers)
        taps_of[id(parts.rule)] = taps_of[id(parts.rule)] or parts.drafter.tap_layers
    groups: dict[tuple[int, tuple[int, ...]], list[Sequence]] = {}
    for row in rows:
        parts = row.parts or own
        # Who reads nothing may ride with whoever does.
        taps = parts.drafter.tap_layers or taps_of[id(parts.rule)]
        groups.setdefault((id(parts.rule), taps), []).append(row)
    return [Group(group, _parts(group, own, taps)) for (_, taps), group in groups.items()]


def _parts(rows: list[Sequence], own: Parts, taps: tuple[int, ...]) -> Parts:
    """What the round of a group is made of."""
    first = rows[0].parts or own
    if one_way(rows, own) is first:
        return replace(first, witness=own.witness)
    return _mixed(_seats(rows, own), own, first.rule, taps)


def _seats(rows: list[Sequence], own: Parts) -> dict[int, Seat]:
    """Every row's own guard, and how much that may propose."""
    ways: dict[int, list[Sequence]] = {}
    for row in rows:
        ways.setdefault(id(row.parts), []).append(row)
    seats = {row.id: Seat((row.parts or own).drafter, Chain(1), 0, row.expected) for row in rows}
    for members in ways.values():
        parts = members[0].parts or own
        asking = [row.id for row in members if row.speculates]
        for at, most in zip(asking, parts.lengths_for(asking, len(rows)), strict=True):
            seats[at] = replace(seats[at], shape=parts.shape, most=most)
    return seats


def _mixed(seats: dict[int, Seat], own: Parts, rule: Rule, taps: tuple[int, ...]) -> Parts:
    shape = Widest(max(seat.widest for seat in seats.values()))
    guard = Guard(Mixed(seats, taps), shape, own.target.spec.vocab)
    for sequence_id in seats:
        guard.admit(sequence_id, ())
    return replace(own, drafter=guard, shape=shape, rule=rule, pace=None, prices=None)
