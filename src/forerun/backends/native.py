"""The native CPU backend: the C++ core behind the `Backend` protocol.

Knows how a checkpoint's tensors become packed matrices and how values become arrays of the core.
Must not know drafting, scheduling or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.backends.memory import available_bytes
from forerun.backends.native_values import Samplers, draft_of, forecast_arguments, native_plan
from forerun.backends.native_weights import Packer, body_shape
from forerun.draft import Draft
from forerun.errors import BackendError, CapacityError, ModelError
from forerun.forecast import ForecastPlan
from forerun.models.spec import ModelSpec
from forerun.models.weights import Checkpoint
from forerun.protocols import (
    BLOCK_LEN,
    ForwardBatch,
    ForwardOutput,
    GrowthPlan,
    ProposalPlan,
    Selection,
)
from forerun.tree import Tokens

try:
    from forerun import _native
except ImportError as error:  # built without a compiler, or for another machine
    raise BackendError(
        f"the native core is not built ({error}): install g++ and python3-dev and run"
        " `pip install .` again, or use the slower `--backend torch`"
    ) from error

_MAX_GROUP = 32  # query heads per K/V head that one attention tile holds
_ONE_CORE_BYTES = 4 << 20
_NUMERICS = {2: "canonical-bf16", 4: "canonical-float32"}  # by bytes of a value
_NO_TOKENS = np.zeros(0, np.int32)
_KV = 5  # of what the core returns for a row


@dataclass(frozen=True, slots=True, eq=False)
class _Grown:
    """The last proposal of trees, and where the K/V of each row's nodes is (-1: not computed); of a
    forecast also the logits below its nodes."""

    plan: GrowthPlan
    kv: list[Tokens]
    logits: Any = None


class NativeBackend:
    """One checkpoint on one lane; implements `Backend` with a canonical arithmetic.

    `cores` are pinned, one thread each; without them the count of usable cores is found out.
    `isa` forces an instruction path: `amx`, `avx512-bf16`, `avx512`, `avx2`, `portable` all give
    the same bits; `float32-portable`, never taken unasked, is another arithmetic, which rounds
    nothing to bf16, in about twice the memory and much slower. `weights` are those of another
    backend of this checkpoint and this path, which share them and nothing else; without them the
    checkpoint is packed.

    Raises:
        CapacityError: weights and K/V do not fit in memory. ModelError: a shape the core lacks.
        BackendError: an unknown path or core.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        cores: tuple[int, ...] | None = None,
        num_blocks: int,
        isa: str | None = None,
        weights: Any = None,
    ) -> None:
        spec = checkpoint.spec
        _refuse_unsupported(spec)
        self._spec = spec
        self._num_blocks = num_blocks
        max_context = min(spec.max_position, num_blocks * BLOCK_LEN)
        packs = weights is None
        self._value_bytes = value_bytes(isa)
        needed = needed_bytes(spec, num_blocks, self._value_bytes, packs=packs)
        if needed > available_bytes():
            raise _no_room(spec, num_blocks, needed, packs=packs)
        chosen = self._cores = cores_for(spec) if cores is None else cores
        try:
            self._lane = _native.Lane(list(chosen), len(chosen), isa or "auto")
            self._weights = _packed(self._lane, checkpoint) if packs else weights
            self._model = _native.Model(self._lane, self._weights, max_context, num_blocks)
        except ValueError as error:
            raise BackendError(str(error)) from error
        except MemoryError:
            raise _no_room(spec, num_blocks, needed, packs=packs) from None
        self._samplers = Samplers()
        self._grown: _Grown | None = None

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def weights(self) -> Any:
        """The core's packed weights, for those that share them or borrow table and head."""
        return self._weights

    @property
    def numerics(self) -> str:
        return _NUMERICS[self.value_bytes]

    @property
    def exactness(self) -> str:
        return "bits"

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def isa(self) -> str:
        """The instruction path in use."""
        return str(self._lane.path)

    @property
    def value_bytes(self) -> int:
        """Bytes of one value of weights and K/V."""
        return self._value_bytes

    @property
    def num_threads(self) -> int:
        return int(self._lane.num_threads)

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores it computes on."""
        return self._cores

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights that one forward pass streams."""
        return int(self._model.weight_bytes)

    @property
    def block_bytes(self) -> int:
        """Bytes of one K/V block over all layers."""
        return int(self._model.block_bytes)

    @property
    def num_computed(self) -> int:
        """Nodes of all passes so far."""
        return int(self._model.num_computed)

    def read_bandwidth(self, num_bytes: int) -> float:
        """Bytes per second of reading a private buffer of that size once, best of four ways."""
        return float(self._lane.read_bandwidth(num_bytes))

    def reader(self, cores: Sequence[int]) -> Callable[[int], float]:
        """Reads a buffer of so many bytes with these cores, all at once; bytes per second."""
        lane = _native.Lane(list(cores), len(cores), self.isa)
        return lambda num_bytes: float(lane.read_bandwidth(num_bytes))

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """Compute all nodes once; logits are a view, valid until the next forward."""
        logits, taps = self._model.forward(
            batch.token_ids,
            batch.parents,
            batch.row_starts,
            batch.committed,
            batch.block_table,
            batch.logit_nodes,
            np.asarray(batch.tap_layers, np.int32) if batch.tap_layers else _NO_TOKENS,
        )
        self._grown = None
        return ForwardOutput(logits, taps)

    def commit(self, batch: ForwardBatch, paths: Sequence[Sequence[int]]) -> None:
        """Write the K/V of tree paths to their canonical places; chains wrote theirs already."""
        starts = np.zeros(len(paths) + 1, np.int32)
        nodes: list[int] = []
        for row, path in enumerate(paths):
            nodes.extend(path)
            starts[row + 1] = len(nodes)
        self._model.commit(
            batch.token_ids,
            batch.parents,
            batch.row_starts,
            batch.committed,
            batch.block_table,
            np.asarray(nodes, np.int32),
            starts,
        )

    def select(self, logits: Any, selection: Selection) -> Tokens:
        """The chosen token of each row; -1 where a logit is NaN."""
        chosen: Tokens = self._model.select(logits, *self._who(selection))
        return chosen

    def law(self, logits: Any, selection: Selection) -> NDArray[np.float32]:
        """The law of each row after all processors."""
        try:
            laws: NDArray[np.float32] = self._model.law(logits, *self._who(selection))
        except ValueError as error:
            raise BackendError(str(error)) from error
        return laws

    def logprobs(self, logits: Any, rows: Tokens) -> NDArray[np.float32]:
        """Raw log-softmax of the given rows."""
        values: NDArray[np.float32] = self._model.logprobs(logits, rows)
        return values

    def propose(self, plan: ProposalPlan) -> NDArray[np.int32]:
        """A chain of coupled draft tokens a row, in one native call; -1 from a NaN on."""
        tokens: NDArray[np.int32] = self._model.propose(
            plan.catch_up,
            plan.catch_up_starts,
            plan.committed,
            plan.block_table,
            self._samplers.of(plan.samplers),
            plan.num_steps,
        )
        self._grown = None
        return tokens

    def grow(self, plan: GrowthPlan, num_layers: int = 0) -> list[Draft]:
        """A tree a row in one native call; below NaN logits nothing grows."""
        rows = self._model.grow(native_plan(plan, self._samplers), num_layers, None)
        self._grown = _Grown(plan, [row[_KV] for row in rows])
        return [draft_of(row, plan.growth) for row in rows]

    def foresee(self, plan: ForecastPlan) -> list[Draft]:
        """Each row's draft grown further in one native call; nothing below NaN logits."""
        rows, seen = self._model.foresee(*forecast_arguments(plan, self._samplers), None)
        self._grown = _Grown(plan.below, [row[_KV] for row in rows], seen)
        return [draft_of(row, plan.below.growth) for row in rows]

    def foresee_given(self, plan: ForecastPlan) -> list[Draft]:
        """Drafts below outcomes that are given, in one native call."""
        rows, _ = self._model.foresee(*forecast_arguments(plan, self._samplers), None)
        self._grown = None
        return [draft_of(row, plan.below.growth) for row in rows]

    def keep(self, plan: GrowthPlan, row: int, path: Sequence[int]) -> bool:
        """Write the K/V of a grown path to its canonical places."""
        if self._grown is None or self._grown.plan is not plan:
            return False
        if len(path):
            start, end = plan.catch_up_starts[row : row + 2].tolist()
            known = int(plan.committed[row]) + end - start
            self._model.keep(plan.block_table[row], known, self._grown.kv[row][list(path)])
        return True

    def take(self, plan: GrowthPlan, row: int, nodes: Sequence[int]) -> tuple[int, Any]:
        """A copy of what was read of a forecast's nodes."""
        grown = self._grown
        if grown is None or grown.logits is None or grown.plan is not plan:
            return 0, None
        held = self._model.take(grown.logits, grown.kv[row][list(nodes)])
        return int(held.num_nodes), held

    def close(self) -> None:
        """Free K/V and threads, and the weights where nobody else reads them."""
        self._samplers.clear()
        if hasattr(self, "_model"):
            del self._model, self._weights, self._lane

    def _who(self, selection: Selection) -> tuple[Any, ...]:
        return (
            selection.positions,
            selection.sampler_of,
            self._samplers.of(selection.samplers),
            selection.path_starts,
            selection.path_tokens,
        )


