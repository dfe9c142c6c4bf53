"""Two implementations of one model: what the native core taps and predicts, PyTorch does too."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from forerun.errors import BackendError
from forerun.models.weights import open_checkpoint
from forerun.protocols import Backend, ForwardBatch

native = pytest.importorskip("forerun.backends.native")
torch_backend = pytest.importorskip("forerun.backends.torch.backend")

CLOSE = 0.05  # standard deviations: bf16 activations against float32


def both(directory: Path) -> tuple[Backend, Backend]:
    checkpoint = open_checkpoint(directory)
    return (
        native.NativeBackend(checkpoint, cores=(min(os.sched_getaffinity(0)),), num_blocks=4),
        torch_backend.TorchBackend(
            checkpoint, device="cpu", dtype="float32", num_blocks=4, num_threads=1
        ),
    )


def tree_beside_chain(taps: tuple[int, ...]) -> ForwardBatch:
    def ints(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    return ForwardBatch(
        token_ids=ints(5, 6, 7, 8, 9, 10),
        parents=ints(-1, 0, 1, -1, 0, 0),
        row_starts=ints(0, 3, 6),
        committed=ints(0, 0),
        block_table=ints(0, 1)[:, None],
        logit_nodes=ints(2, 5, 0),
        tap_layers=taps,
    )


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / expected.std())


def test_taps_and_logits_agree(tiny_checkpoint_dir) -> None:
    # given a chain and a tree in one batch, tapped after both layers in turn
    directory = tiny_checkpoint_dir("qwen3", seed=1)
    outputs = [backend.forward(tree_beside_chain((1, 0))) for backend in both(directory)]
    (found, expected) = outputs
    # then each layer's states stand where they were asked for, and are the same states
    assert found.taps is not None
    assert expected.taps is not None
    assert found.taps.shape == expected.taps.shape
    assert distance(found.taps, expected.taps) < CLOSE
    assert distance(np.asarray(found.logits), expected.logits.numpy()) < CLOSE
    # and a control, the layers in the other order, is far
    swapped = np.roll(expected.taps, expected.taps.shape[1] // 2, axis=1)
    assert distance(found.taps, swapped) > 10 * CLOSE


def test_a_layer_that_is_not_there(tiny_checkpoint_dir) -> None:
    for backend in both(tiny_checkpoint_dir("llama", seed=1)):
        with pytest.raises((BackendError, ValueError), match="layer 9 of"):
            backend.forward(tree_beside_chain((9,)))
