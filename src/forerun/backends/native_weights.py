"""How a checkpoint's tensors become packed matrices of the core, whatever model they are of.

Knows the core's roles and the names of a decoder layer. Must not know which models there are.
What it makes never changes again, so any number of the core's models may read it.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from forerun.models.spec import ModelSpec
from forerun.models.weights import WeightTensor


class Tensors(Protocol):
    """A checkpoint, as far as packing goes."""

    def tensor(self, name: str) -> WeightTensor: ...

    def drop_pages(self) -> None: ...


class Packer:
    """Hands tensors to a packing of the core."""

    def __init__(self, packing: Any, checkpoint: Tensors) -> None:
        self._packing = packing
        self._checkpoint = checkpoint

    def matrix(self, role: str, layer: int, *names: str) -> None:
        """Pack tensors that the core keeps as one matrix."""
        tensors = [self._checkpoint.tensor(name) for name in names]
        arrays = [np.ascontiguousarray(tensor.array) for tensor in tensors]
        arrays = [a.view(np.uint16) if a.dtype.itemsize == 2 else a for a in arrays]
        self._packing.pack(role, layer, arrays, [tensor.dtype for tensor in tensors])

    def vector(self, role: str, layer: int, *names: str) -> None:
        """Hand over vectors end to end, as float32."""
        tensors = [self._checkpoint.tensor(name) for name in names]
        values = [np.ascontiguousarray(tensor.float32()).ravel() for tensor in tensors]
        self._packing.set_vector(role, layer, np.concatenate(values))

    def layer(self, layer: int, at: str, spec: ModelSpec) -> None:
        """Pack a decoder layer whose tensors begin with `at`; its pages are given back."""
        attention = at + "self_attn."
        qkv = [attention + f"{part}_proj" for part in "qkv"]
        self.matrix("qkv", layer, *(name + ".weight" for name in qkv))
        self.matrix("output", layer, attention + "o_proj.weight")
        self.matrix("gate_up", layer, at + "mlp.gate_proj.weight", at + "mlp.up_proj.weight")
        self.matrix("down", layer, at + "mlp.down_proj.weight")
        self.vector("attention_norm", layer, at + "input_layernorm.weight")
        self.vector("ffn_norm", layer, at + "post_attention_layernorm.weight")
        if spec.qkv_bias:
            self.vector("qkv_bias", layer, *(name + ".bias" for name in qkv))
        if spec.qk_norm:
            self.vector("query_norm", layer, attention + "q_norm.weight")
            self.vector("key_norm", layer, attention + "k_norm.weight")
        self._checkpoint.drop_pages()  # the packed copy is enough: never hold both


def body_shape(spec: ModelSpec) -> dict[str, Any]:
    """A stack of decoder layers as the core's constructor takes it, but for what stands below and
    above it."""
    return {
        "hidden": spec.hidden,
        "num_layers": spec.num_layers,
        "num_heads": spec.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "ffn": spec.ffn,
        "norm_eps": spec.norm_eps,
        "qkv_bias": spec.qkv_bias,
        "qk_norm": spec.qk_norm,
        "inverse_frequencies": spec.rope.frequencies(spec.head_dim),
    }
