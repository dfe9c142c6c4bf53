"""Seconds by size, learned from measured times: what a pass of so many nodes costs.

Knows sizes and seconds, not what they are of. Times are noisy, and who looks for the best of many
sizes finds the luckiest: so a size is believed as far as it was seen often and lately, and leans on
its neighbours else, which lean on a straight line through all.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

_OUTLIER = 1.5  # a time beyond so many means was the machine's, and counts as this
_FIRST_NOISE = 0.01  # relative variance of one time, before it is known
_NOISE_MEMORY = 0.97
_LEAST_NOISE = 1e-6
_WANDER = 1e-5  # relative variance that a mean gains with each time of any size
_SUSPECT, _SUSPECT_MEMORY = 3.0, 0.7  # running mean of surprise at which a size is learned anew
_MOST_SURPRISE = 4.0  # deviations that one time counts as
_TOO_SHORT = 5.0  # deviations below a mean that are believed at once
_BEND = 0.15  # relative deviation from the line that neighbours share …
_REACH = 0.35  # … and how far it is shared, as a part of a size
_EXACT = 16  # sizes below have a mean each; above, sizes within an eighth share one
_NEAR = 0.25  # a size is known if one was measured that differs by no more than this part of it
_FAR = 0.75  # beyond the largest size the slope is that from one of at most this part of it
_FEW = 64  # times after which not every one changes the fit at once …
_STALE = 4  # … but so many do

Floats = NDArray[np.float64]


class _Place:
    """What is known of the sizes that share a key; the variance is relative to the mean."""

    __slots__ = ("last", "mean_s", "size", "surprise", "taken_at", "variance")

    def __init__(self, size: float, mean_s: float, variance: float, taken_at: int) -> None:
        self.size, self.mean_s, self.variance, self.taken_at = size, mean_s, variance, taken_at
        self.surprise = 0.0
        self.last = math.log(mean_s) if mean_s else 0.0  # of the last time, as far as it counts


class Curve:
    """The likeliest seconds at the sizes that were seen, straight lines between them.

    Beyond the largest it goes on as steeply as it ended. Below the smallest half of the seconds
    are taken to be there at any size.
    """

    __slots__ = ("_fit", "_fitted_at", "_keys", "_noise", "_num_taken", "_places")

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._places: list[_Place] = []
        self._noise = _FIRST_NOISE
        self._num_taken = 0
        self._fit: tuple[Floats, Floats, Floats] = (np.zeros(0), np.zeros(0), np.zeros(0))
        self._fitted_at = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen."""
        return not self._keys

    @property
    def has_slope(self) -> bool:
        """Whether more than one size was seen."""
        return len(self._keys) > 1

    @property
    def largest(self) -> float:
        """The largest size that was seen; 0 before the first."""
        return self._places[-1].size if self._places else 0.0

    def knows(self, size: int) -> bool:
        """Whether a size near this one was seen."""
        return any(abs(one.size - size) <= _NEAR * size for one in self._places)

    def mean_s(self, size: int) -> float:
        """Mean seconds of what was seen of a size, whatever others say; 0 if nothing was."""
        key = _key(size)
        at = bisect_left(self._keys, key)
        is_seen = at < len(self._keys) and self._keys[at] == key
        return self._places[at].mean_s if is_seen else 0.0

    def take(self, size: int, seconds: float) -> None:
        """Take in a time."""
        key = _key(size)
        at = bisect_left(self._keys, key)
        self._num_taken += 1
        if at < len(self._keys) and self._keys[at] == key:
            self._learn(self._places[at], size, seconds)
            return
        first_s = self._bounded(size, seconds)
        self._keys.insert(at, key)
        self._places.insert(at, _Place(float(size), first_s, self._noise, self._num_taken))
        self._fitted_at = 0

    def at(self, size: float) -> float:
        """Seconds that a size is expected to take; 0 if nothing was seen."""
        return float(self.at_all(np.array([size], np.float64))[0])

    def at_all(self, wanted: Floats) -> Floats:
        """Seconds that each of some sizes is expected to take."""
        if not self._places:
            return np.zeros(len(wanted))
        sizes, seconds, _ = self._fitted()
        found: Floats = np.interp(wanted, sizes, seconds)
        below, beyond = wanted < sizes[0], wanted > sizes[-1]
        if below.any():
            found[below] = seconds[0] * (0.5 + 0.5 * wanted[below] / sizes[0])
        if beyond.any():
            few = max(0, int(np.searchsorted(sizes, _FAR * sizes[-1])) - 1)
            run = sizes[-1] - sizes[few]
            slope = max(0.0, (seconds[-1] - seconds[few]) / run) if run > 0 else 0.0
            found[beyond] += slope * (wanted[beyond] - sizes[-1])
        return found

    def doubts(self, wanted: Floats) -> Floats:
        """By what part each of some sizes may well take less than is expected of it."""
        if not self._places:
            return np.ones(len(wanted))
        sizes, _, doubts = self._fitted()
        places, own = np.log(sizes), np.log(np.maximum(wanted, 1.0))
        above = np.minimum(np.searchsorted(places, own), len(places) - 1)
        below = np.maximum(above - 1, 0)
        far = np.minimum(np.abs(places[above] - own), np.abs(places[below] - own))
        unseen = _BEND**2 * (1.0 - np.exp(-2.0 * far / _REACH))
        found: Floats = np.sqrt(np.interp(wanted, sizes, doubts) ** 2 + unseen)
        return found

    def _learn(self, place: _Place, size: int, seconds: float) -> None:
        known_s = place.mean_s
        if not known_s:
            place.mean_s, place.taken_at = seconds, self._num_taken
            place.last = math.log(seconds) if seconds else 0.0
            return
        off = math.log(min(max(seconds / known_s, 1e-3), _OUTLIER))
        place.variance += _WANDER * (self._num_taken - place.taken_at)
        deviation = (place.variance + self._noise) ** 0.5
        surprise = min(max(off / deviation, -_MOST_SURPRISE), _MOST_SURPRISE)
        place.surprise = _SUSPECT_MEMORY * place.surprise + (1 - _SUSPECT_MEMORY) * surprise
        believed = surprise * deviation
        # What follows a change of the machine is one from time to time, and no noise.
        change = math.log(known_s) + off - place.last
        noise = _NOISE_MEMORY * self._noise + (1 - _NOISE_MEMORY) * 0.5 * change**2
        place.last += change
        # Many that surprise are no noise: the machine is another now. No stall makes a pass short.
        if abs(place.surprise) > _SUSPECT or off < -_TOO_SHORT * deviation:
            place.variance, place.surprise, believed = place.variance + off * off, 0.0, off
        gain = place.variance / (place.variance + self._noise)
        place.mean_s = known_s * math.exp(gain * believed)
        place.variance *= 1.0 - gain
        place.size += gain * (size - place.size)
        place.taken_at = self._num_taken
        self._noise = max(noise, _LEAST_NOISE)

    def _fitted(self) -> tuple[Floats, Floats, Floats]:
        age = self._num_taken - self._fitted_at
        if not self._fitted_at or age >= (_STALE if self._num_taken > _FEW else 1):
            sizes = np.array([one.size for one in self._places])
            means = np.array([one.mean_s for one in self._places])
            ages = self._num_taken - np.array([one.taken_at for one in self._places])
            variances = np.array([one.variance for one in self._places]) + _WANDER * ages
            self._fit = (sizes, *_smooth(sizes, means, variances))
            self._fitted_at = self._num_taken
        return self._fit

    def _bounded(self, size: int, seconds: float) -> float:
        """A first time, or what it counts as where others say that it cannot be so long."""
        growth = max(1.0, size / self.largest) if self._places else 1.0
        most = _OUTLIER * growth * self.at(min(size, self.largest))
        return min(seconds, most) if most else seconds


