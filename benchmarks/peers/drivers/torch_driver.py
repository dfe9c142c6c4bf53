"""The best plain decoding loop we know how to write in PyTorch on a CPU.

bf16 weights with query, key and value (and gate and up) in one matrix, K/V in place, no graph of
modules, optionally compiled. Greedy only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from protocol import Driver, Setting, Stopwatch, Timed, serve
from safetensors.torch import load_file
from torch.nn import functional

ATTENTION, MLP = "self_attn", "mlp"


class Decoder:
    """A Qwen3 decoder for one sequence; `step` reads tokens and says what follows each."""

    def __init__(self, directory: Path, context: int) -> None:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        weights: dict[str, torch.Tensor] = {}
        for path in sorted(directory.glob("*.safetensors")):
            weights |= load_file(path)
        self._heads = config["num_attention_heads"]
        self._kv_heads = config["num_key_value_heads"]
        self._head_dim = config["head_dim"]
        self._epsilon = config["rms_norm_eps"]
        self._embedding = weights["model.embed_tokens.weight"]
        self._head = weights.get("lm_head.weight", self._embedding)
        self._norm = weights["model.norm.weight"]
        self._layers = [_fused(weights, n) for n in range(config["num_hidden_layers"])]
        shape = (len(self._layers), 2, self._kv_heads, context, self._head_dim)
        self._kv = torch.zeros(shape, dtype=torch.bfloat16)
        rope = config.get("rope_parameters") or {}
        theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
        powers = torch.arange(0, self._head_dim, 2) / self._head_dim
        angles = torch.arange(context)[:, None] / theta ** powers[None]
        self._cos, self._sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        places = torch.arange(context)
        self._visible = places[None] <= places[:, None]

    def step(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """`[n]` best tokens after each of `tokens [n]`, which stand at `first` and following."""
        count = tokens.shape[0]
        last = first + count
        cos, sin = self._cos[first:last, None], self._sin[first:last, None]
        visible = None if count == 1 else self._visible[first:last, :last]
        x = functional.embedding(tokens, self._embedding)
        for weights, kv in zip(self._layers, self._kv, strict=True):
            mixed = functional.linear(self._normed(x, weights["before"]), weights["qkv"])
            mixed = mixed.view(count, -1, self._head_dim)
            q, k, v = mixed.split([self._heads, self._kv_heads, self._kv_heads], dim=1)
            q = self._turned(self._normed(q, weights["q_norm"]), cos, sin)
            k = self._turned(self._normed(k, weights["k_norm"]), cos, sin)
            kv[0, :, first:last] = k.transpose(0, 1)
            kv[1, :, first:last] = v.transpose(0, 1)
            seen = functional.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                kv[None, 0, :, :last],
                kv[None, 1, :, :last],
                attn_mask=visible,
                enable_gqa=True,
            )
            x = x + functional.linear(seen[0].transpose(0, 1).reshape(count, -1), weights["out"])
            both = functional.linear(self._normed(x, weights["after"]), weights["gate_up"])
            gate, up = both.chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, weights["down"])
        return functional.linear(self._normed(x, self._norm), self._head).argmax(-1)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, x.shape[-1:], weight, self._epsilon)

    def _turned(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        one, other = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-other, one), dim=-1) * sin).to(x.dtype)


class TorchDriver:
    """`plain` is the loop as it stands, `compiled` the same through `torch.compile`."""

    def load(self, setting: Setting) -> Mapping[str, Any]:
        torch.set_num_threads(setting.threads)
        decoder = Decoder(setting.model, setting.context)
        self._eager = self._step = decoder.step
        if setting.mode == "compiled":
            self._step = torch.compile(decoder.step, dynamic=True)
            self.generate("compiled", {}, [2], 4)  # so that loading pays for the compiler
        return {"versions": {"torch": torch.__version__}, "modes": [setting.mode]}

    @torch.inference_mode()
    def generate(
        self, mode: str, options: Mapping[str, Any], prompt: Sequence[int], max_tokens: int
    ) -> Timed:
        watch = Stopwatch()
        token = self._eager(torch.tensor(prompt), 0)[-1:]
        for place in range(len(prompt), len(prompt) + max_tokens):
            if watch.add(token.tolist()) < max_tokens:
                token = self._step(token, place)
        return watch.result(max_tokens)

    @torch.inference_mode()
    def forward(self, num_tokens: int, context: int) -> float:
        step = self._eager
        step(torch.full((context,), 2), 0)
        tokens = torch.full((num_tokens,), 2)
        started = time.perf_counter()
        step(tokens, context)
        return time.perf_counter() - started


def _fused(weights: Mapping[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    def get(name: str) -> torch.Tensor:
        return weights[f"model.layers.{number}.{name}.weight"]

    return {
        "before": get("input_layernorm"),
        "qkv": torch.cat([get(f"{ATTENTION}.{one}_proj") for one in "qkv"]),
        "q_norm": get(f"{ATTENTION}.q_norm"),
        "k_norm": get(f"{ATTENTION}.k_norm"),
        "out": get(f"{ATTENTION}.o_proj"),
        "after": get("post_attention_layernorm"),
        "gate_up": torch.cat([get(f"{MLP}.gate_proj"), get(f"{MLP}.up_proj")]),
        "down": get(f"{MLP}.down_proj"),
    }


if __name__ == "__main__":
    driver: Driver = TorchDriver()
    serve(driver)
