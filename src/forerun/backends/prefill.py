"""Reading known tokens in chunks, through the one forward pass there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forerun.protocols import Backend, ForwardBatch

CHUNK = 256  # nodes of one row in one pass: bounds scratch memory, wide enough for full speed


def prefill(
    backend: Backend, block_table: NDArray[np.int32], tokens: Sequence[int], committed: int
) -> None:
    """Compute and keep the K/V of `tokens` of one row whose first `committed` are already kept."""
    for start in range(0, len(tokens), CHUNK):
        chunk = np.array(tokens[start : start + CHUNK], np.int32)
        batch = ForwardBatch(
            token_ids=chunk,
            parents=np.arange(-1, len(chunk) - 1, dtype=np.int32),
            row_starts=np.array([0, len(chunk)], np.int32),
            committed=np.array([committed + start], np.int32),
            block_table=block_table,
            logit_nodes=np.zeros(0, np.int32),
        )
        backend.forward(batch)
        backend.commit(batch, [range(len(chunk))])
