"""Drawing the children of one node: what every backend's sampled growth must agree with.

A law is float32; a token is the inverse of its cumulated float64 sum at the noise's number.

A law may be damped before anything is drawn from it (Kumar, Dao, May 2026, *Speculative Speculative
Decoding*, arXiv:2603.03251). Where a draw x is refused, the bonus comes from `(p - s)_+`, s being
what x was drawn from. With s = q, near p, that is what q lacks: anything. With s less than p at the
likeliest tokens of q, it is those tokens, which can be prepared for. The damped law is what a draft
carries and a rule judges by, so nothing else changes; it is settled before the draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draw
from forerun.errors import DrafterError
from forerun.noise import Purpose
from forerun.protocols import Noise


def damp(
    law: NDArray[np.float32], damped: tuple[int, float] | None, draw: Draw, num_draws: int
) -> tuple[NDArray[np.float32], list[int]]:
    """A law `[V]` with its F likeliest tokens times C, `damped` being (F, C), and which they are.

    The lowest id first on ties; weights that need no normalising. Of `TOP_AND_ONE` children all but
    the last are set, not drawn: those are passed over, and stay the likeliest. Where every token
    that can be drawn would be damped (a greedy row's one-hot law), the law is as it was.
    """
    if damped is None or draw is Draw.POINT:
        return law, []
    count, factor = damped
    num_set = num_draws - 1 if draw is Draw.TOP_AND_ONE else 0
    if np.count_nonzero(law > 0) <= num_set + count:
        return law, []
    tokens = _likeliest(law, num_set + count)[num_set:]
    lower = law.copy()
    lower[tokens] *= np.float32(factor)
    return lower, tokens


def _likeliest(law: NDArray[np.float32], count: int) -> list[int]:
    """The best `count` of more tokens, best first, the lowest id on ties; sorts no vocabulary."""
    ids = np.flatnonzero(law >= np.partition(law, -count)[-count])
    best: list[int] = ids[np.argsort(-law[ids], kind="stable")[:count]].tolist()
    return best


def draw_children(
    law: NDArray[Any], num_draws: int, draw: Draw, node: int, noise: Noise
) -> list[int]:
    """At most `num_draws` children of `node`, in order of drawing; fewer where the law runs out.

    `law [V]`. `SAMPLED` may repeat a token. Draw j consults the counter (DRAFT, `node`, j), where
    `node` is any number of its own in its round; the likeliest tokens (`POINT`, `TOP_AND_ONE`)
    consult none: the highest law, the lowest id on ties. An empty list where the law holds NaN
    or has no mass.

    Raises:
        DrafterError: coupled children, which are chosen with the target's own noise.
    """
    if draw is Draw.COUPLED:
        raise DrafterError(
            "coupled children are the best of `log q + g`, not draws: grow them from scores"
        )
    weights = np.array(law, np.float64)
    total = float(weights.sum())
    if not 0.0 < total < float("inf"):  # NaN fails every comparison
        return []
    drawn: list[int] = []
    for index in range(num_draws):
        if not weights.any():
            break
        if draw is Draw.POINT or (draw is Draw.TOP_AND_ONE and index < num_draws - 1):
            drawn.append(int(np.argmax(weights)))
        else:
            drawn.append(noise.picks(Purpose.DRAFT, node, index, weights))
        if draw is not Draw.SAMPLED:
            weights[drawn[-1]] = 0.0
    return drawn
