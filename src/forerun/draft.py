"""The values that travel through a round: draft, verdict, commit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from forerun.tree import Tokens, TokenTree


class Draw(Enum):
    """How the children of a node were chosen; a rule reads it to know what it may assume."""

    COUPLED = "coupled"  # best of `log q + g` with the target's own noise
    POINT = "point"  # deterministic: argmax, n-gram, prediction
    SAMPLED = "sampled"  # independent draws from `law`


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """One row's tree and how it was drawn; `law [M V]` float32 only where a rule needs it."""

    tree: TokenTree
    draw: Draw
    expanded: Tokens | None = None
    law: NDArray[np.float32] | None = None

    @property
    def num_drafted(self) -> int:
        return len(self.tree) - 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far target and draft agree: node ids from 0 along the kept path, then one bonus token."""

    path: tuple[int, ...]
    bonus: int

    @property
    def num_accepted(self) -> int:
        """Drafted tokens kept; the bonus is not counted."""
        return len(self.path) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """What a round added to one sequence: accepted tokens, then the bonus.

    `tokens [A+1]`; the bonus is the next pending token, so its K/V is not written yet.
    `features [A+1, F]` are the target's tapped hidden states along the path, where asked for.
    """

    tokens: tuple[int, ...]
    features: NDArray[np.float32] | None = None
