"""Larger models that compute the same bits: what each tensor of an enlarged checkpoint holds.

Every tensor of the large model is the small one's tensor in its first rows and columns, times a
power of two, with filler around it. In the canonical arithmetic no bit of a logit changes:

- *Wider feed-forward, more heads, more layers.* Filler of what writes into the residual stream
  (`o_proj`, `down_proj`) is zero, so what is new computes and reaches nothing. It stands at the
  end: a sum over inputs is a chain of blocks, and zeros keep it only from behind. Whole groups of
  query heads are added with their K/V head, so no old query changes its key.
- *Wider residual stream, by f = 4^k.* New dimensions are +0 throughout. The old ones are 2^k times
  what they were (embedding, `o_proj` and `down_proj` are), so the sum of squares is f times as
  large, the mean is the *same* and so is what epsilon does to it; norms carry 2^-k and projections
  see the old bits beside exact zeros. The final norm carries 2^-2k where the head is the embedding.
  (Quartering epsilon instead is wrong with q/k norms, which share it but do not widen.)

Two things bound the claim. Values so small that 2^k decides whether they are denormal would differ:
weights of that kind are refused, activations of that kind (below 1e-30) cannot reach a logit beside
others. Filler is small normals, so a new unit stays finite: its magnitude is below the product of
the norms of two rows and the normed input. Vocabulary, positions and head size are the source's: a
new row of the head would have the logit 0 and change the law.

Knows shapes and values. Must not know files.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forerun.errors import ModelError
from forerun.models.spec import ModelSpec
from forerun.models.weights import EMBEDDING, FINAL_NORM, WeightTensor, expected_tensors

_STANDARD_DEVIATION = 0.02
_NUM_NORMALS = 1 << 16
_STRETCH_VALUES = 1 << 22
_FFN_STEP = 256  # widths other engines' kernels are made for
_DRAFTER_FFN_STEP = 64

# How large each kind of drafter must be, at least, beside its target: bytes over bytes.
LEAST_RATIO: Mapping[str, Fraction] = {
    "lm": Fraction(1, 20),
    "dspark": Fraction(1, 10),
    "dflash": Fraction(1, 10),
    "eagle3": Fraction(1, 10),
}


class Source(Protocol):
    """What is asked of the small model."""

    @property
    def spec(self) -> ModelSpec: ...

    def tensor(self, name: str) -> WeightTensor: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """A shape but for its feed-forward width, which fills up to a size."""

    hidden: int
    num_layers: int
    num_heads: int


@dataclass(frozen=True, slots=True)
class Size:
    """A target's shape and about how many parameters it has; its drafters' shapes by kind.

    A drafter on features (`drafter_inflation`) is as wide as the target and has its heads, so only
    `lm` needs a shape of its own.
    """

    num_parameters: int
    target: Frame
    drafters: Mapping[str, Frame]


SIZES: Mapping[str, Size] = {
    "260M": Size(260_000_000, Frame(1024, 16, 16), {"lm": Frame(512, 4, 8)}),
    "1B": Size(1_000_000_000, Frame(1024, 32, 32), {"lm": Frame(512, 8, 8)}),
    "8B": Size(8_000_000_000, Frame(4096, 36, 64), {"lm": Frame(2048, 8, 32)}),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the source in an enlarged matrix: bf16 bits `[r c]` of its first rows, from
    `column` on."""

    bits: NDArray[np.uint16]
    column: int = 0


def target_spec(source: ModelSpec, size: Size) -> ModelSpec:
    """The shape of that size, which must be one that keeps the bits.

    Raises:
        ModelError: the source does not fit into it, or it cannot be reached without a rounding.
    """
    grown = _framed(source, size.target)
    unit = 3 * grown.num_layers * grown.hidden
    wanted = (size.num_parameters - grown.num_parameters) / unit + grown.ffn
    grown = replace(grown, ffn=max(1, round(wanted / _FFN_STEP)) * _FFN_STEP)
    require_preserving(source, grown)
    return grown


