"""Pearson's test of counts against an exact law, and what it can see.

Arithmetic on numbers; knows no model. Written out here because numpy has no such functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FALSE_ALARM = 1e-4  # how often a right law is called wrong
POWER = 0.95  # how often a law that is off by the stated distance is called wrong
LEAST_EXPECTED = 5.0  # below, counts of a bin are too few for the chi-square law

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """How well counts fit a law: the statistic, its degrees of freedom, and `p`, the probability
    of a statistic this large under that law."""

    statistic: float
    num_free: int
    p: float

    @property
    def is_refused(self) -> bool:
        """Whether the counts did not come from the law, but for one alarm in ten thousand."""
        return self.p < FALSE_ALARM


def fit(counts: Floats, law: Floats) -> Fit:
    """Compare counts `[K]` with probabilities `[K]` that sum to 1.

    A bin of probability zero refuses the law when it was counted at all.
    """
    if np.any(counts[law <= 0] > 0):
        return Fit(math.inf, max(1, len(law) - 1), 0.0)
    expected = law[law > 0] * counts.sum()
    statistic = float(np.sum((counts[law > 0] - expected) ** 2 / expected))
    num_free = max(1, len(expected) - 1)
    return Fit(statistic, num_free, exceeded(statistic, num_free))


def distance_seen(num_counts: int, num_free: int) -> float:
    """The total variation from which on any deviation is refused with probability `POWER`.

    A law at distance d has noncentrality n·Σδ²/p, which is least, 4·n·d², when half of the
    probability is raised and half is lowered in proportion: the hardest deviation to see.
    """
    return min(1.0, math.sqrt(_noncentrality(num_free) / (4.0 * num_counts)))


def exceeded(x: float, num_free: float) -> float:
    """How often a chi-square variable is above x: the regularised upper incomplete gamma."""
    a, y = num_free / 2.0, x / 2.0
    if y <= 0:
        return 1.0
    scale = math.exp(a * math.log(y) - y - math.lgamma(a))
    if y < a + 1.0:
        return max(0.0, 1.0 - scale * _series(a, y))
    return scale * _fraction(a, y)


def _series(a: float, y: float) -> float:
    term = total = 1.0 / a
    step = a
    while term > total * 1e-17:
        step += 1.0
        term *= y / step
        total += term
    return total


def _fraction(a: float, y: float) -> float:
    """The upper part as a continued fraction, from its tail up; 200 levels are plenty for y > a."""
    value = 0.0
    for level in range(200, 0, -1):
        value = level * (level - a) / (y + 2.0 * level + 1.0 - a - value)
    return 1.0 / (y + 1.0 - a - value)


def _critical(num_free: int) -> float:
    """The statistic above which a law is refused."""
    low, high = 0.0, 50.0 + 5.0 * num_free
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if exceeded(middle, num_free) > FALSE_ALARM else (low, middle)
    return high


def _noncentrality(num_free: int) -> float:
    """The least noncentrality that passes the critical value with probability `POWER`."""
    critical, low, high = _critical(num_free), 0.0, 50.0 + 5.0 * num_free
    for _ in range(60):
        middle = (low + high) / 2.0
        missed = _noncentral(critical, num_free, middle)
        low, high = (middle, high) if missed > 1.0 - POWER else (low, middle)
    return high


def _noncentral(x: float, num_free: int, noncentrality: float) -> float:
    """The noncentral distribution function: a Poisson mixture of central ones."""
    half = noncentrality / 2.0
    reach = int(half + 12.0 * math.sqrt(half) + 30.0)
    weight, total = math.exp(-half), 0.0
    for j in range(reach):
        total += weight * (1.0 - exceeded(x, num_free + 2 * j))
        weight *= half / (j + 1)
    return total
