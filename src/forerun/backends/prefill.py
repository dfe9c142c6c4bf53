"""Reading known tokens in chunks, through the one forward pass there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forerun.protocols import Backend, ForwardBatch

CHUNK = 256  # nodes of one row in one pass: bounds scratch memory, wide enough for full speed


def chain_batch(
    tokens: NDArray[np.int32], committed: int, block_table: NDArray[np.int32], num_logits: int
) -> ForwardBatch:
    """One row of nodes without forks; logits are wanted of its first `num_logits`."""
    nodes = np.arange(len(tokens), dtype=np.int32)
    return ForwardBatch(
        token_ids=tokens,
        parents=nodes - np.int32(1),
        row_starts=np.array([0, len(tokens)], np.int32),
        committed=np.array([committed], np.int32),
        block_table=block_table,
        logit_nodes=nodes[:num_logits],
    )


def prefill(
    backend: Backend,
    block_table: NDArray[np.int32],
    tokens: Sequence[int],
    committed: int,
    tap_layers: tuple[int, ...] = (),
) -> NDArray[np.float32] | None:
    """Compute and keep the K/V of `tokens` of one row whose first `committed` are already kept.

    Returns what was tapped of them, `[len(tokens), F]`, or None where nothing was to be tapped.
    """
    tapped: list[NDArray[np.float32]] = []
    for start in range(0, len(tokens), CHUNK):
        chunk = np.array(tokens[start : start + CHUNK], np.int32)
        batch = chain_batch(chunk, committed + start, block_table, num_logits=0)
        if tap_layers:
            batch = replace(batch, tap_layers=tap_layers)
        taps = backend.forward(batch).taps
        backend.commit(batch, [range(len(chunk))])
        if taps is not None:
            tapped.append(taps)
    return np.concatenate(tapped) if tapped else None
