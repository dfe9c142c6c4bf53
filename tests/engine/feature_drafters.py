"""Tiny random drafters that read the features of the tiny target, as users have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from forerun.models.drafter_files import drafter_tensors, write_drafter
from forerun.models.drafter_spec import BlockSpec, EagleSpec
from forerun.models.spec import read_spec

SCALE = 0.3  # of the weights


def specs_of(target: Path) -> dict[str, tuple[str, BlockSpec | EagleSpec]]:
    """Layout and spec of a drafter of each kind for a tiny target."""
    spec = read_spec(target)
    body = replace(
        spec, family="qwen3", num_layers=2, tied=True, qkv_bias=False, qk_norm=True, eos_ids=()
    )
    block = BlockSpec(
        body=body, block_len=5, is_shifted=False, tap_layers=tuple(range(spec.num_layers)),
        target_hidden=spec.hidden, num_target_layers=spec.num_layers, mask_id=spec.vocab - 1,
        windows=(0, 0), is_causal=(False, False),
    )  # fmt: skip
    eagle = EagleSpec(
        body=replace(body, family="llama", num_layers=1, qk_norm=False),
        tap_layers=(spec.num_layers - 1,), target_hidden=spec.hidden,
        num_target_layers=spec.num_layers, target_vocab=spec.vocab, has_token_map=False,
    )  # fmt: skip
    return {
        "dflash": ("z-lab", block),
        "dspark": ("deepspec", replace(block, is_shifted=True, markov_rank=8)),
        "eagle3": ("eagle3", eagle),
    }


def write_feature_drafters(root: Path, target: Path) -> dict[str, Path]:
    """A directory for each kind."""
    written = {}
    for seed, (name, (layout, spec)) in enumerate(specs_of(target).items()):
        rng = np.random.default_rng(seed)
        tensors = {
            tensor: (
                rng.normal(1.0, 0.05, shape) if len(shape) == 1 else rng.normal(0.0, SCALE, shape)
            ).astype(np.float32)
            for tensor, shape in drafter_tensors(spec).items()
        }
        written[name] = root / name
        write_drafter(written[name], spec, tensors, layout=layout, tokenizer_from=target)
    return written
