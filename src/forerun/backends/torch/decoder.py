"""The decoder of every supported family as one differentiable `torch.nn.Module`.

Knows a `ModelSpec` and the arithmetic of a layer; parameter names are those of Hugging Face
checkpoints, so loading and saving is a plain `state_dict`. Must not know K/V slots, token trees,
files or training: a caller with its own attention composes

    x = decoder.embed(token_ids)
    rotation = decoder.rotation(positions, x.dtype)
    for layer in decoder.layers:
        q, k, v = layer.attention_inputs(x, rotation)
        x = layer.attention_output(x, attend(q, k, v))   # any attention over any keys
        x = layer.feed_forward(x)
    logits = decoder.head(x)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.models.spec import ModelSpec, Rope


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines [..., T, D] of the rotary angles at T positions, both halves alike."""

    cos: Tensor
    sin: Tensor

    @staticmethod
    def at(frequencies: Tensor, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Angles of `positions` [..., T] by float32 frequencies [D / 2], kept in `dtype`."""
        angles = positions.unsqueeze(-1).float() * frequencies.to(positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))

    def apply(self, heads: Tensor) -> Tensor:
        """Rotate `heads` [..., H, T, D] by the half-split convention."""
        first, second = heads.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return heads * self.cos.unsqueeze(-3) + turned * self.sin.unsqueeze(-3)


def rotary_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position of each of the `head_dim / 2` rotary pairs, in float32."""
    return torch.tensor(rope.frequencies(head_dim), dtype=torch.float32, device="cpu")


class RMSNorm(nn.Module):
    """Scale to unit root mean square in at least float32, then by a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * unit.to(x.dtype)


class Attention(nn.Module):
    """The projections around attention; attention itself belongs to the caller."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        output_bias = spec.qkv_bias and spec.family != "qwen2"  # Qwen2 has no bias after attention
        self.head_dim = spec.head_dim
        self.q_proj = nn.Linear(spec.hidden, q_width, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(spec.hidden, kv_width, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(spec.hidden, kv_width, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(q_width, spec.hidden, bias=output_bias)
        if spec.qk_norm:
            self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps)
            self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps)
        self.qk_norm = spec.qk_norm

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, G, T, D]; queries and keys are rotated."""
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (f(x).view(shape) for f in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (heads.transpose(-3, -2) for heads in (q, k, v))
        return rotation.apply(q), rotation.apply(k), v


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden, spec.ffn, bias=False)
        self.up_proj = nn.Linear(spec.hidden, spec.ffn, bias=False)
        self.down_proj = nn.Linear(spec.ffn, spec.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """One pre-norm layer, cut where attention happens."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden, spec.norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden, spec.norm_eps)
        self.mlp = FeedForward(spec)

    def attention_inputs(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [B, H, T, D], rotated keys and values [B, G, T, D] of x [B, T, C]."""
        return self.self_attn.project(self.input_layernorm(x), rotation)

    def attention_output(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the projection of `attended` [B, H, T, D] to the residual stream x [B, T, C]."""
        merged = attended.transpose(-3, -2).flatten(-2)
        projected: Tensor = self.self_attn.o_proj(merged)
        return x + projected

    def feed_forward(self, x: Tensor) -> Tensor:
        """Add the feed-forward block's output to the residual stream x [B, T, C]."""
        fed: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + fed


class _Trunk(nn.Module):
    """The part that checkpoints keep under `model.`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab, spec.hidden)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden, spec.norm_eps)


class Decoder(nn.Module):
    """A decoder-only language model; `forward` is causal self-attention over whole rows."""

    frequencies: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = _Trunk(spec)
        if not spec.tied:
            self.lm_head = nn.Linear(spec.hidden, spec.vocab, bias=False)
        frequencies = rotary_frequencies(spec.rope, spec.head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    @property
    def layers(self) -> list[Layer]:
        return list(self.model.layers)  # type: ignore[arg-type]

    def embed(self, token_ids: Tensor) -> Tensor:
        """Residual stream [B, T, C] before the first layer."""
        embedded: Tensor = self.model.embed_tokens(token_ids)
        return embedded

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Rotary angles at `positions` [..., T]; computed in at least float32, kept in `dtype`."""
        wide = torch.promote_types(self.frequencies.dtype, torch.float32)
        angles = positions.unsqueeze(-1).to(wide) * self.frequencies.to(wide)
        angles = torch.cat((angles, angles), dim=-1)
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))

    def head(self, x: Tensor) -> Tensor:
        """Logits [B, T, V] of the residual stream after the last layer."""
        embedding = self.model.embed_tokens.weight
        return F.linear(self.model.norm(x), embedding if self.spec.tied else self.lm_head.weight)

    def hidden(self, token_ids: Tensor) -> Tensor:
        """Residual stream [B, T, C] after the last layer, rows starting at position 0."""
        x = self.embed(token_ids)
        positions = torch.arange(token_ids.shape[-1], device=token_ids.device)
        rotation = self.rotation(positions, x.dtype)
        shared = self.spec.num_heads != self.spec.num_kv_heads
        for layer in self.layers:
            q, k, v = layer.attention_inputs(x, rotation)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
            x = layer.feed_forward(layer.attention_output(x, attended))
        return x

    def forward(self, token_ids: Tensor) -> Tensor:
        """Logits [B, T, V] of rows [B, T] that start at position 0."""
        return self.head(self.hidden(token_ids))
