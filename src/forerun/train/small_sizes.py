"""How large a small model of a target's vocabulary is, and when that is too large to draft with.

Knows specs and sizes asked for. Must not know weights.

    bytes    2 * (vocab * hidden + 12 * layers * hidden ** 2), a table and layers of which each has
             3 hidden ** 2 in attention and 9 hidden ** 2 in its feed-forward block (more or less)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from forerun.errors import OptionError
from forerun.models.spec import ModelSpec
from forerun.train.lm import code_spec

if TYPE_CHECKING:
    from forerun.train.arguments import ShapeArguments

WIDTH_STEP = 64  # a head has so many dimensions
SHARE = 0.05  # of the target's bytes, where no size is asked for
LARGEST_SHARE = 0.5  # a draft token that costs half a pass of the target saves nothing
MOST_LAYERS = 4  # layers come one after another, width does not: a draft is waited for
LAYERS_A_LAYER = 6  # of the target
BYTES_A_NUMBER = 2  # bfloat16


def small_spec(target: ModelSpec, target_bytes: int, shape: ShapeArguments) -> ModelSpec:
    """A tied qwen3 model with the target's vocabulary and context; sizes of 0 are chosen so that it
    has about a twentieth of the target's `target_bytes`.

    Raises:
        OptionError: sizes that do not fit together, or a model of more than half those bytes.
    """
    layers = shape.layers or max(1, min(MOST_LAYERS, target.num_layers // LAYERS_A_LAYER))
    sized = replace(shape, layers=layers)
    if not shape.hidden:
        widths = range(WIDTH_STEP, max(target.hidden, WIDTH_STEP) + 1, WIDTH_STEP)
        sized = min(
            (replace(sized, hidden=width) for width in widths),
            key=lambda one: abs(num_bytes(_spec(target, one)) - SHARE * target_bytes),
        )
    spec = _spec(target, sized)
    _refuse_large(spec, target_bytes)
    return spec


def num_bytes(spec: ModelSpec) -> int:
    """Bytes of a model's weights in bfloat16."""
    return BYTES_A_NUMBER * spec.num_parameters


def _spec(target: ModelSpec, shape: ShapeArguments) -> ModelSpec:
    hidden = shape.hidden
    if hidden % WIDTH_STEP:
        raise OptionError(f"--hidden {hidden} is not a multiple of {WIDTH_STEP}, a head's width")
    heads = shape.heads or hidden // WIDTH_STEP
    kv_heads = shape.kv_heads or (heads // 2 if heads % 2 == 0 else 1)
    if heads % kv_heads:
        raise OptionError(f"--heads {heads} is not a multiple of --kv-heads {kv_heads}")
    plain = code_spec(
        hidden=hidden,
        layers=shape.layers,
        heads=heads,
        kv_heads=kv_heads,
        ffn=shape.ffn or 3 * hidden,
        vocab=target.vocab,
    )
    return replace(
        plain, max_position=target.max_position, eos_ids=target.eos_ids, bos_id=target.bos_id
    )


def _refuse_large(spec: ModelSpec, target_bytes: int) -> None:
    own = num_bytes(spec)
    if own <= LARGEST_SHARE * target_bytes:
        return
    table = BYTES_A_NUMBER * spec.vocab * spec.hidden
    raise OptionError(
        f"a model of {spec.num_layers} layers, {spec.hidden} wide, would have {own / 1e6:.1f} MB,"
        f" {table / 1e6:.1f} of them its table of {spec.vocab} tokens; the model it drafts for has"
        f" {target_bytes / 1e6:.1f}, and more than {LARGEST_SHARE:.0%} of that saves nothing: give"
        f" a smaller --hidden ({WIDTH_STEP} is the least), or train what borrows the model's table,"
        " with `forerun train dspark`"
    )
