"""What a drafter on features costs, counted and not timed; one interface over all small models.

Knows shapes and counts of a decode, as `costs` does. Must not know clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec
from forerun.models.spec import ModelSpec
from forerun.tools.costs import Costs, RoundCount, decode_costs, pass_bytes, pass_flops
from forerun.tools.drafter_inflation import drafter_bytes

_BYTES = 2  # bf16 weights and K/V

AnySpec: TypeAlias = ModelSpec | BlockSpec | EagleSpec


def drafting_bytes(spec: AnySpec, context: int) -> int:
    """Bytes a pass of any small model must move: what it multiplies with, and the context's K/V.

    A block drafter also reads the target's head, unless it has one of its own; of its first Markov
    table it reads single rows.
    """
    if isinstance(spec, ModelSpec):
        return pass_bytes(spec, context)
    body = spec.body
    kv = 2 * body.num_layers * body.num_kv_heads * body.head_dim * context
    num_bytes = drafter_bytes(spec) + _BYTES * kv
    if isinstance(spec, BlockSpec):
        borrowed = 0 if spec.draft_vocab else body.hidden
        num_bytes += _BYTES * body.vocab * (borrowed - spec.markov_rank)
    return num_bytes


def costs_of(rounds: Sequence[RoundCount], target: ModelSpec, drafter: AnySpec | None) -> Costs:
    """What these rounds cost; `drafter` is None where drafting reads no weights.

    Of a drafter on features: a token that was kept is fused and gets keys and values once. A block
    has a slot a drafted token (a tree's nodes are counted so too, up to a whole block: an upper
    bound) in one pass. EAGLE-3 reads tokens that were kept, and every drafted one, through its
    layer; a node of a tree is counted as read once, though the last ones are not.
    """
    if drafter is None or isinstance(drafter, ModelSpec):
        return decode_costs(rounds, target, drafter)
    costs = decode_costs(rounds, target, None)
    flops = num_bytes = 0.0
    unseen = 1  # the bonus of the round before these
    for one in rounds:
        if one.num_drafted:
            flops += _absorbing_flops(drafter, unseen, one.context)
            flops += _drafting_flops(drafter, one.num_drafted, one.context)
            num_bytes += _round_bytes(drafter, one)
            unseen = 0
        unseen += one.num_emitted
    return replace(costs, draft_flops=flops, draft_bytes=num_bytes)


def node_flops(spec: AnySpec, context: int) -> int:
    """Operations of one node that any small model reads and offers children for, at that context.

    Of a block drafter: a slot of a block, with its head.
    """
    if isinstance(spec, ModelSpec):
        return pass_flops(spec, 1, context)
    head = 2 * spec.head_vocab * spec.body.hidden
    markov = _markov_flops(spec) if isinstance(spec, BlockSpec) else 0
    return _layers_flops(spec, context) + head + markov


def _markov_flops(spec: BlockSpec) -> int:
    """Of the head on the tokens before one slot."""
    mixing = spec.markov_inputs * spec.markov_outputs
    return 2 * (spec.head_vocab * spec.markov_rank + mixing)


def _round_bytes(spec: DrafterSpec, one: RoundCount) -> int:
    if isinstance(spec, BlockSpec):
        return drafting_bytes(spec, one.context)
    # Only the first pass fuses features.
    again = max(0, one.num_passes - 1)
    fc_bytes = _BYTES * spec.body.hidden * spec.feature_width
    return (again + 1) * drafting_bytes(spec, one.context) - again * fc_bytes


def _absorbing_flops(spec: DrafterSpec, num_tokens: int, context: int) -> int:
    """Of tokens that the target has kept."""
    fusing = 2 * spec.body.hidden * spec.feature_width
    if isinstance(spec, EagleSpec):
        return num_tokens * (fusing + _layers_flops(spec, context))
    kv = 2 * spec.body.num_layers * spec.body.num_kv_heads * spec.body.head_dim
    return num_tokens * (fusing + 2 * spec.body.hidden * kv)


def _drafting_flops(spec: DrafterSpec, num_drafted: int, context: int) -> int:
    head = 2 * spec.head_vocab * spec.body.hidden
    if isinstance(spec, EagleSpec):
        # The first draft comes out of the last row that was absorbed; the last is not read.
        return num_drafted * head + (num_drafted - 1) * _layers_flops(spec, context)
    num_slots = min(spec.block_len, num_drafted + 1 - spec.is_shifted)
    slot = _layers_flops(spec, context + num_slots) + head
    return num_slots * slot + num_drafted * _markov_flops(spec)


def _layers_flops(spec: DrafterSpec, context: int) -> int:
    """Of one token through all layers, attention over the context included."""
    body = spec.body
    q, kv = body.num_heads * body.head_dim, body.num_kv_heads * body.head_dim
    width = 2 * body.hidden if isinstance(spec, EagleSpec) else body.hidden
    weights = width * (q + 2 * kv) + q * body.hidden + 3 * body.hidden * body.ffn
    return 2 * body.num_layers * (weights + 2 * q * context)
