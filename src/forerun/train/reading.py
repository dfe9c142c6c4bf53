"""What a target says of known text: its tapped states and its last one, at every position.

Knows the decoder's layers. Nothing here is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forerun.backends.torch.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Reading:
    """Of tokens `[B T]`: `features [B T F]`, the taps side by side, and `last [B T H]`, normed."""

    features: Tensor
    last: Tensor


@torch.no_grad()
def read(target: Decoder, token_ids: Tensor, tap_layers: tuple[int, ...]) -> Reading:
    """Read rows `[B T]` from position 0; a tap is what leaves a layer, counted from 0."""
    x = target.embed(token_ids)
    rotation = target.rotation(torch.arange(token_ids.shape[-1], device=x.device), x.dtype)
    taps: dict[int, Tensor] = {}
    for index, layer in enumerate(target.layers):
        q, k, v = layer.attention_inputs(x, rotation)
        attended = _causal(q, k, v)
        x = layer.feed_forward(layer.attention_output(x, attended))
        if index in tap_layers:
            taps[index] = x
    return Reading(torch.cat([taps[tap] for tap in tap_layers], dim=-1), target.model.norm(x))


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[B H T D]`, written out: on CPUs several times as fast as the fused kernel in bfloat16."""
    groups, length = k.shape[1], q.shape[2]
    wide = (q * q.shape[-1] ** -0.5).unflatten(1, (groups, -1))
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (wide @ k.unsqueeze(2).transpose(-1, -2)).float().masked_fill(later, -torch.inf)
    mixed: Tensor = scores.softmax(-1).to(v.dtype) @ v.unsqueeze(2)
    return mixed.flatten(1, 2)


def head_of(target: Decoder) -> Tensor:
    """The matrix `[V H]` that makes logits of normed states."""
    if target.spec.tied:
        return target.model.embed_tokens.weight
    return target.lm_head.weight
