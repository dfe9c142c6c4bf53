"""What a token costs, counted and not timed: multiply-adds and bytes of both models.

Knows shapes and counts of a decode. Must not know clocks: a floor is bytes ÷ a bandwidth that the
caller measured in the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forerun.models.spec import ModelSpec

_BYTES = 2  # bf16 weights and K/V


@dataclass(frozen=True, slots=True)
class RoundCount:
    """One round of one request: tokens drafted, tokens emitted, the context before it, and how many
    passes of the drafter."""

    num_drafted: int
    num_emitted: int
    context: int
    num_passes: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Totals of a decode: floating point operations and bytes of target and drafter."""

    num_emitted: int
    target_flops: float
    draft_flops: float
    target_bytes: float
    draft_bytes: float

    def floor_s(self, target_bandwidth: float, draft_bandwidth: float) -> float:
        """Seconds if every pass read its bytes once at the bandwidth of its size."""
        return self.target_bytes / target_bandwidth + self.draft_bytes / draft_bandwidth


def pass_bytes(spec: ModelSpec, context: int, num_value_bytes: int = _BYTES) -> int:
    """Bytes one forward pass must move whatever it does: weights, and the K/V of the context.

    An untied input embedding is looked up, not read, so it does not count.
    """
    untied_embedding = 0 if spec.tied else spec.vocab * spec.hidden
    kv = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    return (spec.num_parameters - untied_embedding + kv * context) * num_value_bytes


def pass_flops(spec: ModelSpec, num_nodes: int, context: int) -> int:
    """Floating point operations of `num_nodes` tokens: two a weight and node, and attention's."""
    untied_embedding = 0 if spec.tied else spec.vocab * spec.hidden
    attention = 2 * spec.num_layers * spec.num_heads * spec.head_dim * context
    return 2 * num_nodes * (spec.num_parameters - untied_embedding + attention)


def decode_costs(
    rounds: Sequence[RoundCount], target: ModelSpec, drafter: ModelSpec | None
) -> Costs:
    """What these rounds cost; `drafter` is None where drafting reads no weights.

    A round is one pass of the target over its pending token and its draft. The drafter's first pass
    also reads what the last round added and it has not seen: the bonus, and a last draft that was
    kept. A node of a tree is counted as read once, though the last ones are not.
    """
    target_flops = draft_flops = target_bytes = draft_bytes = 0.0
    unseen = 1
    for one in rounds:
        target_flops += pass_flops(target, one.num_drafted + 1, one.context)
        target_bytes += pass_bytes(target, one.context)
        if drafter is not None and one.num_drafted:
            draft_flops += pass_flops(drafter, one.num_drafted + unseen - 1, one.context)
            draft_bytes += one.num_passes * pass_bytes(drafter, one.context)
            unseen = 0
        unseen += max(1, one.num_emitted - max(0, one.num_drafted - 1))
    num_emitted = sum(one.num_emitted for one in rounds)
    return Costs(num_emitted, target_flops, draft_flops, target_bytes, draft_bytes)