def default_cores() -> tuple[int, ...]:
    """Cores this process may use: its affinity set, cut to the control group's quota."""
    cores = list(_native.affinity_cores())
    quota = _native.quota_cores()
    return tuple(cores[:quota] if quota else cores)


def cores_for(spec: ModelSpec) -> tuple[int, ...]:
    """Cores for a model of that size."""
    # Weights that rest in one core's cache: sharing activations costs more than it brings.
    cores = default_cores()
    return cores[:1] if 2 * spec.num_parameters < _ONE_CORE_BYTES else cores


def value_bytes(isa: str | None) -> int:
    """Bytes of one value of weights and K/V on an instruction path; None is the best one.

    Raises:
        BackendError: an unknown path.
    """
    try:
        return int(_native.value_bytes(isa or "auto"))
    except ValueError as error:
        raise BackendError(str(error)) from error


def equal_paths(isa: str) -> list[str]:
    """Instruction paths that run here and give the bits of this one, itself among them; best
    first."""
    return list(_native.available_paths(value_bytes(isa)))


def needed_bytes(spec: ModelSpec, num_blocks: int, num_value_bytes: int, *, packs: bool) -> int:
    """Memory of the K/V blocks and, where they are packed, of the weights with an untied input
    embedding, without padding."""
    values = spec.num_parameters if packs else 0
    values += num_blocks * BLOCK_LEN * 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
    return num_value_bytes * values


