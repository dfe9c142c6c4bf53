"""Write a trained decoder as an ordinary checkpoint: bf16 safetensors, configs, tokenizer.

Knows Hugging Face's file names and keys. Must not know how the weights came to be.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from forerun.backends.torch.decoder import Decoder
from forerun.errors import ModelError
from forerun.models.spec import ModelSpec
from forerun.models.weights import open_checkpoint
from forerun.train.tokenizer import PAD_ID

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export_checkpoint(
    model: Decoder,
    tokenizer_dir: Path,
    out: Path,
    *,
    exit_layer: int = 0,
    pad_id: int | None = PAD_ID,
) -> None:
    """Write `model` and the tokenizer's files to `out`; the weights are rounded to bfloat16.

    An `exit_layer` the model was trained with is written where other engines do not look. `pad_id`
    is the token that pads rows in the tokenizer's vocabulary, None where that is not known.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, out / name)
    weights = {
        name: value.detach().cpu().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    config = qwen3_config(model.spec, pad_id)
    if exit_layer:
        config["forerun"] = {"exit_layer": exit_layer}
    _write(out / "config.json", config)
    _write(out / "generation_config.json", _generation_config(model.spec, pad_id))


def qwen3_config(spec: ModelSpec, pad_id: int | None = PAD_ID) -> dict[str, Any]:
    """The `config.json` of a Qwen3-shaped spec, old and new spellings of a key both present.

    Raises:
        ModelError: another family, or a rotary embedding that is scaled.
    """
    if spec.family != "qwen3" or spec.rope.kind != "default":
        raise ModelError(f"only plain qwen3 models are exported, not {spec.family}")
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_position,
        "initializer_range": 0.02,
        "rms_norm_eps": spec.norm_eps,
        "use_cache": True,
        "tie_word_embeddings": spec.tied,
        "rope_theta": spec.rope.theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope.theta},
        "attention_bias": spec.qkv_bias,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": spec.num_layers,
        "bos_token_id": spec.bos_id,
        "eos_token_id": _stop_ids(spec),
        "pad_token_id": pad_id,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def load_decoder(directory: Path) -> Decoder:
    """The float32 decoder of a model directory, with one file of weights or several.

    Raises:
        ModelError: a model that cannot be used.
    """
    checkpoint = open_checkpoint(directory)
    model = Decoder(checkpoint.spec)
    names = model.state_dict()
    model.load_state_dict({n: torch.from_numpy(checkpoint.tensor(n).float32()) for n in names})
    return model


def _stop_ids(spec: ModelSpec) -> int | list[int] | None:
    """One id by itself, as most files have it."""
    return list(spec.eos_ids) if len(spec.eos_ids) > 1 else next(iter(spec.eos_ids), None)


def _generation_config(spec: ModelSpec, pad_id: int | None) -> dict[str, Any]:
    return {
        "bos_token_id": spec.bos_id,
        "eos_token_id": _stop_ids(spec),
        "pad_token_id": pad_id,
        "do_sample": True,
        "temperature": 0.7,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
