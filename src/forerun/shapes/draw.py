"""Drawing the children of one node: what every backend's sampled growth must agree with.

A law is float32; a token is the inverse of its cumulated float64 sum at the noise's number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draw
from forerun.errors import DrafterError
from forerun.noise import Purpose
from forerun.protocols import Noise


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
