"""Where a verdict may end, how likely, and how prepared branches are best shared among those exits.

Pure arithmetic on probabilities. An exit is how many drafted tokens of a chain are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.errors import OptionError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def tokens_of(accepted: Sequence[float]) -> float:
    """Expected tokens of a round, the bonus included, of a chain whose 1st, 2nd, … token is kept
    with these chances, all before it being so."""
    return 1.0 + float(np.cumprod(np.asarray(accepted, np.float64)).sum())


def exits_of(accepted: Sequence[float]) -> Floats:
    """Chances `[K+1]` that 0, 1, … K tokens of such a chain are kept."""
    reach = np.concatenate(([1.0], np.cumprod(np.asarray(accepted, np.float64)), [0.0]))
    return np.asarray(reach[:-1] - reach[1:], np.float64)


def accepted_of(exits: Sequence[float]) -> Floats:
    """The chances of `exits_of` from a histogram `[K+1]` of how many tokens were kept; 0 where an
    exit was never reached."""
    counts = np.asarray(exits, np.float64)
    reach = counts[::-1].cumsum()[::-1]
    ratios = np.divide(reach[1:], reach[:-1], out=np.zeros(len(reach) - 1), where=reach[:-1] > 0)
    return np.asarray(ratios, np.float64)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """How often F guesses at an exit hold its bonus: 1 - (F + offset)^-exponent, 0 for F = 0.

    `offset` 0 is the published law. By it a single guess never hits; 1 is the same law with
    F = 0, not F = 1, at a hit rate of 0.
    """

    exponent: float
    offset: float = 1.0

    def hit(self, num_guesses: int) -> float:
        """Chance that the bonus is among so many best guesses."""
        return float(self.hits(np.array([num_guesses]))[0])

    def hits(self, num_guesses: Ints) -> Floats:
        """The same for many."""
        above = np.maximum(num_guesses + self.offset, 1.0)
        return np.where(num_guesses > 0, 1.0 - above**-self.exponent, 0.0)

    @classmethod
    def through(cls, hit: float, num_guesses: int, offset: float = 1.0) -> PowerLaw:
        """The law by which so many guesses hit so often."""
        base = num_guesses + offset
        if not (0.0 < hit < 1.0 and base > 1.0):
            raise OptionError(
                f"no power law has a hit rate of {hit} with {num_guesses} guesses: give a rate "
                "between 0 and 1, of at least one guess (two with offset 0)"
            )
        return cls(float(-np.log1p(-hit) / np.log(base)), offset)


def spread(exits: Sequence[float] | Floats, num_branches: int, exponent: float) -> Ints:
    """Branches `[K+1]` of each exit, F proportional to its chance^(1 / (1 + exponent)).

    Whole numbers by largest remainder, the earlier exit first on ties; they sum to `num_branches`,
    if any chance is positive.
    """
    weights = np.asarray(exits, np.float64) ** (1.0 / (1.0 + exponent))
    if not weights.sum() > 0:
        return np.zeros(len(weights), np.int64)
    shares = num_branches * weights / weights.sum()
    whole: Ints = np.floor(shares + 1e-9).astype(np.int64)
    for exit_node in np.argsort(-(shares - whole), kind="stable")[: num_branches - whole.sum()]:
        whole[exit_node] += 1
    return whole


def nearest_rate(exits: Sequence[float] | Floats, branches: Ints, bonus: PowerLaw) -> float:
    """Chance that an outcome is not prepared, but another bonus at its exit is."""
    return float(
        np.asarray(exits, np.float64) @ np.where(branches > 0, 1 - bonus.hits(branches), 0)
    )


def hit_rate(exits: Sequence[float] | Floats, branches: Ints, bonus: PowerLaw) -> float:
    """Chance that an outcome is prepared."""
    return float(np.asarray(exits, np.float64) @ bonus.hits(branches))


def stationary(chances: Floats) -> Floats:
    """Shares `[S]` of time in each of S states, from the chances `[S S]` of what follows which.

    Where that depends on the beginning it begins in state 0.
    """
    lazy = (np.eye(len(chances)) + chances) / 2.0  # the same shares, and no period
    found = np.linalg.matrix_power(lazy, 1 << 20)[0]
    return np.asarray(found / found.sum(), np.float64)
