"""A Hugging Face checkpoint of the Qwen3 layout as one GGUF file, weights bit for bit.

Runs in llama.cpp's environment (packages `gguf` and `numpy`). bf16 matrices stay bf16; norms become
float32, which is exact. Must not know engines or timing.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# llama.cpp has split patterns built in, by name; this is the one of `train/tokenizer.py`.
PRE_TOKENIZER = "tekken"


def export(directory: Path, target: Path) -> Path:
    """Write `directory` (config.json, tokenizer.json, *.safetensors) as the GGUF file `target`.

    Raises:
        ValueError: another layout than Qwen3, or weights that are not bf16.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "qwen3":
        raise ValueError(f"{directory} is {config['model_type']}; only qwen3 is exported")
    unfinished = target.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "qwen3")
    _add_shape(writer, config)
    _add_tokenizer(writer, directory, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, values in _tensors(directory):
        to = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if to is None:
            raise ValueError(f"{name} has no place in a qwen3 GGUF file")
        if values.ndim == 1:
            writer.add_tensor(to, _float32(values))
        else:
            writer.add_tensor(to, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.replace(target)


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    writer.add_name("peer")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10000.0))


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path, config: dict[str, Any]) -> None:
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    added = {one["id"]: one for one in content["added_tokens"]}
    texts = {place: text for text, place in content["model"]["vocab"].items()}
    texts |= {place: one["content"] for place, one in added.items()}
    tokens, kinds = [], []
    for place in range(config["vocab_size"]):
        tokens.append(texts.get(place, f"[unused{place}]"))
        kinds.append(_kind(texts.get(place), added.get(place)))
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(value=False)
    for key, add in (
        ("bos_token_id", writer.add_bos_token_id),
        ("eos_token_id", writer.add_eos_token_id),
        ("pad_token_id", writer.add_pad_token_id),
    ):
        if isinstance(config.get(key), int):
            add(config[key])


def _kind(text: str | None, added: dict[str, Any] | None) -> int:
    if text is None:
        return int(gguf.TokenType.UNUSED)
    if added is not None:
        return int(gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED)
    return int(gguf.TokenType.NORMAL)


def _tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and bf16 values (as 16-bit patterns) of all safetensors files."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_bytes))
        for name, one in header.items():
            if name == "__metadata__":
                continue
            if one["dtype"] != "BF16":
                raise ValueError(f"{path.name}: {name} is {one['dtype']}; only BF16 is exported")
            start = 8 + header_bytes + one["data_offsets"][0]
            count = math.prod(one["shape"])
            values = np.fromfile(path, np.uint16, count=count, offset=start)
            yield name, values.reshape(one["shape"])


def _float32(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