def drafter_spec(source: ModelSpec, kind: str, size: Size, target_bytes: int) -> ModelSpec:
    """The shape of a drafter of at least its kind's share of `target_bytes`; maybe the source's.

    Raises:
        ModelError: a kind there is no ratio for.
    """
    require_known(kind)
    least_bytes = math.ceil(LEAST_RATIO[kind] * target_bytes)
    if spec_bytes(source) >= least_bytes:
        return source
    frame, hidden, group = (
        size.drafters[kind],
        source.hidden,
        source.num_heads // source.num_kv_heads,
    )
    while hidden * 4 <= frame.hidden:
        hidden *= 4
    num_heads = max(source.num_heads, frame.num_heads // group * group)
    grown = _framed(source, Frame(hidden, max(source.num_layers, frame.num_layers), num_heads))
    unit_bytes = 2 * 3 * grown.num_layers * grown.hidden
    missing = max(0, least_bytes - spec_bytes(grown))
    ffn = grown.ffn + math.ceil(missing / unit_bytes)
    grown = replace(grown, ffn=math.ceil(ffn / _DRAFTER_FFN_STEP) * _DRAFTER_FFN_STEP)
    require_preserving(source, grown)
    return grown


def require_known(kind: str) -> None:
    """Refuse a drafter for which there is no ratio, and so no way to enlarge it."""
    if kind not in LEAST_RATIO:
        raise ModelError(
            f"a drafter of kind {kind!r} cannot go with an enlarged target: known are"
            f" {', '.join(LEAST_RATIO)}; copy the model without its drafters/{kind} to go on"
        )


def spec_bytes(spec: ModelSpec) -> int:
    """Bytes of all tensors of such a model in bf16."""
    return 2 * sum(math.prod(shape) for shape in expected_tensors(spec).values())


def require_preserving(source: ModelSpec, grown: ModelSpec) -> None:
    """Refuse a shape in which the source's function would not keep its bits.

    Raises:
        ModelError: it names the number that does not fit.
    """
    if grown.hidden not in {source.hidden * 4**k for k in range(16)}:
        raise ModelError(
            f"hidden size {source.hidden} cannot become {grown.hidden} with the same bits: only"
            f" multiples by powers of four ({4 * source.hidden}, {16 * source.hidden}, ...) change"
            " the norms' root by a power of two; choose another size or train another width"
        )
    for what in ("num_layers", "num_kv_heads", "ffn"):
        before, after = getattr(source, what), getattr(grown, what)
        if after < before:
            raise ModelError(
                f"the model has {what}={before}, more than the {after} of the size asked for:"
                " nothing can be taken away; choose a larger size"
            )
    if grown.num_heads * source.num_kv_heads != source.num_heads * grown.num_kv_heads:
        raise ModelError(
            f"{source.num_heads} query heads on {source.num_kv_heads} K/V heads cannot become"
            f" {grown.num_heads} on {grown.num_kv_heads}: queries would meet other keys; the ratio"
            " of the two must stay"
        )
    if _sized_like(grown, source) != source:
        raise ModelError("only layers, heads, hidden and feed-forward sizes can be enlarged")


def grown_rows(
    source: Source, grown: ModelSpec, name: str, seed: int
) -> Iterator[NDArray[np.uint16]]:
    """The bf16 bits of one tensor, row after row, some megabytes at a time.

    The same arguments give the same bits; a vector is one row.

    Raises:
        ModelError: the source is not bf16, or a value of it cannot be scaled exactly.
    """
    corner = _corner(source, grown, name)
    return filled_rows(
        expected_tensors(grown)[name], [Piece(corner)], filler_of(name), (seed, name)
    )


def filled_rows(
    shape: tuple[int, ...],
    pieces: Sequence[Piece],
    filler: NDArray[np.uint16],
    key: tuple[int, str],
) -> Iterator[NDArray[np.uint16]]:
    """A matrix, or a vector as one row, that holds the pieces, and values of `filler` elsewhere.

    Some megabytes of rows at a time. `key`, a seed and a name, decides which values those are.
    """
    num_rows, num_columns = as_matrix(shape)
    seed, name = key
    generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
    step = max(1, _STRETCH_VALUES // num_columns)
    for first in range(0, num_rows, step):
        part = (min(step, num_rows - first), num_columns)
        values = np.take(filler, generator.integers(0, len(filler), part, np.uint16))
        for piece in pieces:
            rows = piece.bits[first : first + step]
            values[: len(rows), piece.column : piece.column + rows.shape[1]] = rows
        yield values


def _framed(source: ModelSpec, frame: Frame) -> ModelSpec:
    # Rounded down here, so that heads which do not divide are refused by their own sentence.
    num_kv_heads = max(1, frame.num_heads * source.num_kv_heads // source.num_heads)
    return replace(
        source,
        hidden=frame.hidden,
        num_layers=frame.num_layers,
        num_heads=frame.num_heads,
        num_kv_heads=num_kv_heads,
    )


def _sized_like(spec: ModelSpec, other: ModelSpec) -> ModelSpec:
    return replace(
        spec,
        hidden=other.hidden,
        num_layers=other.num_layers,
        num_heads=other.num_heads,
        num_kv_heads=other.num_kv_heads,
        ffn=other.ffn,
    )


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns; a vector is one row."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def _corner(source: Source, grown: ModelSpec, name: str) -> NDArray[np.uint16]:
    """The source's own values, scaled; none for a layer it does not have."""
    shape = expected_tensors(source.spec).get(name)
    if shape is None:
        return np.zeros((0, 0), np.uint16)
    bits = bits_of(source.tensor(name), name).reshape(as_matrix(shape))
    return scaled(bits, _exponent(source.spec, grown, name), name)


def bits_of(tensor: WeightTensor, name: str) -> NDArray[np.uint16]:
    """The tensor's bf16 bits.

    Raises:
        ModelError: it is stored as another type.
    """
    if tensor.dtype != "BF16":
        raise ModelError(
            f"tensor {name!r} is {tensor.dtype}: only bf16 checkpoints are enlarged, because"
            " rounding another type would change the function; convert the model first"
        )
    return tensor.array


def _exponent(source: ModelSpec, grown: ModelSpec, name: str) -> int:
    """Which power of two a tensor carries (the module's docstring has why)."""
    doublings = num_doublings(source, grown)
    if _writes_stream(name):
        return doublings
    if name == FINAL_NORM:
        return -2 * doublings if grown.tied else -doublings
    return -doublings if name.endswith("layernorm.weight") else 0


def num_doublings(source: ModelSpec, grown: ModelSpec) -> int:
    """The k of a stream that is 4^k times as wide and 2^k times as large."""
    return (grown.hidden // source.hidden).bit_length() // 2


def scaled(bits: NDArray[np.uint16], exponent: int, name: str) -> NDArray[np.uint16]:
    """The bf16 values times 2^exponent, exactly.

    Raises:
        ModelError: some would be rounded.
    """
    if exponent == 0:
        return bits
    before = (bits >> 7 & 0xFF).astype(np.int32)
    after = before + exponent
    is_zero = (bits & 0x7FFF) == 0
    exact = is_zero | ((before > 0) & (before < 255) & (after > 0) & (after < 255))
    if not exact.all():
        raise ModelError(
            f"tensor {name!r} has {int((~exact).sum())} values that are not exact in bf16 after"
            f" scaling by 2^{exponent} (denormal, infinite or not a number): widening this model"
            " would change its function; choose a size of the same hidden size"
        )
    return np.where(is_zero, bits, (bits & 0x807F) | (after << 7)).astype(np.uint16)


def filler_of(name: str) -> NDArray[np.uint16]:
    """What a tensor's own part is surrounded with: bf16 values to draw from.

    Drawing from a table of normals is three times as fast as drawing normals.
    """
    if _writes_stream(name):
        return np.zeros(1, np.uint16)
    middle = 1.0 if name.endswith("norm.weight") else 0.0
    values = np.random.default_rng(_NUM_NORMALS).standard_normal(_NUM_NORMALS, np.float32)
    values = values * np.float32(_STANDARD_DEVIATION) + np.float32(middle)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _writes_stream(name: str) -> bool:
    """Whether the tensor's output is the residual stream, where all that is new must be zero.

    `fc.weight` makes it out of the target's in a drafter on features."""
    return name in (EMBEDDING, "fc.weight") or name.endswith(("o_proj.weight", "down_proj.weight"))
