"""Drafters that read features, on the native CPU backend.

Knows how their tensors become packed matrices; what they borrow stays the target's, in its memory.
Must not know drafting, scheduling or text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun import _native
from forerun.backends.native import NativeBackend, cores_for
from forerun.backends.native_values import Samplers, draft_of, forecast_arguments, native_plan
from forerun.backends.native_weights import Packer, body_shape
from forerun.draft import Draft
from forerun.errors import BackendError
from forerun.forecast import ForecastPlan
from forerun.models.drafter_files import DrafterCheckpoint, mixing_name
from forerun.models.drafter_spec import DrafterSpec, EagleSpec
from forerun.protocols import BLOCK_LEN, GrowthPlan
from forerun.tree import Tokens


class NativeFeatureBackend:
    """One drafter on one lane; implements `FeatureBackend` with the target's arithmetic.

    `target` lends its table of tokens and, to block drafters, its head: it must be as wide, and
    have weights of its own; they stay although it closes. `cores` are pinned, one thread each;
    without them they are found out. `weights` are those of another backend of this checkpoint
    beside this target, which share them and nothing else; without them the checkpoint is packed.

    Raises:
        BackendError: a width or a core that does not fit.
    """

    def __init__(
        self,
        checkpoint: DrafterCheckpoint,
        target: NativeBackend,
        *,
        num_blocks: int,
        cores: tuple[int, ...] | None = None,
        weights: Any = None,
    ) -> None:
        spec = checkpoint.spec
        self._spec: DrafterSpec = spec
        self._num_blocks = num_blocks
        chosen = cores_for(spec.body) if cores is None else cores
        max_context = min(spec.body.max_position, num_blocks * BLOCK_LEN)
        try:
            self._lane = _native.Lane(list(chosen), len(chosen), target.isa)
            shared = weights is not None
            self._weights = weights if shared else _packed(self._lane, checkpoint, target.weights)
            self._model = _native.Model(self._lane, self._weights, max_context, num_blocks)
        except ValueError as error:
            raise BackendError(
                f"this drafter cannot borrow from this target: {error}; use one made for it"
            ) from error
        self._samplers = Samplers()

    @property
    def spec(self) -> DrafterSpec:
        return self._spec

    @property
    def exactness(self) -> str:
        return "bits"

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def weights(self) -> Any:
        """The core's packed weights, for those that share them; table and head are the lender's."""
        return self._weights

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights that one pass streams, the borrowed head among them."""
        return int(self._model.weight_bytes)

    def absorb(
        self,
        catch_up: Tokens,
        catch_up_starts: Tokens,
        committed: Tokens,
        block_table: NDArray[np.int32],
        features: NDArray[np.float32],
    ) -> None:
        """Keep the K/V of every row's features; nothing is drafted."""
        self._model.absorb(catch_up, catch_up_starts, committed, block_table, features)

    def grow(self, plan: GrowthPlan, features: NDArray[np.float32]) -> list[Draft]:
        """A tree a row in one native call; below NaN logits nothing grows."""
        rows = self._model.grow(native_plan(plan, self._samplers), 0, features)
        return [draft_of(row, plan.growth) for row in rows]

    def foresee(self, plan: ForecastPlan, features: NDArray[np.float32]) -> list[Draft]:
        """Each row's draft grown further in one native call; a block says nothing past its end."""
        rows, _ = self._model.foresee(*forecast_arguments(plan, self._samplers), features)
        return [draft_of(row, plan.below.growth) for row in rows]

    def close(self) -> None:
        """Free K/V and threads, and the weights where nobody else reads them; what was borrowed
        stays."""
        self._samplers.clear()
        if hasattr(self, "_model"):
            del self._model, self._weights, self._lane


def _shape(spec: DrafterSpec) -> dict[str, Any]:
    shape = body_shape(spec.body)
    shape |= {"tied": True, "feature_width": spec.feature_width}
    if isinstance(spec, EagleSpec):
        return shape | {
            "vocab": spec.target_vocab,
            "head_rows": spec.body.vocab,
            "reads": "both",
            "norms_residual": spec.norm_before_residual,
        }
    return shape | {
        "vocab": spec.body.vocab,
        "head_rows": spec.draft_vocab,
        "reads": "context",
        "markov_rank": spec.markov_rank,
        "markov": spec.markov_kind.value,
        "mask": spec.mask_id,
        "block_len": spec.block_len,
        "is_shifted": spec.is_shifted,
    }


def _packed(lane: Any, checkpoint: DrafterCheckpoint, lender: Any) -> Any:
    packing = _native.Packing(lane, **_shape(checkpoint.spec), lender=lender)
    _pack(packing, checkpoint)
    if checkpoint.token_map is not None:
        packing.set_token_map(checkpoint.token_map.tolist())
    return packing.finish()


def _pack(packing: Any, checkpoint: DrafterCheckpoint) -> None:
    spec, packer = checkpoint.spec, Packer(packing, checkpoint)
    packer.matrix("fusion", 0, "fc.weight")
    packer.vector("final_norm", 0, "norm.weight")
    if isinstance(spec, EagleSpec):
        packer.layer(0, "midlayer.", spec.body)
        packer.vector("feature_norm", 0, "midlayer.hidden_norm.weight")
        packer.matrix("head", 0, "lm_head.weight")
        return
    for layer in range(spec.body.num_layers):
        packer.layer(layer, f"layers.{layer}.", spec.body)
        packing.set_sight(layer, not spec.is_causal[layer], spec.windows[layer])
    packer.vector("feature_norm", 0, "hidden_norm.weight")
    if spec.markov_rank:
        packer.matrix("markov_in", 0, "markov_head.markov_w1.weight")
        packer.matrix("markov", 0, "markov_head.markov_w2.weight")
    mixing = mixing_name(spec)
    if spec.has_token_map:
        packer.matrix("head", 0, "lm_head.weight")
    if mixing is not None:
        packer.matrix("mix", 0, f"{mixing}.weight")
        packer.vector("mix_bias", 0, f"{mixing}.bias")
