"""Train an EAGLE-3 head: the draft is unrolled in training as it will be when it is served.

    step 0     every token of the window with the target's feature of the token before it
    step k     from each anchor: the text's token k further with the layer's own output above it

Knows the drafter's module and what its target says of the text. Only drafts that begin at anchors
are unrolled; their keys are those of step 0 before them and their own. Drafted token k of anchor a
stands at a + k + 1, as in a block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from forerun.backends.torch.decoder import Decoder, Rotation, rotary_frequencies
from forerun.backends.torch.eagle import EagleDrafter
from forerun.models.drafter_spec import EagleSpec
from forerun.models.spec import ModelSpec
from forerun.train.attending import KeysValues, attend
from forerun.train.blocks import different_taps
from forerun.train.losses import gather_rows, gather_tokens


def eagle_logits(
    model: EagleDrafter,
    target: Decoder,
    windows: Tensor,
    anchors: Tensor,
    features: Tensor,
    slots: Tensor,
) -> Tensor:
    """Logits `[B A K D]` of the tokens drafted from anchors `[B A]` of windows `[B T+1]`, over the
    D tokens of the head.

    `features [B T F]` are the target's taps, `slots [K]` the steps, 0 … K-1. Drafted tokens beyond
    the window are of no account.
    """
    text, residual, q = _text_step(model, target, windows, anchors, features)
    state = residual
    own = [part[:, :, :0].unsqueeze(2).expand(-1, -1, anchors.shape[1], -1, -1) for part in text]
    sees_text = torch.arange(text[0].shape[2], device=anchors.device) < anchors.unsqueeze(-1)
    drafted = []
    for step in range(len(slots)):
        if step:
            fed = gather_tokens(windows, (anchors + step).clamp(max=windows.shape[1] - 1))
            rotation = _rotation(model, anchors - 1 + step, state.dtype)
            inputs = (target.embed(fed), state, rotation)
            residual, q, k, v = model.midlayer.attention_inputs(*inputs)
            own = [
                torch.cat((old, new.unsqueeze(3)), 3) for old, new in zip(own, (k, v), strict=True)
            ]
        sees_own = torch.ones(1, own[0].shape[3], dtype=torch.bool, device=q.device)
        attended = attend(q.unsqueeze(3), text, (own[0], own[1]), sees_text.unsqueeze(2), sees_own)
        state = model.midlayer.output(residual, attended.squeeze(3))
        drafted.append(model.logits(state))
    return torch.stack(drafted, dim=2)


def _text_step(
    model: EagleDrafter, target: Decoder, windows: Tensor, anchors: Tensor, features: Tensor
) -> tuple[KeysValues, Tensor, Tensor]:
    """Keys and values of all tokens but the first, and at the rows of the anchors, `[B A ..]`, the
    residual stream and queries. The anchor's own row holds its token beside the feature before."""
    length = features.shape[1] - 1
    places = torch.arange(length, device=anchors.device)
    embedded, fused = target.embed(windows[:, 1 : length + 1]), model.fuse(features[:, :-1])
    rotation = _rotation(model, places, embedded.dtype)
    residual, q, k, v = model.midlayer.attention_inputs(embedded, fused, rotation)
    at = (anchors - 1)[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[-1])
    return (k, v), gather_rows(residual, anchors - 1), q.gather(2, at)


def _rotation(model: EagleDrafter, positions: Tensor, dtype: torch.dtype) -> Rotation:
    body = model.spec.body
    frequencies = rotary_frequencies(body.rope, body.head_dim)
    return Rotation.at(frequencies.to(positions.device), positions, dtype)


def eagle_spec(target: ModelSpec, draft_vocab: int = 0) -> EagleSpec:
    """An EAGLE-3 head of the target's shape, over `draft_vocab` of its tokens (0: all of them).

    Its taps are the outputs of layers 1, L / 2 - 1 and L - 4, counted from 0: the inputs of layers
    2, L / 2 and L - 3, as in the published heads. Where these are not three, they are spread.

    Raises:
        OptionError: the target has too few layers to read three.
    """
    taps: tuple[int, ...] = (1, target.num_layers // 2 - 1, target.num_layers - 4)
    if not taps[0] < taps[1] < taps[2]:
        taps = different_taps(target, 3, "train dspark --taps 1 instead")
    body = replace(
        target,
        family="llama",
        num_layers=1,
        tied=False,
        qkv_bias=False,
        qk_norm=False,
        dtype="bfloat16",
        vocab=draft_vocab or target.vocab,
    )
    return EagleSpec(
        body=body,
        tap_layers=taps,
        target_hidden=target.hidden,
        num_target_layers=target.num_layers,
        target_vocab=target.vocab,
        has_token_map=draft_vocab > 0,
    )
