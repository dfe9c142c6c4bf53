"""Larger drafters on features that draft the same bits: what each tensor of one beside an enlarged
target holds.

The target's stream becomes f = 4^k times as wide (`inflation`): its taps are s = 2^k times the old
values and then zeros, and so are the rows of the table that the drafter borrows. Its own stream
must widen with them, because table and head are multiplied with it. In the canonical arithmetic
every step is then the old one, times a power of two:

- *Taps.* `fc` has a column for each value of each tap, so the old columns of a tap move behind the
  zeros of the tap before. A sum over inputs is a chain of blocks of 32; whole blocks of zeros add
  +0 to it wherever they stand, so the old width must be a multiple of 32. Weights stay: the fused
  state comes out s times the old one, with zeros behind, exactly as the target's stream does.
- *Norms* divide by the root of a mean that f times as many dimensions, s^2 = f times as large,
  leave the same; they carry 1/s and give the old bits. So do `hidden_norm` and the keys and values
  of fused states. `o_proj` and `down_proj` carry s, and zeros in all that is new.
- *Heads.* A borrowed head that is the target's table has rows s times the old: the final norm
  carries 1/s^2. A head of the target's own, or EAGLE-3's own, is not scaled: 1/s. Logits are the
  old bits, so Markov tables, which are added to them and know no width, stay as they are. The
  confidence head and Markov heads that hear the slot read what the borrowed head reads: their old
  columns carry what is missing there.
- *EAGLE-3* multiplies token and feature side by side: `q_proj`, `k_proj` and `v_proj` have two
  blocks of columns, the second at the new width. What it hands on is its stream, s times the old,
  as the fused state is. Where the residual is the normed feature (`norm_before_residual`) that norm
  must keep the stream's scale: it carries 1, and the feature's columns carry 1/s instead.

More heads, wider feed-forward and more layers are filler behind the source's own, as in the target.
Taps stay where they are: the target's new layers come behind its last.

Knows shapes and values. Must not know files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forerun.errors import ModelError
from forerun.models.drafter_files import drafter_tensors
from forerun.models.drafter_spec import BlockSpec, DrafterSpec, EagleSpec
from forerun.models.spec import ModelSpec
from forerun.models.weights import WeightTensor
from forerun.tools.inflation import (
    LEAST_RATIO,
    Piece,
    as_matrix,
    bits_of,
    filled_rows,
    filler_of,
    num_doublings,
    require_preserving,
    scaled,
)

KINDS = ("dspark", "dflash", "eagle3")
_BLOCK = 32  # inputs that the canonical arithmetic adds as one
_FFN_STEP = 64
_READS_BOTH = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
_READS_STREAM = ("layernorm.weight", "hidden_norm.weight")


class FeatureSource(Protocol):
    """What is asked of the small drafter."""

    @property
    def spec(self) -> DrafterSpec: ...

    def tensor(self, name: str) -> WeightTensor: ...


@dataclass(frozen=True, slots=True)
class Targets:
    """The target that a drafter was made for, and what it is enlarged to."""

    before: ModelSpec
    after: ModelSpec


def widened(source: DrafterSpec, targets: Targets) -> DrafterSpec:
    """The least shape that goes with the enlarged target: as wide as its stream, nothing else.

    Raises:
        ModelError: it was not made for the target as it was, or its bits could not be kept.
    """
    before, after = targets.before, targets.after
    made_for = (source.target_hidden, source.num_target_layers, source.body.hidden)
    if made_for != (before.hidden, before.num_layers, before.hidden):
        raise ModelError(
            f"the drafter reads a target of {source.num_target_layers} layers"
            f" {source.target_hidden} wide and is {source.body.hidden} wide; the model has"
            f" {before.num_layers} layers"
            f" {before.hidden} wide: only a drafter of this very model, as wide as it, is enlarged"
        )
    if after.hidden != before.hidden and before.hidden % _BLOCK:
        raise ModelError(
            f"hidden size {before.hidden} is no multiple of {_BLOCK}: taps side by side would be"
            " summed in other blocks, with other roundings; choose a size of the same hidden size"
        )
    body = replace(source.body, hidden=after.hidden)
    grown = replace(
        source, body=body, target_hidden=after.hidden, num_target_layers=after.num_layers
    )
    require_preserving(source.body, body)
    return grown


def matched(source: DrafterSpec, targets: Targets, kind: str, target_bytes: int) -> DrafterSpec:
    """A shape of at least its kind's share of `target_bytes`, with the heads of the target.

    Raises:
        ModelError: as for `widened`.
    """
    grown = widened(source, targets)
    least_bytes = math.ceil(LEAST_RATIO[kind] * target_bytes)
    if drafter_bytes(grown) >= least_bytes:
        return grown
    group = source.body.num_heads // source.body.num_kv_heads
    num_kv_heads = max(source.body.num_kv_heads, targets.after.num_heads // group)
    body = replace(grown.body, num_heads=group * num_kv_heads, num_kv_heads=num_kv_heads)
    unit_bytes = 2 * 3 * body.num_layers * body.hidden
    missing = max(0, least_bytes - drafter_bytes(replace(grown, body=body)))
    ffn = body.ffn + math.ceil(missing / unit_bytes)
    body = replace(body, ffn=math.ceil(ffn / _FFN_STEP) * _FFN_STEP)
    require_preserving(source.body, body)
    return replace(grown, body=body)


def drafter_bytes(spec: DrafterSpec) -> int:
    """Bytes of a drafter's own weights in bf16; a borrowed table or head is not its own."""
    return 2 * sum(math.prod(shape) for shape in drafter_tensors(spec).values())


