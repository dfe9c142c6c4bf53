"""EAGLE-3 as one differentiable `torch.nn.Module`: one layer that reads token and feature together.

Knows an `EagleSpec` and its arithmetic; parameters bear the names of drafter files. Must not know
K/V slots, files or training. Row t holds the token of position t + 1 beside the feature of t, at
position t; what comes out of the layer gives the logits of t + 2 and is the next row's feature.

    x, own = drafter.layer(embedded, drafter.fuse(taps), positions, unroll_mask(num_rows, 0))
    logits = drafter.logits(x)
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.backends.torch.decoder import (
    Attention,
    FeedForward,
    RMSNorm,
    Rotation,
    rotary_frequencies,
)
from forerun.models.drafter_spec import EagleSpec
from forerun.models.spec import ModelSpec

KeysValues: TypeAlias = tuple[Tensor, Tensor]  # [B G P D] each, keys rotated


class _PairAttention(Attention):
    """Projections of token and feature side by side."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        for name in ("q_proj", "k_proj", "v_proj"):
            width = getattr(self, name).out_features
            setattr(self, name, nn.Linear(2 * spec.hidden, width, bias=spec.qkv_bias))


class _PairLayer(nn.Module):
    """One pre-norm layer of two inputs, cut where attention happens."""

    def __init__(self, spec: EagleSpec) -> None:
        super().__init__()
        body = spec.body
        self.input_layernorm = RMSNorm(body.hidden, body.norm_eps)
        self.hidden_norm = RMSNorm(body.hidden, body.norm_eps)
        self.self_attn = _PairAttention(body)
        self.post_attention_layernorm = RMSNorm(body.hidden, body.norm_eps)
        self.mlp = FeedForward(body)
        self._norm_before_residual = spec.norm_before_residual

    def attention_inputs(
        self, embedded: Tensor, features: Tensor, rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The residual stream, queries [B, H, T, D], keys and values [B, G, T, D]."""
        normed = self.hidden_norm(features)
        pairs = torch.cat((self.input_layernorm(embedded), normed), dim=-1)
        residual = normed if self._norm_before_residual else features
        return (residual, *self.self_attn.project(pairs, rotation))

    def output(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Attention's and the feed-forward block's output added to the residual stream."""
        merged = attended.transpose(-3, -2).flatten(-2)
        x: Tensor = residual + self.self_attn.o_proj(merged)
        fed: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + fed


class EagleDrafter(nn.Module):
    """Reads token by token; the table of tokens is the target's, the head its own.

    Dimensions: B rows, T tokens of a row, P keys before them, F feature width, H hidden width,
    D draft vocabulary.
    """

    d2t: Tensor

    def __init__(self, spec: EagleSpec) -> None:
        super().__init__()
        body = spec.body
        self.spec = spec
        self.fc = nn.Linear(spec.feature_width, body.hidden, bias=False)
        self.midlayer = _PairLayer(spec)
        self.norm = RMSNorm(body.hidden, body.norm_eps)
        self.lm_head = nn.Linear(body.hidden, body.vocab, bias=False)
        if spec.has_token_map:
            self.register_buffer("d2t", torch.zeros(body.vocab, dtype=torch.int64))
        # No buffer: angles are computed in float32, whatever the weights' type.
        self._frequencies = rotary_frequencies(body.rope, body.head_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """One vector `[..., H]` of the tapped states `[..., F]` of each token."""
        fused: Tensor = self.fc(features)
        return fused

    def layer(
        self,
        embedded: Tensor,
        features: Tensor,
        positions: Tensor,
        mask: Tensor,
        past: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """What comes out `[B T H]`, and all keys and values, `past` before own `[B G P+T D]`.

        `embedded [B T H]` beside `features [B T H]` (fused, or what came out before) at `positions
        [T]` or `[B T]`; `mask [B 1 T P+T]` bool, or what broadcasts to it.
        """
        rotation = Rotation.at(self._frequencies, positions, embedded.dtype)
        residual, q, k, v = self.midlayer.attention_inputs(embedded, features, rotation)
        if past is not None:
            k = torch.cat((past[0].to(k.dtype), k), dim=-2)
            v = torch.cat((past[1].to(v.dtype), v), dim=-2)
        is_shared = self.spec.body.num_heads != self.spec.body.num_kv_heads
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_shared)
        return self.midlayer.output(residual, attended), (k, v)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., D]` of what came out of the layer, over the draft vocabulary."""
        drafted: Tensor = self.lm_head(self.norm(hidden))
        return drafted

    def target_ids(self) -> Tensor:
        """`[D]` the target's token of each token of the draft vocabulary."""
        own = torch.arange(self.spec.body.vocab, device=self.lm_head.weight.device)
        return own + self.d2t if self.spec.has_token_map else own

    def target_logits(self, hidden: Tensor) -> Tensor:
        """`logits` over the target's vocabulary; -inf where the draft vocabulary has no token."""
        drafted = self.logits(hidden)
        if not self.spec.has_token_map and self.spec.body.vocab == self.spec.target_vocab:
            return drafted
        whole = drafted.new_full((*drafted.shape[:-1], self.spec.target_vocab), -torch.inf)
        return whole.index_copy(-1, self.target_ids(), drafted)


def unroll_mask(num_rows: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """What rows see in step `step` (from 0) of an unrolled draft: `[T (step + 1) * T]` bool.

    Of the text they see themselves and what is before them, of every later step, whose keys follow
    in order, only their own row: the draft below them.
    """
    causal = torch.ones(num_rows, num_rows, dtype=torch.bool, device=device).tril()
    own = torch.eye(num_rows, dtype=torch.bool, device=device)
    return torch.cat([causal, *[own] * step], dim=-1)
