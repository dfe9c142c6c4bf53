"""The values that travel through a round: draft, verdict, commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from forerun.tree import Tokens, TokenTree


class Draw(Enum):
    """How the children of a node were chosen; a rule reads it to know what it may assume."""

    COUPLED = "coupled"  # the best of `log q + g` with the target's own noise, best first
    POINT = "point"  # deterministic: the likeliest tokens, n-grams, a prediction
    SAMPLED = "sampled"  # independent draws from `law`; equal draws are one child
    WITHOUT_REPLACEMENT = "without replacement"  # each from `law` with the earlier ones removed
    TOP_AND_ONE = "top and one"  # all but the last are the likeliest; the last from the rest

    @property
    def is_sampled(self) -> bool:
        """Whether children are drawn from a law that a rule must know."""
        return self not in (Draw.COUPLED, Draw.POINT)


@dataclass(frozen=True, slots=True, eq=False)
class Damping:
    """Which tokens were drawn more rarely than their drafter believes in them (`shapes/draw.py`).

    `tokens [M F]`: those of each of a draft's laws, -1 behind; `factor`: what their chances were
    multiplied with.
    """

    tokens: Tokens
    factor: float

    @staticmethod
    def of(rows: Sequence[Sequence[int]], damped: tuple[int, float] | None) -> Damping | None:
        """What was damped in each law, at most F tokens, `damped` being (F, C)."""
        if damped is None:
            return None
        table = np.full((len(rows), damped[0]), -1, np.int32)
        for line, tokens in zip(table, rows, strict=True):
            line[: len(tokens)] = tokens
        return Damping(table, damped[1])


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """One row's tree, how its children were drawn, and what a rule or a reader may need of it.

    Children of a node stand in the order they were drawn. `expanded [M]` are the nodes whose
    children were drawn and `law [M V]` float32 the very laws they were drawn from; both None for
    `COUPLED` and `POINT`. `draws [M K]` are the tokens of `SAMPLED` children in order of drawing,
    with repetitions, -1 behind. `damping`: what is damped in `law`, whose rows then sum to less
    than one; None where they are the drafter's own. `margins [N]` float32: how far each node's
    `log q + g` lies above the best other one of its parent (below it, for all but the first child);
    `ranks [N]` its place among them; `scores [N]` float32 the probability its whole path was
    expected to be kept with; `chances [N]` float32 what the drafter's law gives each below its
    parent, of a `COUPLED` draft that is watched (a greedy row's law is that of temperature 1).
    NaN and -1 at node 0; None where the drafter has no such figures.
    `num_passes`: forward passes of a small model that the proposal took, for all its rows together.
    `source`: who drafted, where that was not the composition's drafter.
    """

    tree: TokenTree
    draw: Draw
    expanded: Tokens | None = None
    law: NDArray[np.float32] | None = None
    draws: Tokens | None = None
    margins: NDArray[np.float32] | None = None
    ranks: Tokens | None = None
    scores: NDArray[np.float32] | None = None
    num_passes: int = 0
    damping: Damping | None = None
    source: str = ""
    chances: NDArray[np.float32] | None = None

    @property
    def num_drafted(self) -> int:
        return len(self.tree) - 1

    def believed(self, place: int) -> NDArray[np.float32]:
        """The drafter's own law at `expanded[place]` of a draft with laws: nothing is damped.

        What is damped may no longer be likeliest, so that the law alone does not tell.
        """
        assert self.law is not None
        own: NDArray[np.float32] = self.law[place].copy()
        if self.damping is not None:
            tokens = self.damping.tokens[place]
            own[tokens[tokens >= 0]] /= np.float32(self.damping.factor)
        return own


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
    `features [M, F]` float32 are the target's tapped states of every token whose K/V the round
    kept, in order of position: a prompt's tail, the token that was pending, and those accepted;
    None where no drafter asked for them.
    """

    tokens: tuple[int, ...]
    features: NDArray[np.float32] | None = None
