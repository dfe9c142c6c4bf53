"""Random checkpoints of a given size, for timing: real shapes and files, meaningless text.

Weights are bf16 normals of a fixed seed, written tensor by tensor, so memory stays at one tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forerun.errors import OptionError
from forerun.models.shards import SINGLE_NAME, header_of
from forerun.models.spec import ModelSpec, spec_from_config
from forerun.models.weights import expected_tensors

_SEED = 0
_STANDARD_DEVIATION = 0.02
_SHARED: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "vocab_size": 8192,
    "dtype": "bfloat16",
    "eos_token_id": 0,
}


def _shape(hidden: int, layers: int, heads: tuple[int, int], ffn: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 64,
        "intermediate_size": ffn,
    }


SHAPES = {
    "1M": _shape(128, 1, (2, 1), 384),
    "6M": _shape(256, 4, (4, 2), 1024),
    "14M": _shape(384, 5, (6, 3), 1536),
    "260M": _shape(1024, 16, (16, 8), 4096),
    "1B": _shape(2048, 18, (16, 8), 7168),
}


def random_config(size: str) -> dict[str, object]:
    """The `config.json` of the random model of that size.

    Raises:
        OptionError: a size there is no shape for.
    """
    if size not in SHAPES:
        raise OptionError(f"--random {size} is not known; sizes are {', '.join(SHAPES)}")
    return {**_SHARED, **SHAPES[size]}


def write_random_model(config: Mapping[str, object], directory: Path) -> ModelSpec:
    """Write a checkpoint with random weights; the same config gives the same bytes."""
    spec = spec_from_config(config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shapes = expected_tensors(spec)
    with (directory / SINGLE_NAME).open("wb") as file:
        file.write(bf16_header(shapes))
        for index, (name, shape) in enumerate(shapes.items()):
            file.write(_values(index, name, shape).tobytes())
    return spec


def bf16_header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """What a safetensors file of such bf16 tensors, one behind the other, begins with."""
    return header_of({name: ("BF16", shape) for name, shape in shapes.items()})


def _values(index: int, name: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Bf16 values: ones for norms, zeros for biases, else small normals, truncated to 16 bits."""
    if name.endswith("norm.weight"):
        values = np.ones(shape, np.float32)
    elif name.endswith(".bias"):
        values = np.zeros(shape, np.float32)
    else:
        generator = np.random.default_rng((_SEED, index))
        values = generator.standard_normal(shape, np.float32) * np.float32(_STANDARD_DEVIATION)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
