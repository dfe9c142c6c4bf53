"""Sample many continuations at once from a decoder, with a plain K/V cache.

Knows the decoder's layers. Meant for making and judging training text, not for serving: all rows
have prompts of one length and all rows get the same number of new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from forerun.backends.torch.decoder import Decoder


@dataclass(slots=True)
class _Cache:
    """Keys and values [L, B, G, T, D] of the first `length` positions."""

    keys: Tensor
    values: Tensor
    length: int = 0


@torch.no_grad()
def continue_rows(
    model: Decoder,
    prompts: Tensor,
    num_tokens: int,
    temperatures: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Append `num_tokens` sampled tokens to each row of prompts [B, P]; returns [B, P + N].

    `temperatures` [B] are per row; zero is the argmax.
    """
    num_rows, prompt_len = prompts.shape
    rows = torch.zeros(num_rows, prompt_len + num_tokens, dtype=torch.long, device=prompts.device)
    rows[:, :prompt_len] = prompts
    cache = _empty_cache(model, num_rows, prompt_len + num_tokens)
    logits = _advance(model, prompts, cache)
    for at in range(prompt_len, prompt_len + num_tokens):
        rows[:, at] = _choose(logits, temperatures, generator)
        if at + 1 < rows.shape[1]:
            logits = _advance(model, rows[:, at : at + 1], cache)
    return rows


def _empty_cache(model: Decoder, num_rows: int, length: int) -> _Cache:
    spec, table = model.spec, model.model.embed_tokens.weight
    shape = (spec.num_layers, num_rows, spec.num_kv_heads, length, spec.head_dim)
    # One query against many bf16 keys is slow on CPUs: attention stays in float32 at least.
    dtype = torch.promote_types(table.dtype, torch.float32)
    return _Cache(table.new_empty(shape, dtype=dtype), table.new_empty(shape, dtype=dtype))


def _advance(model: Decoder, token_ids: Tensor, cache: _Cache) -> Tensor:
    """Logits [B, V] after the last of `token_ids` [B, T], whose keys and values are stored."""
    begin, end = cache.length, cache.length + token_ids.shape[1]
    x = model.embed(token_ids)
    rotation = model.rotation(torch.arange(begin, end, device=x.device), x.dtype)
    for index, layer in enumerate(model.layers):
        q, k, v = layer.attention_inputs(x, rotation)
        cache.keys[index, :, :, begin:end] = k
        cache.values[index, :, :, begin:end] = v
        attended = F.scaled_dot_product_attention(
            q.to(cache.keys.dtype),
            cache.keys[index, :, :, :end],
            cache.values[index, :, :, :end],
            is_causal=begin == 0,
            enable_gqa=model.spec.num_heads != model.spec.num_kv_heads,
        )
        x = layer.feed_forward(layer.attention_output(x, attended.to(x.dtype)))
    cache.length = end
    return model.head(x[:, -1]).float()


def _choose(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-12, 1 - 1e-7)
    gumbel = -(-uniform.log()).log()
    return (logits + temperatures[:, None] * gumbel.to(logits.device)).argmax(-1)