def _smooth(sizes: Floats, means: Floats, variances: Floats) -> tuple[Floats, Floats]:
    """What the means are likely to be without their noise, and the relative deviation that is left:
    a line, and bends that near sizes share; never falling."""
    if len(sizes) < 2 or not means.all():
        return means, np.sqrt(variances)
    line = _line(sizes, means, variances)
    off = means / line - 1.0
    places = np.log(sizes)
    shared = _BEND**2 * np.exp(-np.abs(np.subtract.outer(places, places)) / _REACH)
    weights = np.linalg.solve(shared + np.diag(variances), shared)
    fitted = line * (1.0 + off @ weights)
    above = np.maximum.accumulate(fitted)
    below = np.minimum.accumulate(fitted[::-1])[::-1]
    left = _BEND**2 - np.einsum("ij,ij->j", shared, weights)
    return 0.5 * (above + below), np.sqrt(np.maximum(left, 0.0))


def _line(sizes: Floats, means: Floats, variances: Floats) -> Floats:
    """The straight line that is nearest by parts of the means; it rises from nothing or more."""
    weights = 1.0 / (means**2 * (variances + _BEND**2))
    total = weights.sum()
    size, mean = (weights @ sizes) / total, (weights @ means) / total
    spread = weights @ (sizes - size) ** 2
    slope = max(0.0, (weights @ ((sizes - size) * (means - mean))) / spread)
    slope = min(slope, mean / size)
    line: Floats = mean + slope * (sizes - size)
    return line


def _key(size: int) -> int:
    shift = max(0, size.bit_length() - _EXACT.bit_length() + 1)
    return size >> shift << shift