def _no_room(spec: ModelSpec, num_blocks: int, needed: int, *, packs: bool) -> CapacityError:
    parameters = f"{spec.num_parameters:,} parameters and " if packs else ""
    return CapacityError(
        f"{parameters}K/V for {num_blocks * BLOCK_LEN:,} positions need {needed:,} bytes,"
        f" {available_bytes():,} are available: ask for fewer K/V positions, or use a smaller model"
    )


def _refuse_unsupported(spec: ModelSpec) -> None:
    if spec.num_heads // spec.num_kv_heads > _MAX_GROUP:
        raise ModelError(
            f"{spec.num_heads} query heads on {spec.num_kv_heads} K/V heads: the native core"
            f" holds at most {_MAX_GROUP} query heads per K/V head; use `--backend torch`"
        )


def _packed(lane: Any, checkpoint: Checkpoint) -> Any:
    spec = checkpoint.spec
    packing = _native.Packing(lane, **body_shape(spec), vocab=spec.vocab, tied=spec.tied)
    packer = Packer(packing, checkpoint)
    for layer in range(spec.num_layers):
        packer.layer(layer, f"model.layers.{layer}.", spec)
    packer.vector("final_norm", 0, "model.norm.weight")
    if spec.tied:
        packer.matrix("head", 0, "model.embed_tokens.weight")
    else:
        packer.matrix("embedding", 0, "model.embed_tokens.weight")
        packer.matrix("head", 0, "lm_head.weight")
    checkpoint.drop_pages()
    return packing.finish()
