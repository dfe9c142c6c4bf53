"""The only randomness there is: a counter, not a generator, so there is nothing to roll back.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The word of a
token is a function of (seed, choice, purpose, position, token) and of nothing else.

    key      seed & 0xffffffff, seed >> 32
    counter  token >> 2, position, choice, purpose        word of the token: output lane token & 3
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_NUM_ROUNDS = 10
_SEED_BITS = 53  # every JSON reader keeps such an integer exactly


class Purpose(IntEnum):
    """What a word decides; a counter consulted for one decision is never used for another."""

    VERDICT = 0  # the target's choice at a position, shared by coupled drafters under `match`
    DRAFT = 1  # which children a sampled rule's drafter draws
    ACCEPT = 2  # whether a sampled rule keeps a node
    BONUS = 3  # the token a sampled rule emits at the end of its path


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> Words:
    """`[4, N]` output words of `[4, N]` counter words (each below 2**32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (second >> _SHIFT) ^ c1 ^ np.uint64(k0), (first >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3)).astype(np.uint32)


def words(seed: int, choice: int, purpose: Purpose, position: int, vocab: int) -> Words:
    """`[vocab]` uniform 32-bit words, one per token, for the choice made at `position`."""
    num_counters = (vocab + 3) // 4
    counter = np.empty((4, num_counters), np.uint64)
    counter[0] = np.arange(num_counters, dtype=np.uint64)
    counter[1], counter[2], counter[3] = position, choice, purpose
    key = (seed & 0xFFFFFFFF, seed >> 32)
    return np.ascontiguousarray(philox(counter, key).T).reshape(-1)[:vocab]


def uniform(seed: int, choice: int, purpose: Purpose, start: int, node: int, index: int) -> float:
    """A uniform number in [0, 1), 53 bits, for draw `index` at `node` of the round that began with
    `start` tokens known: the counter of sampled rules (design 3, law 4).

        counter  index, start, choice, purpose + 256 * node       lanes 0 and 1 of the output
    """
    counter = np.array([[index], [start], [choice], [purpose + (node << 8)]], np.uint64)
    high, low = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))[:2, 0].tolist()
    whole: int = ((high >> 5) << 26) + (low >> 6)
    return whole / 2.0**53


@dataclass(frozen=True, slots=True)
class RoundNoise:
    """The decisions of one row's round under a sampled rule; `start`: tokens known as it began."""

    seed: int
    choice: int
    start: int

    def accepts(self, node: int, index: int, p: float, q: float) -> bool:
        """Whether `u * q < p`, strictly: p = 0 never passes, p >= q > 0 always does."""
        return uniform(self.seed, self.choice, Purpose.ACCEPT, self.start, node, index) * q < p

    def picks(self, purpose: Purpose, node: int, index: int, weights: NDArray[np.float64]) -> int:
        """A token by inverse distribution; weights `[V]` need no normalising, one is positive."""
        u = uniform(self.seed, self.choice, purpose, self.start, node, index)
        return pick(weights, u)


def pick(weights: NDArray[np.float64], u: float) -> int:
    """The first token whose cumulated weight exceeds `u` of the whole; none of weight zero."""
    cumulated = np.cumsum(weights, dtype=np.float64)
    at = int(np.searchsorted(cumulated, u * cumulated[-1], side="right"))
    return min(at, int(np.flatnonzero(weights)[-1]))  # `u * sum` may round up to the sum


def gumbel(of: Words) -> NDArray[np.float64]:
    """Standard Gumbel noise of uniform words: `-log(-log(u))`, u = (w + 0.5) / 2**32."""
    uniform = (of.astype(np.float64) + 0.5) / 2.0**32
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def draw_seed() -> int:
    """A fresh seed from the operating system."""
    return secrets.randbits(_SEED_BITS)
