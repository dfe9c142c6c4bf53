"""How many tokens to draft next for each row: as many as pay, by measured cost and acceptance.

Knows rounds only as numbers: rows, drafted, kept, seconds. Any lengths give the same tokens, so a
wrong guess costs time and nothing else. `shape=auto` uses it; an explicit shape is left alone.

    plain        nothing is known of a pass of so many rows: see what it costs
    look         a few rows draft a little: what does drafting cost, is it kept?
    plan         of all nodes of all rows take the likeliest, as long as tokens a second rise
    refresh      drafting pays: now and then a plain round all the same, or longer drafts
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from forerun.control.curve import Curve
from forerun.stats import RoundStats

Kept: TypeAlias = tuple[int, int, int]  # a row's id, how many tokens it drafted, how many it kept

_MEMORY = 0.97  # of past acceptance a round keeps: about the last thirty
_OTHERS = 3.0  # of tokens at one depth: so many count as much as those of all depths
_LEAST = 1e-4  # no chance is taken to be smaller
_OWN = 6.0  # drafted tokens of a row that count as much as what all rows keep
_SURE = 0.97  # no chain is taken to be likelier than this a token
_GAIN = 1.03  # drafting must win by so much: of many guesses the best one flatters
_FIRST_PROBE, _LAST_PROBE = 32, 512  # plain rounds between two looks whether drafting pays again
_LOOK_ROUNDS = 4  # of drafting in such a look; the first only lets the drafter catch up
_LOOK_ROWS = 16  # one row of so many drafts in a look …
_BLIND_ROWS = 4  # … and one of so many where nothing is known of larger passes
_REFRESH = 32  # drafting rounds between two looks at what a plain one costs, or longer drafts
_LOOK_LEN = 2
_STEP = 2.0  # no pass is planned that is larger by more than this than any that was seen
_OFTEN = 8  # rounds that a plan of many rows is kept for; making it costs time too


@dataclass(slots=True)
class _Acceptance:
    """How often a drafted token was kept, given that all before it were; fading sums."""

    hits: float = 0.0
    trials: float = 0.0

    def add(self, hits: float, trials: float) -> None:
        self.hits = _MEMORY * self.hits + hits
        self.trials = _MEMORY * self.trials + trials


class _Turns:
    """When to look and when to refresh: by counting rounds."""

    def __init__(self) -> None:
        self.is_resting, self.is_stretching = False, False
        self.looks_left = 0
        self._num_drafting, self._num_plain = 0, 0
        self._look_after = _FIRST_PROBE

    def turn(self, *, is_drafting: bool) -> None:
        """A round has ended in which something was asked for, or nothing."""
        if self.is_resting or self.is_stretching:
            self.is_resting = self.is_stretching = False
        elif self.looks_left:
            self.looks_left -= 1
        elif is_drafting:
            self._look_after, self._num_plain = _FIRST_PROBE, 0
            self._num_drafting += 1
            self.is_resting = self._num_drafting % (2 * _REFRESH) == 0
            self.is_stretching = self._num_drafting % (2 * _REFRESH) == _REFRESH
        else:
            self._num_plain += 1
            if self._num_plain >= self._look_after:
                self.looks_left, self._num_plain = _LOOK_ROUNDS, 0
                self._look_after = min(2 * self._look_after, _LAST_PROBE)


class Paces:
    """Chooses the chain length of every row of the next round, 0 to `longest`.

    Yield: what the n-th drafted token adds is how often chains were kept so far, to the power by
    which the row's luck differs from all rows'; one of which little is known is average.
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
        self._all = _Acceptance(1.2, 2.0)
        self._depths = [_Acceptance() for _ in range(longest)]
        self._rows: dict[int, _Acceptance] = {}
        self._is_stepwise = False  # whether it needs a pass a token
        self._turns = _Turns()
        self._asked: dict[int, int] = {}
        self._asked_before: frozenset[int] = frozenset()
        self._looked_at: frozenset[int] = frozenset()
        self._plan: list[int] = []
        self._planned_for: tuple[int, tuple[int, ...]] = (0, ())
        self._age = 0

    @property
    def acceptance(self) -> float:
        """Probability that the next drafted token is kept, given that all before it were."""
        return self._all.hits / self._all.trials

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
            self._learn_kept(drafted)
        self._turns.turn(is_drafting=bool(self._asked))
        self._asked_before = frozenset(self._asked)
        self._age += 1

    def forget(self, row_id: int) -> None:
        """A row has ended."""
        self._rows.pop(row_id, None)

    # --- what is known ---------------------------------------------------------------------------

    def _learn_costs(self, stats: RoundStats, drafted: set[int]) -> None:
        self._verify.take(stats.num_rows + stats.num_drafted, stats.verify_s)
        rest_s = stats.round_s - stats.verify_s
        if self._asked:
            rest_s -= stats.draft_s
            # A row that did not draft the round before also reads what a model missed, and one
            # that does not draft now still reads.
            is_idle = stats.num_draft_passes > 0 and not self._asked.keys() <= drafted
            if self._asked.keys() <= self._asked_before and not is_idle:
                self._learn_draft(stats)
        self._rest.take(stats.num_rows, max(0.0, rest_s))

    def _learn_draft(self, stats: RoundStats) -> None:
        passes = max(1, stats.num_draft_passes)
        self._is_stepwise = self._is_stepwise or passes > 1
        self._draft.take(len(self._asked), stats.draft_s / passes)
        if self._to_look and self._to_look[0] in self._asked.values():
            self._to_look.pop(0)

    def _learn_kept(self, kept: Sequence[Kept]) -> None:
        hits = trials = 0
        for row, num_drafted, num_kept in kept:
            # A row's chain ends in one rejection, or in none when all of it was kept.
            num_tried = min(num_kept + 1, num_drafted)
            self._rows.setdefault(row, _Acceptance()).add(num_kept, num_tried)
            hits, trials = hits + num_kept, trials + num_tried
        self._all.add(hits / len(kept), trials / len(kept))
        for depth, known in enumerate(self._depths, start=1):
            num_tried = sum(one[1] >= depth and one[2] >= depth - 1 for one in kept)
            if num_tried:
                num_kept = sum(one[2] >= depth for one in kept)
                known.add(num_kept / len(kept), num_tried / len(kept))

    def _reach(self) -> list[float]:
        """How often an average row keeps a chain of 1, 2, … tokens."""
        average, reached, chances = self.acceptance, 1.0, []
        for one in self._depths:
            reached *= min((one.hits + _OTHERS * average) / (one.trials + _OTHERS), _SURE)
            chances.append(max(reached, _LEAST))
        return chances

    def _luck(self, row: int) -> float:
        """The power of average chances that are a row's own."""
        average, own = min(self.acceptance, _SURE), self._rows.get(row)
        if own is None or average <= _LEAST:
            return 1.0
        chance = (own.hits + _OWN * average) / (own.trials + _OWN)
        return math.log(min(max(chance, _LEAST), _SURE)) / math.log(average)

    # --- what to do ------------------------------------------------------------------------------

    def _lengths(self, row_ids: tuple[int, ...], num_rows: int) -> list[int]:
        if self._turns.is_resting or not self._verify.knows(num_rows):
            return [0] * len(row_ids)
        if self._to_look or self._turns.looks_left:
            return self._look(row_ids)
        now = num_rows, row_ids
        if now != self._planned_for or self._age >= min(num_rows, _OFTEN):
            self._plan = self._allotted([self._luck(row) for row in row_ids], num_rows)
            self._planned_for, self._age = now, 0
        if self._turns.is_stretching:
            return [min(2 * length, self._longest) for length in self._plan]
        return self._plan

    def _look(self, row_ids: tuple[int, ...]) -> list[int]:
        """Few rows draft: those of the last look, for the drafter has read their text."""
        share = _LOOK_ROWS if self._verify.has_slope else _BLIND_ROWS
        ready = sorted(row_ids, key=lambda row: row not in self._looked_at)
        chosen = self._looked_at = frozenset(ready[: max(1, len(row_ids) // share)])
        length = self._to_look[0] if self._to_look else min(_LOOK_LEN, self._longest)
        return [length if row in chosen else 0 for row in row_ids]

    def _allotted(self, lucks: Sequence[float], num_rows: int) -> list[int]:
        """The lengths with the most expected tokens a second; none where drafting does not win."""
        reach = self._reach()
        steps = sorted(
            (-(chance**luck), depth, at) for at, luck in enumerate(lucks)
            for depth, chance in enumerate(reach, start=1)
        )  # fmt: skip
        most = _STEP * max(self._verify.largest, num_rows)
        nodes, tokens, num_drafting, deepest = float(num_rows), float(num_rows), 0, 0
        plain = tokens / self._seconds(nodes, num_rows, 0, 0)
        best, num_best = _GAIN * plain, 0
        for num, (value, depth, _) in enumerate(steps, start=1):
            nodes, tokens = nodes + 1.0, tokens - value
            if nodes > most:
                break
            num_drafting, deepest = num_drafting + (depth == 1), max(deepest, depth)
            rate = tokens / self._seconds(nodes, num_rows, num_drafting, deepest)
            if rate > best:
                best, num_best = rate, num
        lengths = [0] * len(lucks)
        for _, depth, at in steps[:num_best]:
            lengths[at] = depth
        return lengths

    def _seconds(self, num_nodes: float, num_rows: int, num_drafting: int, deepest: int) -> float:
        """What a round is expected to take."""
        seconds = self._verify.at(num_nodes) + self._rest.at(num_rows)
        if num_drafting:
            num_passes = deepest if self._is_stepwise else 1
            seconds += num_passes * self._draft_s(num_drafting)
        return max(seconds, 1e-9)

    def _draft_s(self, num_rows: int) -> float:
        """One pass of the drafter; beyond what was seen it grows as the target's passes do."""
        most = self._draft.largest
        if num_rows <= most:
            return self._draft.at(num_rows)
        grown = self._verify.at(num_rows) / max(self._verify.at(most), 1e-9)
        return self._draft.at(most) * max(1.0, grown)
