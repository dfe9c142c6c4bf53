"""Start a drafter with what its target has learned.

Knows the modules of both. A drafter whose layers have the target's shape begins as a few of the
target's own layers, its features as the last tap: it then says something of the next token before
the first step. Measured on the embedded model: after 70 steps that learn first tokens only, from
copies 67 / 54 / 43 % of them are right at temperature 0 / 0.7 / 1, from random layers after 60 such
steps 30 / 20 / 23 %.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from forerun.backends.torch.block import BlockDrafter
from forerun.backends.torch.decoder import Decoder, Layer
from forerun.backends.torch.eagle import EagleDrafter
from forerun.backends.torch.markov import GatedHead, MarkovHead, RecurrentHead
from forerun.errors import OptionError
from forerun.models.drafter_spec import BlockSpec, MarkovKind
from forerun.train.drafting import Drafter
from forerun.train.reading import head_of

_HEAD = "markov_head."
_ALSO = ("layers.", "lm_head.", "d2t")  # of a trained drafter, must be the new one's too
_UNBENT = 1 / 3  # of a trained table's codes, about a half each: tanh bends these by 1 %


@torch.no_grad()
def start_at_target(model: BlockDrafter | EagleDrafter, target: Decoder) -> None:
    """Copy into `model` all of the target that fits: layers, norms, EAGLE-3's head.

    Layer i of n is the target's layer at i / (n - 1) of its depth; an EAGLE-3 layer reads its token
    as the target's first layer does, its feature as the last. What has another shape is left.
    """
    last = target.layers[-1]
    _copy(model.norm.weight, target.model.norm.weight)
    if model.spec.body.hidden == target.spec.hidden:
        _take_last_tap(model.fc)
    if isinstance(model, EagleDrafter):
        _copy(model.lm_head.weight, head_of(target))
        _start_pair(model, target.layers[0], last)
        return
    after = target.layers[min(model.spec.tap_layers[-1] + 1, len(target.layers) - 1)]
    _copy(model.hidden_norm.weight, after.input_layernorm.weight)
    depth, num = len(target.layers) - 1, len(model.layers)
    for at, layer in enumerate(model.layers):
        like = target.layers[-(-at * depth // max(1, num - 1))]
        _copy_layer(layer, like)


@torch.no_grad()
def start_head(model: Drafter, target: Decoder, token_ids: NDArray[np.int64]) -> None:
    """Let the head of a drafter that knows some tokens only know `token_ids [D]`, by the target's
    own rows of them."""
    known = torch.from_numpy(token_ids).to(model.d2t.device)
    model.d2t.copy_(known - torch.arange(len(known), device=known.device))
    model.lm_head.weight.copy_(head_of(target)[known])


@torch.no_grad()
def start_at_drafter(model: Drafter, like: Drafter) -> None:
    """Copy a trained drafter of the same shape into `model`, and which tokens it knows, but for its
    Markov head: where the trained one's is plain or missing, that may be of another kind or wider,
    and then adds nearly what the trained one adds.

    Raises:
        OptionError: another shape, or a Markov head that this one's cannot begin as.
    """
    own, theirs = model.state_dict(), like.state_dict()
    also = {name for name in theirs if name.startswith(_ALSO)}
    shared = {name for name in own if not name.startswith(_HEAD)} | also
    differ = [name for name in sorted(shared) if _shape(own, name) != _shape(theirs, name)]
    if differ:
        raise OptionError(
            f"the drafter to start from is of another shape ({differ[0]}): give its sizes, or none"
            " to start from"
        )
    head = {name for name in own.keys() | theirs.keys() if name.startswith(_HEAD)}
    if all(_shape(own, name) == _shape(theirs, name) for name in head):
        shared |= head
    elif isinstance(model, BlockDrafter) and isinstance(like, BlockDrafter):
        _refuse_head(model.spec, like.spec)
        _start_head(model.markov_head, like.markov_head if like.spec.markov_rank else None)
    model.load_state_dict({name: theirs[name] for name in shared}, strict=False)


def _refuse_head(own: BlockSpec, theirs: BlockSpec) -> None:
    """Raise OptionError where the trained head is wider, or not plain."""
    is_plain = not theirs.markov_rank or theirs.markov_kind is MarkovKind.VANILLA
    if is_plain and theirs.markov_rank <= own.markov_rank:
        return
    had, asked = (
        f"{one.markov_kind.value!r} of rank {one.markov_rank}" if one.markov_rank else "none"
        for one in (theirs, own)
    )
    raise OptionError(
        f"the drafter to start from has the Markov head {had}, as which the one asked for, {asked},"
        " cannot begin: give its kind and rank, or none to start from"
    )


def _start_head(head: MarkovHead, like: MarkovHead | None) -> None:
    """Say what the plain `like` says, which is no wider; without one, nothing."""
    head.markov_w2.weight.zero_()
    if like is None:
        return
    rank, own = like.markov_w1.embedding_dim, head.markov_w1.embedding_dim
    scale = kept = 1.0
    if isinstance(head, GatedHead):
        head.gate_proj.weight.zero_()
        head.gate_proj.bias.zero_()
        kept = 0.5  # what a gate lets through that knows nothing yet
    if isinstance(head, RecurrentHead):
        outputs = slice(2 * own, 2 * own + rank)
        head.joint_proj.bias[outputs] = 0
        head.joint_proj.weight[outputs] = 0
        head.joint_proj.weight[outputs, own : own + rank] = torch.eye(rank)
        scale = kept = _UNBENT
    head.markov_w1.weight[:, :rank] = like.markov_w1.weight * scale
    head.markov_w2.weight[:, :rank] = like.markov_w2.weight / kept


def _shape(tensors: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _copy_layer(layer: nn.Module, like: Layer) -> None:
    named = dict(like.named_parameters())
    for name, parameter in layer.named_parameters():
        if name in named:
            _copy(parameter, named[name])


def _start_pair(model: EagleDrafter, first: Layer, last: Layer) -> None:
    layer = model.midlayer
    _copy_layer(layer, last)
    _copy(layer.input_layernorm.weight, first.input_layernorm.weight)
    _copy(layer.hidden_norm.weight, last.input_layernorm.weight)
    for name in ("q_proj", "k_proj", "v_proj"):
        own, halves = getattr(layer.self_attn, name), (first.self_attn, last.self_attn)
        joined = torch.cat([getattr(half, name).weight for half in halves], dim=1)
        _copy(own.weight, 0.5 * joined)


def _take_last_tap(fc: nn.Linear) -> None:
    fc.weight.zero_()
    fc.weight[:, -fc.out_features :] = torch.eye(fc.out_features)


def _copy(into: torch.Tensor, like: torch.Tensor) -> None:
    if into.shape == like.shape:
        into.copy_(like)
