"""What a model is, as data: one decoder whose families differ only in the fields of `ModelSpec`.

Knows `config.json` (the only place that reads a foreign config). Must not know tensors or backends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from forerun.errors import ModelError

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: `default`, or `llama3` frequency scaling (Llama 3.1 report, appendix)."""

    theta: float = 10000.0
    kind: Literal["default", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192

    def frequencies(self, head_dim: int) -> list[float]:
        """`[head_dim / 2]` radians per position, after scaling."""
        plain = [self.theta ** (-2.0 * pair / head_dim) for pair in range(head_dim // 2)]
        return plain if self.kind == "default" else [self._scaled(one) for one in plain]

    def _scaled(self, frequency: float) -> float:
        # Waves longer than the trained context turn `factor` times slower, short ones stay, and a
        # linear blend in inverse wavelength joins the two.
        turns = self.original_max_position * frequency / (2.0 * math.pi)
        if turns > self.high_freq_factor:
            return frequency
        if turns < self.low_freq_factor:
            return frequency / self.factor
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return (1.0 - blend) * frequency / self.factor + blend * frequency


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape and conventions of one decoder-only checkpoint; counts are in elements."""

    family: str
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    max_position: int
    norm_eps: float
    rope: Rope
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    eos_ids: tuple[int, ...]
    bos_id: int | None
    dtype: str

    @property
    def num_parameters(self) -> int:
        """Parameters, tied embeddings counted once."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = self.hidden * (2 * q + 2 * kv) + 3 * self.hidden * self.ffn + 2 * self.hidden
        layer += (q + 2 * kv) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        return self.num_layers * layer + self.vocab * self.hidden * (2 - self.tied) + self.hidden


def read_spec(directory: Path) -> ModelSpec:
    """Read `config.json` (and `generation_config.json` for stop ids) of a checkpoint directory.

    Raises:
        ModelError: no config, unreadable JSON, unknown architecture, a missing or unsupported key.
    """
    path = directory / "config.json"
    config = read_json(path)
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else {}
    return spec_from_config(config, generation, where=str(path))


def read_exit_layer(directory: Path) -> int | None:
    """The layer after which a checkpoint was trained to be read too; None if it was not.

    `config.json` has it under a key of forerun's own, {"forerun": {"exit_layer": L}}.

    Raises:
        ModelError: no config, unreadable JSON, or a layer that is not below the last.
    """
    path = directory / "config.json"
    config = read_json(path)
    own = config.get("forerun")
    layer = own.get("exit_layer") if isinstance(own, dict) else None
    if layer is None:
        return None
    num_layers = ConfigReader(config, str(path)).count("num_hidden_layers")
    if type(layer) is not int or not 0 < layer < num_layers:
        raise ModelError(
            f"{path}: forerun.exit_layer={layer!r} is not one of 1 to {num_layers - 1}, the layers"
            " below the last: remove the key if the model was not trained with an exit"
        )
    return layer


def spec_from_config(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None, *, where: str = "config"
) -> ModelSpec:
    """Turn a Hugging Face config mapping into a `ModelSpec`; refuses what it does not know."""
    architecture = architecture_of(config)
    family = FAMILIES.get(architecture)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"{where}: architecture {architecture!r} is not supported; known are {known}"
        )
    _refuse_window(config, where)
    eos = (generation or {}).get("eos_token_id", config.get("eos_token_id"))
    return replace(body_from_config(config, family, where=where), eos_ids=_ids(eos))


def body_from_config(config: Mapping[str, Any], family: str, *, where: str) -> ModelSpec:
    """The decoder a config describes, read as `family` whatever its architecture is called.

    It has no stop ids, and a sliding window is not looked at: what that means is the caller's.
    """
    _refuse_unsupported(config, where)
    read = ConfigReader(config, where)
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    kv_heads = read.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelError(
            f"{where}: num_attention_heads={heads} is not a multiple of"
            f" num_key_value_heads={kv_heads}"
        )
    head_dim = read.count("head_dim", hidden // heads)
    if head_dim % 2:
        raise ModelError(f"{where}: head_dim={head_dim} is odd; rotary embedding needs an even one")
    return ModelSpec(
        family=family,
        hidden=hidden,
        num_layers=read.count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=read.count("intermediate_size"),
        vocab=read.count("vocab_size"),
        max_position=read.count("max_position_embeddings"),
        norm_eps=read.number("rms_norm_eps"),
        rope=_rope(config, where),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
        qk_norm=family == "qwen3",
        eos_ids=(),
        bos_id=config.get("bos_token_id"),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
    )


def architecture_of(config: Mapping[str, Any]) -> str:
    """The first architecture a config names, "(none)" where it names none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "(none)"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model directory, or a `ModelError` that says why not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist: a model directory needs config.json, tokenizer.json and"
            " *.safetensors"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{where}: hidden_act={config['hidden_act']!r}; only 'silu' is supported")
    if config.get("mlp_bias"):
        raise ModelError(f"{where}: mlp_bias=true is not supported")
    if config.get("quantization_config"):
        raise ModelError(
            f"{where}: quantized checkpoints are not supported; use the bf16, f16 or f32 one"
        )


def _refuse_window(config: Mapping[str, Any], where: str) -> None:
    window, limit = config.get("sliding_window"), config.get("max_position_embeddings", 0)
    uses_window = config.get("use_sliding_window", window is not None)
    if window is not None and uses_window and window < limit:
        raise ModelError(f"{where}: sliding_window={window} (< {limit}) is not supported yet")


def _rope(config: Mapping[str, Any], where: str) -> Rope:
    # Transformers 5 writes `rope_parameters`; older files have `rope_theta` and `rope_scaling`.
    values = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(values, dict):
        raise ModelError(f"{where}: rope_parameters must be an object, found {values!r}")
    inner, outer = ConfigReader(values, where + " (rope)"), ConfigReader(config, where)
    theta = inner.number("rope_theta", outer.number("rope_theta", 10000.0))
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind == "default":
        return Rope(theta=theta)
    if kind != "llama3":
        raise ModelError(f"{where}: rope type {kind!r} is not supported; known are default, llama3")
    return Rope(
        theta=theta,
        kind="llama3",
        factor=inner.number("factor"),
        low_freq_factor=inner.number("low_freq_factor"),
        high_freq_factor=inner.number("high_freq_factor"),
        original_max_position=inner.count("original_max_position_embeddings"),
    )


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """Typed access to a config mapping; a bad key is named with its file."""

    config: Mapping[str, Any]
    where: str

    def count(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelError(f"{self.where}: {key} must be a positive integer, found {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ModelError(f"{self.where}: {key} must be a number, found {value!r}")
        return float(value)

    def ids(self, key: str) -> tuple[int, ...] | None:
        """A list of integers, None where the key is absent or null."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise ModelError(f"{self.where}: {key} must be a list of integers, found {value!r}")
        return tuple(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """True or false; `default` where the key is absent or null."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.where}: {key} must be true or false, found {value!r}")
        return value
