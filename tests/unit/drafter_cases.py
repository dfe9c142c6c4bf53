"""Tiny drafters of every layout, with random tensors, for the tests that read and write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.models.drafter_files import drafter_tensors, write_drafter
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec, MarkovKind
from forerun.models.spec import ModelSpec, Rope

Change = Callable[[dict[str, Any]], None]

# The target is conftest's tiny checkpoint with six layers.
NUM_TARGET_LAYERS, VOCAB, HIDDEN = 6, 272, 64

BODY = ModelSpec(
    family="qwen3",
    hidden=HIDDEN,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    ffn=96,
    vocab=VOCAB,
    max_position=512,
    norm_eps=1e-6,
    rope=Rope(theta=10000.0),
    tied=True,
    qkv_bias=False,
    qk_norm=True,
    eos_ids=(),
    bos_id=None,
    dtype="bfloat16",
)
DFLASH = BlockSpec(
    body=BODY,
    block_len=6,
    is_shifted=False,
    tap_layers=(1, 2, 3),
    target_hidden=HIDDEN,
    num_target_layers=NUM_TARGET_LAYERS,
    mask_id=271,
    windows=(0, 0),
    is_causal=(False, False),
)
SHIFTED = replace(DFLASH, is_shifted=True)
DSPARK = replace(SHIFTED, markov_rank=8)
GATED = replace(DSPARK, markov_kind=MarkovKind.GATED)
RECURRENT = replace(DSPARK, markov_kind=MarkovKind.RNN)
FEW = replace(DFLASH, draft_vocab=100)
FEW_HEARD = replace(DSPARK, draft_vocab=100, has_confidence=True)
CONFIDENT = replace(DSPARK, has_confidence=True)
SLIDING = replace(DFLASH, windows=(16, 0), is_causal=(True, False))
BIDIRECTIONAL = replace(DFLASH, windows=(16, 0))
CAUSAL = replace(DFLASH, is_causal=(True, True))
SCALED = replace(DFLASH, body=replace(BODY, rope=Rope(500000.0, "llama3", 8.0, 1.0, 4.0, 128)))
EAGLE = EagleSpec(
    body=replace(BODY, family="llama", num_layers=1, qk_norm=False),
    tap_layers=(1, 2, 4),
    target_hidden=HIDDEN,
    num_target_layers=NUM_TARGET_LAYERS,
    target_vocab=VOCAB,
    has_token_map=False,
)
DEFAULT_EAGLE = replace(EAGLE, tap_layers=(1, 5, 8), num_target_layers=12)
MAPPED = replace(EAGLE, body=replace(EAGLE.body, vocab=100), has_token_map=True)
NORMED = replace(EAGLE, norm_before_residual=True)

# Every layout with what it can say, as written and as read back.
ROUND_TRIPS: dict[str, tuple[DrafterSpec, str, str]] = {
    "z-lab": (DFLASH, "z-lab", "z-lab"),
    "z-lab sliding": (SLIDING, "z-lab", "z-lab"),
    "z-lab sliding both ways": (BIDIRECTIONAL, "z-lab", "z-lab"),
    "z-lab causal": (CAUSAL, "z-lab", "z-lab"),
    "z-lab long rope": (SCALED, "z-lab", "z-lab"),
    "deepspec": (SHIFTED, "deepspec", "deepspec"),
    "deepspec markov": (DSPARK, "deepspec", "deepspec"),
    "deepspec gated": (GATED, "deepspec", "deepspec"),
    "deepspec rnn": (RECURRENT, "deepspec", "deepspec"),
    "deepspec confidence": (CONFIDENT, "deepspec", "deepspec"),
    "speculators": (DFLASH, "speculators", "speculators"),
    "speculators shifted": (SHIFTED, "speculators", "speculators"),
    "speculators sliding": (SLIDING, "speculators", "speculators"),
    "speculators sliding both ways": (BIDIRECTIONAL, "speculators", "speculators"),
    "speculators dspark": (CONFIDENT, "speculators", "speculators"),
    "speculators gated": (GATED, "speculators", "speculators"),
    "speculators rnn": (
        replace(RECURRENT, has_confidence=True),
        "speculators",
        "speculators",
    ),
    "speculators few tokens": (FEW, "speculators", "speculators"),
    "speculators few tokens, markov": (FEW_HEARD, "speculators", "speculators"),
    "speculators few tokens, rnn": (
        replace(RECURRENT, draft_vocab=100),
        "speculators",
        "speculators",
    ),
    "eagle3": (EAGLE, "eagle3", "eagle3"),
    "eagle3 usual taps": (DEFAULT_EAGLE, "eagle3", "eagle3"),
    "eagle3 map": (MAPPED, "eagle3", "eagle3"),
    "speculators eagle3": (EAGLE, "speculators", "speculators-eagle3"),
    "speculators eagle3 map": (MAPPED, "speculators-eagle3", "speculators-eagle3"),
    "speculators eagle3 normed": (NORMED, "speculators", "speculators-eagle3"),
}


def random_tensors(spec: DrafterSpec, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Weights as the upper halves of normals, which is bf16; some tokens where there is a map."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {
        name: (rng.standard_normal(shape, np.float32).view(np.uint32) >> np.uint32(16)).astype(
            np.uint16
        )
        for name, shape in drafter_tensors(spec).items()
    }
    if spec.has_token_map:
        num_drafted = spec.head_vocab
        targets = np.sort(rng.permutation(spec.target_vocab)[:num_drafted]).astype(np.int64)
        tensors["d2t"] = targets - np.arange(num_drafted)
    return tensors


def write(directory: Path, spec: DrafterSpec, layout: str) -> Path:
    write_drafter(directory, spec, random_tensors(spec), layout=layout)
    return directory


def change_config(directory: Path, change: Change) -> Path:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return directory
