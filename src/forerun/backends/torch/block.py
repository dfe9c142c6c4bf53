"""Block drafters (DFlash, DSpark) as one differentiable `torch.nn.Module`.

Knows a `BlockSpec` and its arithmetic; parameters bear the names of drafter files, so loading and
saving is a plain `state_dict`. Must not know K/V slots, files or training; a caller composes

    fused = drafter.fuse(features)
    x = drafter.blocks(fused, context_positions, block_inputs, block_positions, mask)
    logits = drafter.logits(x, head_weight) + drafter.markov(previous_tokens, x)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forerun.backends.torch.decoder import Layer, RMSNorm, Rotation, rotary_frequencies
from forerun.backends.torch.markov import markov_head
from forerun.models.drafter_spec import BlockSpec

KeysValues: TypeAlias = tuple[Tensor, Tensor]  # [B G S D] each, keys rotated
Masks: TypeAlias = Tensor | Sequence[Tensor]  # [B 1 Q S+Q] bool, one for all layers or each its own


class _Confidence(nn.Module):
    """Is the next draft kept? One number of the slot's state and the token before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 1)


class BlockDrafter(nn.Module):
    """Fills a block of slots in one pass; the table of tokens is the target's, and so is the head
    unless it knows a part of the vocabulary only and brings its own.

    Dimensions: B rows, S context tokens, Q slots of all blocks of a row, F feature width, H hidden
    width, V vocabulary of the target, D of a head of its own.
    """

    d2t: Tensor

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        body = spec.body
        self.spec = spec
        self.fc = nn.Linear(spec.feature_width, body.hidden, bias=False)
        self.hidden_norm = RMSNorm(body.hidden, body.norm_eps)
        self.layers = nn.ModuleList(Layer(body) for _ in range(body.num_layers))
        self.norm = RMSNorm(body.hidden, body.norm_eps)
        if spec.has_token_map:
            self.lm_head = nn.Linear(body.hidden, spec.draft_vocab, bias=False)
            self.register_buffer("d2t", torch.zeros(spec.draft_vocab, dtype=torch.int64))
        if spec.markov_rank:
            self.markov_head = markov_head(spec)
        if spec.has_confidence:
            self.confidence_head = _Confidence(body.hidden + spec.markov_rank)
        # No buffer: angles are computed in float32, whatever the weights' type.
        self._frequencies = rotary_frequencies(body.rope, body.head_dim)

    def fuse(self, features: Tensor) -> Tensor:
        """One vector `[..., H]` of the tapped states `[..., F]` of each token."""
        fused: Tensor = self.hidden_norm(self.fc(features))
        return fused

    def context(self, fused: Tensor, positions: Tensor) -> list[KeysValues]:
        """Of each layer, the keys and values of fused features `[B S H]` at positions `[S]` or
        `[B S]`; they skip the norm before attention."""
        rotation = self._rotation(positions, fused.dtype)
        return [_context_of(layer, fused, rotation) for layer in self._layers]

    def blocks(
        self,
        fused: Tensor,
        context_positions: Tensor,
        block_inputs: Tensor,
        block_positions: Tensor,
        mask: Masks,
    ) -> Tensor:
        """Residual stream `[B Q H]` behind all layers, before `norm`.

        `fused [B S H]` at `context_positions [S]` or `[B S]`; `block_inputs [B Q H]` are embeddings
        of the pending tokens and masks at `block_positions [Q]` or `[B Q]`; `mask [B 1 Q S+Q]` bool
        (or a sequence of one a layer): which context and block keys each slot sees.
        """
        context = self.context(fused, context_positions)
        return self.blocks_over(context, block_inputs, block_positions, mask)

    def blocks_over(
        self,
        context: Sequence[KeysValues],
        block_inputs: Tensor,
        block_positions: Tensor,
        mask: Masks,
    ) -> Tensor:
        """`blocks` over keys and values of the context that `context` gave before."""
        x = block_inputs
        rotation = self._rotation(block_positions, x.dtype)
        body = self.spec.body
        is_shared = body.num_heads != body.num_kv_heads
        for at, layer in enumerate(self._layers):
            q, k, v = layer.attention_inputs(x, rotation)
            keys = torch.cat((context[at][0].to(k.dtype), k), dim=-2)
            values = torch.cat((context[at][1].to(v.dtype), v), dim=-2)
            allowed = mask if isinstance(mask, Tensor) else mask[at]
            attended = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=allowed, enable_gqa=is_shared
            )
            x = layer.feed_forward(layer.attention_output(x, attended))
        return x

    def masks(self, context_positions: Tensor, anchors: Tensor, num_slots: int) -> list[Tensor]:
        """Of each layer its `block_mask`, as the spec says."""
        made: dict[tuple[int, bool], Tensor] = {}
        kinds = list(zip(self.spec.windows, self.spec.is_causal, strict=True))
        for window, is_causal in kinds:
            if (window, is_causal) not in made:
                made[window, is_causal] = block_mask(
                    context_positions, anchors, num_slots, window=window, is_causal=is_causal
                )
        return [made[kind] for kind in kinds]

    def logits(self, hidden: Tensor, head_weight: Tensor) -> Tensor:
        """Logits `[..., V]` of `blocks` by the target's head `[V H]`, without the Markov bias; by
        its own head where it has one, then -inf for tokens that this does not know."""
        return self._over_target(self._by_head(hidden, head_weight), -torch.inf)

    def drafted(self, previous_tokens: Tensor, hidden: Tensor, head_weight: Tensor) -> Tensor:
        """Logits `[..., K, D]` of whole drafts over the tokens of its own head, or the target's
        where it has none: `logits` and `markov` together, unspread."""
        said = self._by_head(hidden, head_weight)
        if not self.spec.markov_rank:
            return said
        return said + self.markov_head.along(previous_tokens, self.norm(hidden))

    def _by_head(self, hidden: Tensor, head_weight: Tensor) -> Tensor:
        own = self.lm_head.weight if self.spec.has_token_map else head_weight
        return F.linear(self.norm(hidden), own)

    def target_ids(self) -> Tensor:
        """`[D]` the target's token of each token of its own head, where it has one."""
        return torch.arange(self.spec.draft_vocab, device=self.d2t.device) + self.d2t

    def markov(self, previous_tokens: Tensor, hidden: Tensor) -> Tensor:
        """What the tokens `[..., K]` before the slots of whole drafts add to their logits
        `[..., K, V]`; `hidden [..., K, H]` of `blocks`. One zero that broadcasts where the drafter
        has no such head."""
        if not self.spec.markov_rank:
            return self.norm.weight.new_zeros(())
        added = self.markov_head.along(previous_tokens, self.norm(hidden))
        return self._over_target(added, 0.0)

    def markov_step(
        self, state: Tensor, previous_tokens: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One slot of many drafts: the state `[N R]` below the tokens `[N]` before it, and what
        they add to its logits `[N V]`; `state [N R]` of the slot before, zeros at the first;
        `hidden [N H]` of `blocks`. As `markov` where the drafter has no such head."""
        if not self.spec.markov_rank:
            return state, self.norm.weight.new_zeros(())
        state, added = self.markov_head.step(state, previous_tokens, self.norm(hidden))
        return state, self._over_target(added, 0.0)

    def confidence(self, hidden: Tensor, previous_tokens: Tensor) -> Tensor:
        """Logit `[...]` of a slot's draft being kept, from `blocks [..., H]` and the tokens before.

        Raises AttributeError where the drafter has no confidence head.
        """
        parts = [self.norm(hidden)]
        if self.spec.markov_rank:
            parts.append(self.markov_head.markov_w1(previous_tokens))
        logit: Tensor = self.confidence_head.proj(torch.cat(parts, dim=-1))
        return logit.squeeze(-1)

    def _over_target(self, values: Tensor, rest: float) -> Tensor:
        """What is said of the head's tokens at the places of the target's; `rest` of others."""
        if not self.spec.has_token_map:
            return values
        whole = values.new_full((*values.shape[:-1], self.spec.target_vocab), rest)
        return whole.index_copy(-1, self.target_ids(), values)

    @property
    def _layers(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        return Rotation.at(self._frequencies, positions, dtype)


def _context_of(layer: Layer, fused: Tensor, rotation: Rotation) -> KeysValues:
    attention = layer.self_attn
    shape = (*fused.shape[:-1], -1, attention.head_dim)
    keys, values = attention.k_proj(fused).view(shape), attention.v_proj(fused).view(shape)
    if attention.qk_norm:
        keys = attention.k_norm(keys)
    return rotation.apply(keys.transpose(-3, -2)), values.transpose(-3, -2)


def block_mask(
    context_positions: Tensor,
    anchors: Tensor,
    num_slots: int,
    *,
    window: int = 0,
    is_causal: bool = False,
) -> Tensor:
    """What the slots of blocks side by side may see: `[B 1 A*num_slots S+A*num_slots]` bool.

    `context_positions [S]` or `[B S]`; `anchors [B A]` positions of the pending tokens; blocks
    stand one after another. A slot sees the context before its anchor and its own block: all of
    it, or itself and earlier slots where `is_causal`. With a `window` (0 is none) it sees nothing
    that many or more positions back.
    """
    steps = torch.arange(num_slots, device=anchors.device)
    positions = (anchors.unsqueeze(-1) + steps).flatten(-2)  # [B A*num_slots]
    owners = torch.arange(anchors.shape[-1], device=anchors.device).repeat_interleave(num_slots)
    own = owners.unsqueeze(-1) == owners  # [Q Q]
    if is_causal:
        own = own & (positions.unsqueeze(-1) >= positions.unsqueeze(-2))
    own = own.expand(*positions.shape, -1)
    context = context_positions.expand(anchors.shape[0], -1).unsqueeze(-2)
    before = context < anchors.repeat_interleave(num_slots, dim=-1).unsqueeze(-1)
    allowed = torch.cat((before, own), dim=-1)
    if window:
        keys = torch.cat((context_positions.expand(anchors.shape[0], -1), positions), dim=-1)
        allowed = allowed & (positions.unsqueeze(-1) - keys.unsqueeze(-2) < window)
    return allowed.unsqueeze(1)


def initialise(module: nn.Module, seed: int) -> None:
    """Small normal weights; what writes to the residual stream or adds to logits starts at zero.

    For modules on the CPU; the same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    zero = ("o_proj.weight", "down_proj.weight", "markov_w2.weight", "confidence_head.proj.weight")
    for name, parameter in module.named_parameters():
        if name.endswith((*zero, ".bias")):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
