"""Tiny seeded models and tokenizers, written as the checkpoints any user would have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": 272,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 256,
    "bos_token_id": None,
}
WriteCheckpoint = Callable[..., Path]

# A busy machine makes any example slow: time is nobody's proof here.
settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")


class OwnTime:
    """Time that goes by where a test says so: asked for it, it answers `now_s`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_asked = 0

    def __call__(self) -> float:
        self.num_asked += 1
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let so much go by, at once."""
        self.now_s += seconds


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> OwnTime:
    """The time that rounds, spans and trials are measured with."""
    time = OwnTime()
    monkeypatch.setattr("forerun.stats.perf_counter", time)
    return time


@pytest.fixture
def counted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the load tool: a look at it takes a millisecond, whatever comes between two, so
    that a load of half a second is as many requests on any machine."""
    from forerun.tools import bench_serve

    looks = [0]

    def now_s() -> float:
        looks[0] += 1
        return looks[0] / 1000

    for name in ("Client", "closed_loop"):
        kept = partial(getattr(bench_serve, name), now_s=now_s)
        monkeypatch.setattr(bench_serve, name, kept)
    monkeypatch.setattr(bench_serve, "perf_counter", now_s)
    monkeypatch.setattr(bench_serve, "process_time", lambda: looks[0] / 2000)


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes that share out the tests a core of its own.

    Engines and PyTorch then take one thread each, as nobody tells them otherwise.
    """
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker["workerid"][2:]) % len(cores)]})


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """One token a byte (ids 0-255 in the byte-level alphabet's order), then `<|end|>` (256)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: rank for rank, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


@pytest.fixture(scope="session")
def tiny_checkpoint_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer
) -> WriteCheckpoint:
    """Writes a random checkpoint once per (family, seed, changes) and returns its directory.

    `tiny_checkpoint_dir("qwen3", 1, num_hidden_layers=3)`; keyword `scale` is the standard
    deviation of the weights (large ones make peaked laws), `near=(other directory, amount)` adds
    noise to another checkpoint's weights instead, which makes a drafter that often agrees.
    """
    written: dict[str, Path] = {}

    def write(family: str = "qwen3", seed: int = 0, **changes: Any) -> Path:
        name = "-".join([family, str(seed), *[f"{key}={value}" for key, value in changes.items()]])
        if name not in written:
            directory = tmp_path_factory.mktemp("tiny")
            write_checkpoint(directory, family, seed, tiny_tokenizer, **changes)
            written[name] = directory
        return written[name]

    return write


def write_checkpoint(
    directory: Path, family: str, seed: int, tokenizer: Tokenizer, **changes: Any
) -> None:
    """A random checkpoint with config, weights and tokenizer."""
    scale = changes.pop("scale", 0.25)
    near = changes.pop("near", None)
    config = {"architectures": [ARCHITECTURES[family]], **TINY, **changes}
    rng = np.random.default_rng(seed)
    weights = {
        name: (
            rng.normal(1.0, 0.05, shape) if len(shape) == 1 else rng.normal(0.0, scale, shape)
        ).astype(np.float32)
        for name, shape in weight_shapes(config, family).items()
    }
    if near is not None:
        from safetensors.numpy import load_file

        other, amount = load_file(near[0] / "model.safetensors"), near[1]
        weights = {name: other[name] + amount * weights[name] for name in weights}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors")
    tokenizer.save(str(directory / "tokenizer.json"))


def weight_shapes(config: dict[str, Any], family: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, as Hugging Face names them."""
    hidden, head_dim, ffn = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for part, width in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{at}self_attn.{part}_proj.weight"] = (width, hidden)
            if family == "qwen2":
                shapes[f"{at}self_attn.{part}_proj.bias"] = (width,)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, q)
        if family == "qwen3":
            shapes[f"{at}self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{at}self_attn.k_norm.weight"] = (head_dim,)
        shapes[f"{at}input_layernorm.weight"] = (hidden,)
        shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{at}mlp.gate_proj.weight"] = shapes[f"{at}mlp.up_proj.weight"] = (ffn, hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, ffn)
    return shapes
