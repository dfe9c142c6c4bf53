"""How many tokens to draft next: as many as pay, by measured cost and measured acceptance.

Knows rounds only as numbers: drafted, accepted, seconds. Any length gives the same tokens, so a
wrong guess costs time and nothing else. `shape=auto` uses it; an explicit shape is left alone.
"""

from __future__ import annotations

from forerun.stats import RoundStats

_COST_WEIGHT = 0.2  # of a new time in the running mean of its length
_OUTLIER = 3.0  # a time beyond so many means was the machine's, and counts as this
_MEMORY = 0.94  # of past acceptance a round keeps: about the last sixteen
_GAIN = 1.03  # drafting must win by so much: a tie is decided for the smaller power bill
_FIRST_PROBE, _LAST_PROBE = 32, 512  # plain rounds between two looks whether drafting pays again
_PROBE_ROUNDS = 4  # of drafting in such a look; the first only lets the drafter catch up
_REFRESH = 64  # drafting rounds between two looks at what a plain one costs
_PROBE_LEN = 2


class Pace:
    """Chooses the chain length of the next round, 0 to `longest`.

    Yield: each drafted token is accepted with the running probability p, so a chain of n gives
    1 + p + … + p^n tokens. Cost: a running mean of round seconds a length, a straight line
    between and past the lengths seen. The length with the most tokens a second is chosen, once as
    many lengths as `probes` were seen: a drafter whose first token is the dear one needs two.
    """

    def __init__(self, longest: int, probes: tuple[int, ...] = (_PROBE_LEN,)) -> None:
        self.length = min(_PROBE_LEN, longest)
        self._longest = longest
        self._probes = tuple(dict.fromkeys(min(probe, longest) for probe in probes))
        self._seconds: dict[int, float] = {}
        self._hits, self._trials = 1.2, 2.0
        self._since_probe = 0
        self._probe_after = _FIRST_PROBE
        self._probes_left = 0
        self._was_plain = True

    @property
    def acceptance(self) -> float:
        """Probability that the next drafted token is kept, given that all before it were."""
        return self._hits / self._trials

    def learn(self, round_stats: RoundStats) -> None:
        """Take in a decoding round and choose the length of the next."""
        rows, drafted = round_stats.num_rows, round_stats.num_drafted
        if not drafted or not self._was_plain:
            # The first draft after plain rounds also reads what the drafter missed: no price of it.
            self._take_time(round(drafted / rows), round_stats.round_s)
        self._was_plain = not drafted
        if drafted:
            accepted = round_stats.num_accepted
            # A row's chain ends in one rejection, or in none when all of it was kept.
            ended = min(rows, drafted - accepted)
            self._hits = _MEMORY * self._hits + accepted / rows
            self._trials = _MEMORY * self._trials + (accepted + ended) / rows
        self.length = self._choose()

    def _take_time(self, length: int, seconds: float) -> None:
        known = self._seconds.get(length)
        if known is None:
            self._seconds[length] = seconds
            return
        self._seconds[length] = known + _COST_WEIGHT * (min(seconds, _OUTLIER * known) - known)

    def _choose(self) -> int:
        if 0 not in self._seconds:
            return 0
        if len(self._seconds) <= len(self._probes):
            return self._probes[len(self._seconds) - 1]
        best = max(range(self._longest + 1), key=self._rate)
        if best and self._rate(best) < _GAIN * self._rate(0):
            best = 0
        return self._refreshed(best) if best else self._probed()

    def _refreshed(self, best: int) -> int:
        """Drafting pays: now and then look at what a plain round costs."""
        self._probe_after, self._probes_left = _FIRST_PROBE, 0
        self._since_probe += 1
        if self._since_probe < _REFRESH:
            return best
        self._since_probe = 0
        return 0

    def _probed(self) -> int:
        """Drafting does not pay: now and then draft a little, or what is known grows stale."""
        if self._probes_left:
            self._probes_left -= 1
            return min(_PROBE_LEN, self._longest)
        self._since_probe += 1
        if self._since_probe < self._probe_after:
            return 0
        self._since_probe = 0
        self._probe_after = min(2 * self._probe_after, _LAST_PROBE)
        self._probes_left = _PROBE_ROUNDS - 1
        return min(_PROBE_LEN, self._longest)

    def _rate(self, length: int) -> float:
        """Expected tokens a second of a row that drafts so many."""
        p = self.acceptance
        expected = sum(p**at for at in range(length + 1))
        return expected / self._cost(length)

    def _cost(self, length: int) -> float:
        seen = self._seconds
        if length in seen:
            return seen[length]
        below = max((n for n in seen if n < length), default=None)
        above = min((n for n in seen if n > length), default=None)
        if below is None or above is None:
            # Past the ends: the slope between the outermost two.
            outer = sorted(seen)
            below, above = (outer[-2], outer[-1]) if above is None else (outer[0], outer[1])
        slope = (seen[above] - seen[below]) / (above - below)
        return max(seen[below] + slope * (length - below), 1e-9)


class Paces:
    """A pace for each number of rows that share a round, in powers of two: what a drafted token
    costs beside thirty others is learned beside thirty others."""

    def __init__(self, longest: int, probes: tuple[int, ...] = (_PROBE_LEN,)) -> None:
        self._longest = longest
        self._probes = probes
        self._paces: dict[int, Pace] = {}

    def length_for(self, num_rows: int) -> int:
        """Most tokens to draft for each of so many rows."""
        return self._of(num_rows).length

    def learn(self, round_stats: RoundStats) -> None:
        """Take in a decoding round."""
        self._of(round_stats.num_rows).learn(round_stats)

    def _of(self, num_rows: int) -> Pace:
        size = (num_rows - 1).bit_length()
        if size not in self._paces:
            self._paces[size] = Pace(self._longest, self._probes)
        return self._paces[size]
