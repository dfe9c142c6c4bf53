"""Tiny random drafters that read the features of the tiny target, as users have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forerun.models.drafter_files import drafter_tensors, write_drafter
from forerun.models.drafter_spec import BlockSpec, EagleSpec, MarkovKind
from forerun.models.spec import read_spec

SCALE = 0.3  # of the weights
Tensors = dict[str, NDArray[np.float32]]
OPENED_AS = {  # what stands before the colon in a composition
    "dflash": "dflash",
    "dspark": "dspark",
    "eagle3": "eagle3",
    "gated": "dspark",
    "rnn": "dspark",
}
KINDS = tuple(OPENED_AS)


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
    spark = replace(block, is_shifted=True, markov_rank=8)
    return {
        "dflash": ("z-lab", block),
        "dspark": ("deepspec", spark),
        "eagle3": ("eagle3", eagle),
        "gated": ("speculators", replace(spark, markov_kind=MarkovKind.GATED)),
        "rnn": ("deepspec", replace(spark, markov_kind=MarkovKind.RNN)),
    }


def names_of(written: Mapping[str, Path]) -> dict[str, str]:
    """Of each kind, the drafter's name in a composition."""
    return {kind: f"{OPENED_AS[kind]}:{path}" for kind, path in written.items()}


def write_feature_drafters(
    root: Path, target: Path, changed: Callable[[Tensors], Tensors] = lambda tensors: tensors
) -> dict[str, Path]:
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
        write_drafter(written[name], spec, changed(tensors), layout=layout, tokenizer_from=target)
    return written
