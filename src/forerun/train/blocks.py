"""Train a block drafter (DFlash, DSpark): many blocks of a window at once, one mask.

    keys     context 0 … T-1 | block of anchor 0 | block of anchor 1 | …
    slots    of block a: context before anchor a, and block a itself

Knows the drafter's module and what its target says of the text. Drafted token k of anchor a stands
at a + k + 1; the token before it is the text's own, for a draft is kept only as far as that holds.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from forerun.backends.torch.block import BlockDrafter
from forerun.backends.torch.decoder import Decoder, Layer, Rotation, rotary_frequencies
from forerun.errors import OptionError
from forerun.models.drafter_spec import BlockSpec, MarkovKind, spread_taps
from forerun.models.spec import ModelSpec
from forerun.train.attending import attend
from forerun.train.losses import gather_tokens
from forerun.train.reading import head_of


def block_logits(
    model: BlockDrafter,
    target: Decoder,
    windows: Tensor,
    anchors: Tensor,
    features: Tensor,
    slots: Tensor,
) -> Tensor:
    """Logits `[B A K D]` of the K tokens drafted from anchors `[B A]` of windows `[B T+1]`, over
    the D tokens of the head: the target's, or its own.

    `features [B T F]` are the target's taps, `slots [Q]` those that are fed, 0 … Q-1. Drafted
    tokens beyond the window are of no account.
    """
    hidden = block_states(model, target, windows, anchors, features, slots)
    before = anchors.unsqueeze(-1) + slots[: hidden.shape[2]]
    previous = gather_tokens(windows, before.clamp(max=windows.shape[1] - 1))
    return model.drafted(previous, hidden, head_of(target))


def block_states(
    model: BlockDrafter,
    target: Decoder,
    windows: Tensor,
    anchors: Tensor,
    features: Tensor,
    slots: Tensor,
) -> Tensor:
    """The states `[B A K H]` behind all layers of the slots that draft; as `block_logits`."""
    spec, (rows, num_anchors), num_slots = model.spec, anchors.shape, len(slots)
    num_drafted = num_slots - (not spec.is_shifted)
    fed = torch.full((rows, num_anchors, num_slots), spec.mask_id, device=anchors.device)
    fed = torch.cat((gather_tokens(windows, anchors).unsqueeze(-1), fed[..., 1:]), dim=-1)
    hidden = _filled(model, model.fuse(features), target.embed(fed.flatten(1)), anchors, slots)
    return hidden.view(rows, num_anchors, num_slots, -1)[..., num_slots - num_drafted :, :]


def _filled(
    model: BlockDrafter, fused: Tensor, x: Tensor, anchors: Tensor, slots: Tensor
) -> Tensor:
    """The states `[B A*Q H]` behind all layers: `model.blocks` under `model.masks`, several times
    faster, because no slot is multiplied with another block's."""
    spec = model.spec
    places = torch.arange(fused.shape[1], device=anchors.device)
    positions = (anchors.unsqueeze(-1) + slots).flatten(1)
    frequencies = rotary_frequencies(spec.body.rope, spec.body.head_dim)
    rotation = Rotation.at(frequencies.to(x.device), positions, x.dtype)
    context = model.context(fused, places)
    layers: list[Layer] = list(model.layers)  # type: ignore[arg-type]
    for at, layer in enumerate(layers):
        q, *own = layer.attention_inputs(x, rotation)
        seen = _seen(spec.windows[at], places, anchors, slots, is_causal=spec.is_causal[at])
        shape = (anchors.shape[1], len(slots))
        q, k, v = (torch.unflatten(part, 2, shape) for part in (q, *own))
        attended = attend(q, context[at], (k, v), *seen)
        x = layer.feed_forward(layer.attention_output(x, attended.flatten(2, 3)))
    return x


def _seen(
    window: int, places: Tensor, anchors: Tensor, steps: Tensor, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """What the slots see: of the context `[B A Q T]`, and of their own block `[Q Q]`."""
    context = (places < anchors.unsqueeze(-1)).unsqueeze(2)
    own = torch.ones(len(steps), len(steps), dtype=torch.bool, device=steps.device)
    if is_causal:
        own = own.tril()
    if window:
        back = (anchors.unsqueeze(-1) + steps).unsqueeze(-1) - places
        context = context & (back < window)
        own = own & (steps.unsqueeze(-1) - steps < window)
    return context, own


def block_spec(  # noqa: PLR0913  the sizes of a drafter
    target: ModelSpec,
    *,
    num_layers: int,
    block_len: int,
    num_taps: int,
    mask_id: int,
    is_shifted: bool,
    markov_rank: int,
    markov_kind: MarkovKind = MarkovKind.VANILLA,
    draft_vocab: int = 0,
) -> BlockSpec:
    """A block drafter whose layers have the target's shape, norms of queries and keys included. It
    drafts all of the target's tokens by its head, or `draft_vocab` of them by one of its own.

    Raises:
        OptionError: the target has too few layers to read so many.
    """
    return BlockSpec(
        body=_body(target, num_layers),
        block_len=block_len,
        is_shifted=is_shifted,
        tap_layers=different_taps(target, num_taps, "give --taps 1"),
        target_hidden=target.hidden,
        num_target_layers=target.num_layers,
        mask_id=mask_id,
        windows=(0,) * num_layers,
        is_causal=(False,) * num_layers,
        markov_rank=markov_rank,
        markov_kind=markov_kind,
        draft_vocab=draft_vocab,
    )


def different_taps(target: ModelSpec, num_taps: int, way_out: str) -> tuple[int, ...]:
    """The layers of a target that are read.

    Raises:
        OptionError: it has too few; files that name one twice are opened by nobody.
    """
    taps = spread_taps(target.num_layers, num_taps)
    if sorted(set(taps)) != list(taps):
        raise OptionError(
            f"a target of {target.num_layers} layers has no {num_taps} to read from the second to"
            f" the third last: {way_out}"
        )
    return taps


def _body(target: ModelSpec, num_layers: int) -> ModelSpec:
    return replace(
        target,
        family="qwen3",
        num_layers=num_layers,
        tied=True,
        qkv_bias=False,
        qk_norm=True,
        dtype="bfloat16",
    )
