"""Of all nodes that all rows may draft, how many of the likeliest are worth their seconds.

Pure: chances and seconds in, lengths out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RoundCosts:
    """Expected seconds: of a round with 0, 1, 2, … drafted nodes, proposals apart, and of a
    drafter's pass of 0, 1, 2, … rows. `is_stepwise`: a token more takes a pass more."""

    verify_s: Floats
    pass_s: Floats
    is_stepwise: bool


def allotted(chances: Floats, num_rows: int, costs: RoundCosts, gain: float) -> list[int]:
    """The lengths with the most expected tokens a second; none where nothing beats plain decoding
    by the factor `gain`.

    `chances` are those of a chain of 1, 2, … tokens, a line for each row that may draft, of
    `num_rows` in all. No more nodes are drafted than `costs` know of.
    """
    num_asking, longest = chances.shape
    order = np.argsort(-chances, axis=None, kind="stable")
    values, depths = chances.ravel()[order], order % longest + 1
    # Of rows that draft at most so many tokens each, so many of the likeliest nodes.
    bounds = np.arange(1, longest + 1) if costs.is_stepwise else np.array([longest])
    is_taken = depths <= bounds[:, None]
    num_nodes = np.cumsum(is_taken, axis=1)
    num_drafting = np.cumsum(is_taken & (depths == 1), axis=1)
    tokens = num_rows + np.cumsum(is_taken * values, axis=1)
    passes = bounds[:, None] if costs.is_stepwise else 1
    most = len(costs.verify_s) - 1
    seconds = costs.verify_s[np.minimum(num_nodes, most)] + passes * costs.pass_s[num_drafting]
    rates = np.where((num_nodes <= most) & (num_nodes > 0), tokens / seconds, 0.0)
    bound, last = np.unravel_index(int(np.argmax(rates)), rates.shape)
    lengths = np.zeros(num_asking, np.int64)
    if rates[bound, last] > gain * num_rows / costs.verify_s[0]:
        taken = order[: last + 1][is_taken[bound, : last + 1]]
        np.add.at(lengths, taken // longest, 1)
    found: list[int] = lengths.tolist()
    return found