def grown_drafter_rows(
    source: FeatureSource, grown: DrafterSpec, name: str, targets: Targets, seed: int
) -> Iterator[NDArray[np.uint16]]:
    """The bf16 bits of one tensor, row after row, some megabytes at a time; a vector is one row.

    The same arguments give the same bits. Not for the token map, which is no matter of widths.

    Raises:
        ModelError: the source is not bf16, or a value of it cannot be scaled exactly.
    """
    own = drafter_tensors(source.spec).get(name)
    pieces: list[Piece] = []
    if own is not None:
        bits = bits_of(source.tensor(name), name).reshape(as_matrix(own))
        pieces = list(_pieces(bits, name, _Widening.of(source.spec, grown, targets)))
    return filled_rows(drafter_tensors(grown)[name], pieces, filler_of(name), (seed, name))


@dataclass(frozen=True, slots=True)
class _Widening:
    """What is asked of two shapes: widths, doublings of the stream, and of what the head reads."""

    before: DrafterSpec
    old: int
    new: int
    doublings: int
    head_doublings: int

    @staticmethod
    def of(before: DrafterSpec, after: DrafterSpec, targets: Targets) -> _Widening:
        doublings = num_doublings(before.body, after.body)
        has_scaled_head = isinstance(before, BlockSpec) and targets.before.tied
        head = -doublings if has_scaled_head else 0
        return _Widening(before, before.body.hidden, after.body.hidden, doublings, head)


def _pieces(bits: NDArray[np.uint16], name: str, how: _Widening) -> Iterator[Piece]:
    """The source's own values, each block of columns where its inputs are now, scaled."""
    first = 0
    for width, column, exponent in _blocks(bits.shape[1], name, how):
        part = bits[:, first : first + width]
        yield Piece(scaled(part, exponent, name), column)
        first += width


def _blocks(width: int, name: str, how: _Widening) -> list[tuple[int, int, int]]:
    """Of each block of columns: how many, where they begin now, the power of two they carry."""
    spec, old, new = how.before, how.old, how.new
    if name == "fc.weight":
        return [(old, tap * new, 0) for tap in range(len(spec.tap_layers))]
    if name in ("confidence_head.proj.weight", "markov_head.gate_proj.weight"):
        return [(old, 0, -how.head_doublings), (width - old, new, 0)]
    if name == "markov_head.joint_proj.weight":
        return [(width - old, 0, 0), (old, width - old, -how.head_doublings)]
    if isinstance(spec, EagleSpec) and name.endswith(_READS_BOTH):
        feature = -how.doublings if spec.norm_before_residual else 0
        return [(old, 0, 0), (old, new, feature)]
    return [(width, 0, _exponent(name, how))]


def _exponent(name: str, how: _Widening) -> int:
    """Which power of two a tensor of one block carries (the module's docstring has why)."""
    spec = how.before
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return how.doublings
    if name == "norm.weight":
        return how.head_doublings - how.doublings
    if name == "midlayer.hidden_norm.weight" and isinstance(spec, EagleSpec):
        return 0 if spec.norm_before_residual else -how.doublings
    return -how.doublings if name.endswith(_READS_STREAM) else 0
