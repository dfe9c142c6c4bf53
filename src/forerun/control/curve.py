"""Seconds by size, learned from measured times: what a pass of so many nodes costs.

Knows sizes and seconds, not what they are of.
"""

from __future__ import annotations

from bisect import bisect_left

_MEMORY = 0.8  # of the running mean of a size that a new time of it keeps …
_FADING = 0.99  # … and so much less of it for each time of another size since the last
_OUTLIER = 1.5  # a time beyond so many means was the machine's, and counts as this
_FIRST_OUTLIER = 1.5  # the same of the first time of its size, by what others lead to expect
_EXACT = 16  # sizes below have a mean each; above, sizes within an eighth share one
_NEAR = 0.25  # a size is known if one was measured that differs by no more than this part of it
_FAR = 0.75  # beyond the largest size the slope is that from one of at most this part of it


class Curve:
    """Running means at the sizes that were seen, straight lines between them.

    Beyond the largest it goes on as steeply as it ended. Below the smallest half of the seconds
    are taken to be there at any size.
    """

    __slots__ = ("_keys", "_num_taken", "_seconds", "_sizes", "_taken_at")

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._sizes: list[float] = []  # the mean of those that share a place
        self._seconds: list[float] = []
        self._taken_at: list[int] = []
        self._num_taken = 0

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
        return self._sizes[-1] if self._sizes else 0.0

    def knows(self, size: int) -> bool:
        """Whether a size near this one was seen."""
        at = bisect_left(self._sizes, size)
        near = self._sizes[max(0, at - 1) : at + 1]
        return any(abs(one - size) <= _NEAR * size for one in near)

    def take(self, size: int, seconds: float) -> None:
        """Take in a time."""
        key = _key(size)
        at = bisect_left(self._keys, key)
        self._num_taken += 1
        if at < len(self._keys) and self._keys[at] == key:
            known = self._seconds[at]
            bounded = min(seconds, _OUTLIER * known) if known else seconds
            weight = 1.0 - _MEMORY * _FADING ** (self._num_taken - 1 - self._taken_at[at])
            self._seconds[at] = known + weight * (bounded - known)
            self._sizes[at] += weight * (size - self._sizes[at])
            self._taken_at[at] = self._num_taken
            return
        self._keys.insert(at, key)
        self._seconds.insert(at, self._bounded(size, seconds))
        self._sizes.insert(at, float(size))
        self._taken_at.insert(at, self._num_taken)

    def at(self, size: float) -> float:
        """Seconds that a size is expected to take; 0 if nothing was seen."""
        sizes, seconds = self._sizes, self._seconds
        if not sizes:
            return 0.0
        above = bisect_left(sizes, size)
        if above == len(sizes):
            return self._beyond(size)
        if above == 0:
            return seconds[0] * (0.5 + 0.5 * size / sizes[0])
        below = above - 1
        part = (size - sizes[below]) / (sizes[above] - sizes[below])
        return seconds[below] + part * (seconds[above] - seconds[below])

    def _bounded(self, size: int, seconds: float) -> float:
        """A first time, or what it counts as where others say that it cannot be so long."""
        growth = max(1.0, size / self.largest) if self._sizes else 1.0
        most = _FIRST_OUTLIER * growth * self.at(min(size, self.largest))
        return min(seconds, most) if most else seconds

    def _beyond(self, size: float) -> float:
        sizes, seconds = self._sizes, self._seconds
        few = max(0, bisect_left(sizes, _FAR * sizes[-1]) - 1)
        run = sizes[-1] - sizes[few]
        slope = (seconds[-1] - seconds[few]) / run if run > 0 else 0.0
        return seconds[-1] + max(0.0, slope) * (size - sizes[-1])


def _key(size: int) -> int:
    shift = max(0, size.bit_length() - _EXACT.bit_length() + 1)
    return size >> shift << shift
