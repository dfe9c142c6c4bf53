"""How many tokens to draft next for each row: as many as pay, by measured cost and acceptance.

Knows rounds only as numbers: rows, drafted, kept, seconds. Any lengths give the same tokens, so a
wrong guess costs time and nothing else. `shape=auto` uses it; an explicit shape is left alone.

    plain     nothing is known of a pass of so many rows: see what it costs
    look      a few rows draft a little: what does drafting cost, is it kept?
    plan      of all nodes of all rows take the likeliest, as long as tokens a second rise
    dare      now and then what is best if sizes of which little is known are as cheap as may be
    rest      drafting pays: a plain round all the same, rarely
    stretch   … or drafts of twice the length: are they kept?
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forerun.control.allotment import RoundCosts, allotted
from forerun.control.chances import Chances, Kept
from forerun.control.curve import Curve
from forerun.stats import RoundStats

__all__ = ["Kept", "Paces"]

_GAIN, _STAY = 1.02, 1.01  # drafting must win by so much to begin, and to go on
_FIRST_PROBE, _LAST_PROBE = 32, 512  # plain rounds between two looks whether drafting pays again
_LOOK_ROUNDS = 4  # of drafting in such a look; the first only lets the drafter catch up
_LOOK_PRICE = 4.0  # plain rounds that a look of all rows costs, most of it for reading their texts
_LOOK_ROWS = 16  # one row of so many drafts in a look …
_BLIND_ROWS = 4  # … and one of so many where nothing is known of larger passes
_REST, _STRETCH = 64, 128  # drafting rounds between two plain ones, or two of twice the length …
_DARE, _DARE_EARLY = 16, 4  # … or two of lengths that may be better by what is not known for sure
_HOPE = 1.0  # deviations by which such a round's seconds may be less than expected
_LOOK_LEN = 2
_STEP = 2.0  # no pass is planned that is larger by more than this than any that was seen
_OFTEN = 8  # rounds that a plan of many rows is kept for; making it costs time too …
_PLAN_S, _RAREST = 0.03, 32  # … and is not worth it for fewer seconds, but after so many rounds
_OTHER_PACE, _PACE_MEMORY = 0.3, 0.8  # running mean of surprise that all sizes are to blame for
_STALL = 0.5  # no round surprises more
_LEAST_S = 1e-9


class _Turns:
    """When to look and when to refresh: by counting rounds."""

    def __init__(self) -> None:
        self.is_resting, self.is_daring, self.is_stretching = False, False, False
        self.looks_left = 0
        self._num_drafting, self._num_plain = 0, 0
        self.look_after = _FIRST_PROBE
        self._is_in_doubt = False

    def begin_again(self) -> None:
        """What was known is in doubt: see what a plain round costs, and dare more for a while."""
        self._num_drafting, self._is_in_doubt = 0, True

    def turn(self, *, is_drafting: bool) -> None:
        """A round has ended in which something was asked for, or nothing."""
        if self.is_resting or self.is_daring or self.is_stretching:
            self.is_resting = self.is_daring = self.is_stretching = False
        elif self.looks_left:
            self.looks_left -= 1
        elif is_drafting:
            self.look_after, self._num_plain = _FIRST_PROBE, 0
            self._num_drafting += 1
            num = self._num_drafting
            self.is_resting, self._is_in_doubt = self._is_in_doubt or num % _REST == 0, False
            self.is_stretching = num % _STRETCH == _STRETCH // 4
            self.is_daring = num % (_DARE if num > _REST else _DARE_EARLY) == _DARE_EARLY // 2
        else:
            self._num_plain += 1
            if self._num_plain >= self.look_after:
                self.looks_left, self._num_plain = _LOOK_ROUNDS, 0
                self.look_after = min(2 * self.look_after, _LAST_PROBE)


class Paces:
    """Chooses the chain length of every row of the next round, 0 to `longest`.

    Yield: what a row's n-th drafted token adds is the chance that so long a chain of it is kept
    (`Chances`); a row of which little is known is like those before it when they were new.
    Cost: a target's pass by its nodes, a drafter's by its rows, each a curve of measured times that
    rounds of any number of rows share, so that what thirty drafting rows would cost is told from
    what three did.
    Before lengths are compared each of `probes` is looked at: a drafter whose first token is the
    dear one needs two.
    """

    def __init__(self, longest: int, probes: tuple[int, ...] = (_LOOK_LEN,)) -> None:
        self._longest = longest
        self._to_look = list(dict.fromkeys(min(probe, longest) for probe in probes))
        self._verify, self._draft, self._rest = Curve(), Curve(), Curve()
        self._slowness = 1.0  # of the machine lately, by which all seconds are divided
        self._surprise = 0.0
        self._chances = Chances(longest)
        self._has_passes = False  # whether a model drafts
        self._is_stepwise = False  # whether it needs a pass a token
        self._turns = _Turns()
        self._asked: dict[int, int] = {}
        self._asked_before: frozenset[int] = frozenset()
        self._looked_at: frozenset[int] = frozenset()
        self._plan: list[int] = []
        self._planned_for: tuple[int, tuple[int, ...]] = (0, ())
        self._age = 0
        self._round_s = 0.0  # of the last one

    @property
    def acceptance(self) -> float:
        """Probability that the next drafted token is kept, given that all before it were."""
        return self._chances.mean

    @property
    def is_drafting(self) -> bool:
        """Whether drafting paid when lengths were last compared; True before the first time."""
        return not self._planned_for[0] or any(self._plan)

    def lengths_for(self, row_ids: Sequence[int], num_rows: int) -> list[int]:
        """Most tokens to draft for each of these rows, in a round of `num_rows` in all."""
        lengths = self._lengths(tuple(row_ids), num_rows)
        self._asked = {row: num for row, num in zip(row_ids, lengths, strict=True) if num}
        return lengths

    def learn(self, stats: RoundStats, kept: Sequence[Kept], *, is_steady: bool = True) -> None:
        """Take in a decoding round, and what each row that drafted kept; only a steady one, with
        nothing in it but decoding, says what rounds cost."""
        if is_steady:
            self._learn_costs(stats, {row for row, num_drafted, _ in kept if num_drafted})
        drafted = [one for one in kept if one[1] and one[0] in self._asked]
        if drafted:
            self._chances.learn(drafted)
        self._turns.turn(is_drafting=bool(self._asked))
        self._asked_before = frozenset(self._asked)
        self._age += 1
        self._round_s = stats.round_s

    def forget(self, row_id: int) -> None:
        """A row has ended."""
        self._chances.forget(row_id)

    # --- what is known ---------------------------------------------------------------------------

    def _learn_costs(self, stats: RoundStats, drafted: set[int]) -> None:
        num_nodes = stats.num_rows + stats.num_drafted
        slowness = self._slowness_after(num_nodes, stats.verify_s)
        self._verify.take(num_nodes, stats.verify_s / slowness)
        rest_s = stats.round_s - stats.verify_s
        if self._asked:
            rest_s -= stats.draft_s
            # A row that did not draft the round before also reads what a model missed; one that
            # does not draft now still reads, or ends.
            self._has_passes = self._has_passes or stats.num_draft_passes > 0
            is_idle = self._has_passes and not self._asked.keys() <= drafted
            if self._asked.keys() <= self._asked_before and not is_idle:
                self._learn_draft(stats, slowness)
        self._rest.take(stats.num_rows, max(0.0, rest_s) / slowness)

    def _slowness_after(self, num_nodes: int, seconds: float) -> float:
        """How slow the machine is; where many rounds in a row surprise, it is another now."""
        expected_s = self._verify.mean_s(num_nodes) * self._slowness
        if expected_s:
            off = math.log(max(seconds, _LEAST_S) / expected_s)
            surprise = min(max(off, -_STALL), _STALL)
            self._surprise = _PACE_MEMORY * self._surprise + (1 - _PACE_MEMORY) * surprise
            if abs(self._surprise) > _OTHER_PACE:
                self._slowness *= math.exp(self._surprise)
                self._surprise = 0.0
                self._turns.begin_again()
        return self._slowness

    def _learn_draft(self, stats: RoundStats, slowness: float) -> None:
        passes = max(1, stats.num_draft_passes)
        self._is_stepwise = self._is_stepwise or passes > 1
        self._draft.take(len(self._asked), stats.draft_s / passes / slowness)
        if self._to_look and self._to_look[0] in self._asked.values():
            self._to_look.pop(0)

    # --- what to do ------------------------------------------------------------------------------

    def _lengths(self, row_ids: tuple[int, ...], num_rows: int) -> list[int]:
        if self._turns.is_resting or not self._verify.knows(num_rows):
            return [0] * len(row_ids)
        if self._to_look or self._turns.looks_left:
            return self._look(row_ids, num_rows)
        if self._turns.is_daring:
            return self._planned(row_ids, num_rows, _HOPE)
        now = num_rows, row_ids
        if now != self._planned_for or self._age >= self._lasts(num_rows):
            gain = _STAY if any(self._plan) else _GAIN
            self._plan = self._planned(row_ids, num_rows, gain=gain)
            self._planned_for, self._age = now, 0
        if self._turns.is_stretching:
            return [min(2 * length, self._longest) for length in self._plan]
        return self._plan

    def _lasts(self, num_rows: int) -> int:
        """Rounds that the plan is kept for: few where they may teach that it was none."""
        num_drafting = sum(length > 0 for length in self._plan)
        is_tried = self._verify.knows(num_rows + sum(self._plan))
        is_tried = is_tried and (not num_drafting or self._draft.knows(num_drafting))
        if not is_tried:
            return 2  # the first lets the drafter catch up
        num_worth = math.ceil(_PLAN_S / max(self._round_s, _LEAST_S))
        return max(min(1 + num_rows, _OFTEN), min(num_worth, _RAREST))

    def _look(self, row_ids: tuple[int, ...], num_rows: int) -> list[int]:
        """All that may well win, if that would pay for the look until the next one. Else few rows
        draft: those of the last look, for the drafter has read their text."""
        if not self._to_look:
            gain = 1.0 + _LOOK_PRICE / self._turns.look_after
            hoped = self._planned(row_ids, num_rows, _HOPE, gain)
            if any(hoped):
                return hoped
        share = _LOOK_ROWS if self._verify.has_slope else _BLIND_ROWS
        ready = sorted(row_ids, key=lambda row: row not in self._looked_at)
        chosen = self._looked_at = frozenset(ready[: max(1, len(row_ids) // share)])
        length = self._to_look[0] if self._to_look else min(_LOOK_LEN, self._longest)
        return [length if row in chosen else 0 for row in row_ids]

    def _planned(
        self, row_ids: tuple[int, ...], num_rows: int, hope: float = 0.0, gain: float = 1.0
    ) -> list[int]:
        if not row_ids:
            return []
        costs = self._costs(len(row_ids), num_rows, hope)
        return allotted(self._chances.of(row_ids), num_rows, costs, gain)

    def _costs(self, num_asking: int, num_rows: int, hope: float) -> RoundCosts:
        """What rounds of so many rows are expected to take, by what they draft."""
        most = min(num_rows + num_asking * self._longest, int(_STEP * self._largest(num_rows)))
        nodes = np.arange(num_rows, most + 1, dtype=np.float64)
        verify_s = self._verify.at_all(nodes)
        if hope:
            verify_s *= 1.0 - hope * self._verify.doubts(nodes)
        verify_s += self._rest.at(num_rows)
        pass_s = self._passes_s(np.arange(num_asking + 1, dtype=np.float64))
        return RoundCosts(np.maximum(verify_s, _LEAST_S), pass_s, self._is_stepwise)

    def _largest(self, num_rows: int) -> float:
        return max(self._verify.largest, num_rows)

    def _passes_s(self, num_rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """One pass of the drafter; beyond what was seen it grows as the target's passes do."""
        most = self._draft.largest
        seconds = self._draft.at_all(np.minimum(num_rows, most))
        grown = self._verify.at_all(np.maximum(num_rows, most)) / max(
            self._verify.at(most), _LEAST_S
        )
        return seconds * np.maximum(grown, 1.0)
