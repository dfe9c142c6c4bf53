"""What a drafted node and a drafting pass must be expected to yield, to be worth their time.

Costs are timed once, when an engine is built; what a second is worth, and what a round of so many
rows takes without drafts, is learned round by round. A node pays if its chance to be kept is at
least the tokens that its share of the verification would have yielded otherwise. Any price gives
the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from forerun.control.curve import Curve
from forerun.control.trial import DraftOf, chain_of, least_seconds
from forerun.protocols import Backend
from forerun.stats import RoundStats

_WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24)  # nodes a pass is timed with
_STEPS = (1, 3)
_MEMORY = 0.95  # of past rounds that a round keeps: about the last twenty
PASS_YIELD = 0.6  # of the scores that a pass expands, what its best children keep
_FIRST_PAUSE, _LAST_PAUSE = 32, 512  # plain rounds before drafting is tried again
_TRIED = 12  # drafting rounds before it is compared with decoding plainly
_REST, _RESTED = 128, 2  # drafting rounds after which so many are plain, to see what those take
_LOOK = 6  # plain rounds before it is believed that drafting loses: the first times were the least
_GAIN = 1.02


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a verification of so many nodes, `(num_nodes, seconds)` ascending, and of one pass
    of the drafter."""

    verify: tuple[tuple[int, float], ...]
    pass_s: float

    def slopes(self) -> tuple[tuple[int, float], ...]:
        """`(up to so many nodes, seconds a node)` of the greatest convex curve below the times.

        A step in the times (a kernel's next group of rows) is spread over the nodes behind it, for
        who takes the first of them may take them all.
        """
        found, at = [], 0
        while at + 1 < len(self.verify):
            few, least = self.verify[at]
            slopes = [(most_s - least) / (most - few) for most, most_s in self.verify[at + 1 :]]
            slope = min(slopes)
            at += len(slopes) - slopes[::-1].index(slope)  # the farthest of the flattest
            found.append((self.verify[at][0], max(0.0, slope)))
        return tuple(found)


def measured(target: Backend, draft_of: DraftOf | None) -> Costs:
    """Costs on this machine, timed in turns; without a `draft_of` a pass costs nothing.

    That is so of block drafters: one pass fills all slots, and has been made before a level could
    be left out. What it costs is in the seconds of every round that rates are learned from.
    """
    calls: list[Callable[[], object]] = [partial(target.forward, chain_of(n)) for n in _WIDTHS]
    if draft_of is not None:
        calls += [partial(draft_of, n) for n in _STEPS]
    seconds = least_seconds(*calls)
    few, many = seconds[len(_WIDTHS) :] or (0.0, 0.0)
    pass_s = max(0.0, (many - few) / (_STEPS[1] - _STEPS[0]))
    return Costs(tuple(zip(_WIDTHS, seconds, strict=False)), pass_s)


@dataclass(slots=True)
class _Load:
    """What rounds of about so many rows brought, as fading sums, and whether they rest."""

    num_rows: int
    tokens: float = 0.0  # of a row
    seconds: float = 0.0
    num_drafting: int = 0
    pause: int = 0
    next_pause: int = _FIRST_PAUSE
    is_behind: bool = False  # whether a drafter still has to read what came in a pause
    has_looked: bool = False  # whether plain rounds were seen since drafting last paid

    def learn(self, tokens: float, seconds: float, plain_s: float) -> None:
        """Take in a round that drafted, and what one that does not is expected to take."""
        if self.is_behind:
            self.is_behind = False
            return
        self.tokens = _MEMORY * self.tokens + tokens
        self.seconds = _MEMORY * self.seconds + seconds
        self.num_drafting += 1
        if self.num_drafting < _TRIED or not plain_s:
            return
        if plain_s * self.tokens * _GAIN >= self.seconds:
            self.next_pause, self.has_looked = _FIRST_PAUSE, False
            if self.num_drafting % _REST == 0:
                self.pause = _RESTED
        elif not self.has_looked:
            self.pause, self.has_looked = _LOOK, True
        else:
            self.pause, self.next_pause = self.next_pause, min(2 * self.next_pause, _LAST_PAUSE)
            self.num_drafting, self.tokens, self.seconds = 0, 0.0, 0.0


class Prices:
    """Prices by costs and by the tokens a second that rounds yield; pauses drafting that loses.

    What loses beside many rows may pay for few, so each doubling of rows is judged apart, from the
    round after the first that has so many. Nothing costs anything before `settle`.
    """

    def __init__(self) -> None:
        self._slopes: tuple[tuple[int, float], ...] = ((1, 0.0),)
        self._pass_s = 0.0
        self._verify, self._plain = Curve(), Curve()
        self._loads: dict[int, _Load] = {}
        self._load = self._load_of(1)

    def settle(self, costs: Costs) -> None:
        """Take the costs of the machine and the models at hand."""
        self._slopes, self._pass_s = costs.slopes(), costs.pass_s
        for num_nodes, seconds in costs.verify:
            self._verify.take(num_nodes, seconds)
            self._plain.take(num_nodes, seconds)

    @property
    def rate(self) -> float:
        """Tokens a second of a row, over the last rounds; of plain decoding before the first."""
        if self._load.seconds:
            return self._load.tokens / self._load.seconds
        plain_s = self._plain.at(self._load.num_rows)
        return 1.0 / plain_s if plain_s else 0.0

    @property
    def is_paused(self) -> bool:
        """Whether rows decode plainly for now."""
        return self._load.pause > 0

    def of_nodes(self, num_rows: int, most: int) -> tuple[float, ...]:
        """Price of the first, second, … node of each of so many rows."""
        worth = self.rate * num_rows
        return tuple(worth * self._slope(num_rows * (node + 2)) for node in range(max(1, most)))

    def of_pass(self, num_rows: int) -> float:
        """What the scores of the nodes that a pass would expand must sum to; the drafter's passes
        are taken to grow with rows as the target's do."""
        alone_s = self._verify.at(1)
        growth = self._verify.at(num_rows) / alone_s if alone_s else 1.0
        return self.rate * num_rows * growth * self._pass_s / PASS_YIELD

    def learn(self, stats: RoundStats) -> None:
        """Take in a decoding round."""
        load = self._load = self._load_of(stats.num_rows)
        if load.pause:
            load.pause, load.is_behind = load.pause - 1, True
            if not stats.num_drafted:
                self._plain.take(stats.num_rows, stats.round_s)
            return
        tokens = stats.num_accepted / stats.num_rows + 1
        load.learn(tokens, stats.round_s, self._plain.at(stats.num_rows))

    def _load_of(self, num_rows: int) -> _Load:
        load = self._loads.setdefault(num_rows.bit_length(), _Load(num_rows))
        load.num_rows = num_rows
        return load

    def _slope(self, num_nodes: int) -> float:
        for up_to, slope in self._slopes:
            if num_nodes <= up_to:
                return slope
        return self._slopes[-1][1]
