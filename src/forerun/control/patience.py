"""How long a verifier waits for what is being prepared: as long as waiting is expected to pay.

Everything is learned from measured rounds: what a level of preparing takes, what a second is worth
in tokens, and what drafts of each source yielded. Any answer gives the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from forerun.control.overlap import levels_worth_waiting

_MEMORY = 0.9  # of earlier rounds that a new one keeps: about the last ten
_OUTLIER = 3.0  # seconds beyond so many means were the machine's, and count as this
_SOME_TRIALS = 3  # of a source before its yield is trusted
_TRY_AGAIN = 24  # rounds after which a source that lost is tried again
_OWN = ("hit", "redraft")  # sources whose drafts the drafter made for the very state
_GRACE_S = 0.002  # beyond what a level is known to take, a wait may last this much longer …
_GRACE_LEVELS = 2.0  # … and so many levels


@dataclass(slots=True, eq=False)
class _Mean:
    """An exponentially fading mean."""

    value: float = 0.0
    num: int = 0

    def add(self, value: float) -> None:
        self.num += 1
        weight = max(1.0 / self.num, 1.0 - _MEMORY)
        self.value += weight * (value - self.value)


def _within(value: float, mean: _Mean) -> float:
    """A new value, or what it counts as where it is far beyond all others."""
    return min(value, _OUTLIER * mean.value) if mean.num else value


@dataclass(frozen=True, slots=True)
class Wait:
    """Prepare no deeper than `num_levels` (0: as deep as planned) and wait at most `longest_s`."""

    num_levels: int
    longest_s: float


@dataclass(slots=True, eq=False)
class Patience:
    """Learned times and yields of one engine's rounds; `sources` are where drafts come from."""

    _pass_s: _Mean = field(default_factory=_Mean)
    _redraft_s: _Mean = field(default_factory=_Mean)
    _tokens: _Mean = field(default_factory=_Mean)
    _seconds: _Mean = field(default_factory=_Mean)
    _hits: _Mean = field(default_factory=_Mean)
    _yields: dict[str, _Mean] = field(default_factory=dict)
    _idle: dict[str, int] = field(default_factory=dict)
    _reach: list[_Mean] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second, of all rows together."""
        return self._tokens.value / self._seconds.value if self._seconds.value else 0.0

    def learn_round(self, num_tokens: int, seconds: float) -> None:
        """Take in what a round of all its rows yielded and took."""
        self._tokens.add(num_tokens)
        self._seconds.add(seconds)

    def learn_forecast(self, num_passes: int, seconds: float) -> None:
        """Take in what preparing took."""
        if num_passes:
            self._pass_s.add(_within(seconds / num_passes, self._pass_s))

    def learn_redraft(self, seconds: float) -> None:
        """Take in what a draft made while nobody verified took."""
        self._redraft_s.add(_within(seconds, self._redraft_s))

    def learn_outcome(self, *, is_hit: bool) -> None:
        """Take in whether an outcome was prepared for."""
        self._hits.add(float(is_hit))

    def learn_yield(self, source: str, num_accepted: int) -> None:
        """Take in how many drafted tokens a draft of that source brought."""
        self._yields.setdefault(source, _Mean()).add(num_accepted)
        self._idle[source] = 0
        if source in _OWN:
            self._learn_reach(num_accepted)

    def reach(self) -> list[float]:
        """How often a node of depth 0, 1, … of the drafter's own drafts was kept."""
        return [1.0, *[mean.value for mean in self._reach]]

    def wait_for(self, num_levels: int, elapsed_s: float, num_rows: int) -> Wait:
        """How deep a forecast of at most `num_levels`, begun `elapsed_s` ago, should still go now
        that the verdict is known: each level may bring tokens, each second costs some."""
        pass_s = self._pass_s.value
        if not self._pass_s.num:
            return Wait(0, 1.0)  # nothing is known yet: see how long it takes
        chance, hits = self._chance(), self._hits.value if self._hits.num else 0.7
        reach = [num_rows * hits * chance**level for level in range(1, num_levels + 1)]
        # Levels that should be there by now cost nothing; of the next a part has passed already.
        num_there = sum((1 + level) * pass_s <= elapsed_s for level in range(1, num_levels + 1))
        begun_s = elapsed_s - (1 + num_there) * pass_s
        more = levels_worth_waiting(reach[num_there:], pass_s, self.rate, -begun_s)
        best = max(1, num_there + more)
        waits_s = max(0.0, (1 + best) * pass_s - elapsed_s)
        return Wait(best, waits_s + _GRACE_S + _GRACE_LEVELS * pass_s)

    def prefers_redraft(self, other: str, num_missed: int) -> bool:
        """Whether rows that missed should be drafted for while nothing is verified, or take what
        `other` source has at once."""
        for source in ("redraft", other):
            known = self._yields.get(source)
            if known is None or known.num < _SOME_TRIALS:
                return source == "redraft"
        lost = self._loses(other, num_missed)
        loser = other if lost else "redraft"
        self._idle[loser] = self._idle.get(loser, 0) + 1
        if self._idle[loser] >= _TRY_AGAIN:
            self._idle[loser] = 0
            return not lost
        return lost

    def longest_redraft_s(self) -> float:
        """How long a draft that is waited for may take."""
        if not self._redraft_s.num:
            return 1.0
        return 3.0 * self._redraft_s.value + 2 * _GRACE_S

    def _loses(self, other: str, num_missed: int) -> bool:
        gain = num_missed * (self._yields["redraft"].value - self._yields[other].value)
        return gain > self.rate * self._redraft_s.value

    def _learn_reach(self, num_accepted: int) -> None:
        while len(self._reach) <= num_accepted:
            self._reach.append(_Mean())
        for depth, mean in enumerate(self._reach, start=1):
            mean.add(float(num_accepted >= depth))

    def _chance(self) -> float:
        """That a drafted token is kept, if all before it were: from what prepared drafts yield."""
        known = self._yields.get("hit")
        if known is None or not known.num:
            return 0.6
        mean = min(max(known.value, 0.05), 20.0)
        return mean / (1.0 + mean)
