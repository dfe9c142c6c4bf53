"""The reference backend: the plain decoder over paged K/V, on whatever device PyTorch has.

A position's logits must not depend on what else is in a pass, so every product has one shape,
whatever is asked for: nodes go through the layers in slices of `SLICE`, queries meet keys in the
canonical blocks of the logical order, and block results are added one after another. A tree is the
paths to its leaves, each a plain causal row.

On a CPU that makes the results equal bit by bit where the matrix library treats all rows of a
product alike; a probe at start-up compares and `exactness` says `tokens` or only `law`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forerun import sampling
from forerun.backends import foreseeing, growing
from forerun.backends.prefill import prefill
from forerun.backends.torch.attention import SLICE, RowPath, attend_path, row_paths, slices
from forerun.backends.torch.decoder import Decoder, Rotation, rotary_frequencies
from forerun.backends.torch.loaded import Loaded
from forerun.backends.torch.probe import is_independent
from forerun.draft import Draft
from forerun.errors import BackendError, OptionError
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


@dataclass(slots=True, eq=False)
class _Provisional:
    """K and V `[L T G D]` of the last pass, until its paths are kept."""

    batch: ForwardBatch
    keys: list[Tensor]
    values: list[Tensor]


class TorchBackend:
    """A `Backend` of PyTorch calls; correct everywhere, fast nowhere.

    `weights` are those of another backend of the same checkpoint, device and type, which share
    them and nothing else; without them the checkpoint is loaded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        num_blocks: int,
        num_threads: int | None = None,
        weights: Loaded[Decoder] | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._device = _open_device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._numerics = f"torch-{self._device.type}-{dtype}"
        self._spec, self._num_blocks = checkpoint.spec, num_blocks
        self._weights = weights or Loaded(_load(checkpoint, self._device, self._dtype))
        self._decoder = self._weights.module
        shape = (num_blocks * BLOCK_LEN, self._spec.num_kv_heads, self._spec.head_dim)
        self._keys = [self._zeros(shape) for _ in range(self._spec.num_layers)]
        self._values = [self._zeros(shape) for _ in range(self._spec.num_layers)]
        self._provisional: _Provisional | None = None
        self._exactness = "tokens" if is_independent(self) else "law"

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def numerics(self) -> str:
        return self._numerics

    @property
    def exactness(self) -> str:
        """`tokens` where the probe found every bit equal; equal logits choose equal tokens."""
        return self._exactness

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def weights(self) -> Loaded[Decoder]:
        """The decoder, for those that share it."""
        return self._weights

    @property
    def borrowed(self) -> tuple[Tensor, Tensor]:
        """The table of tokens and the head, `[V H]` each, for a drafter that has none."""
        table = self._decoder.model.embed_tokens.weight
        return table, table if self._spec.tied else self._decoder.lm_head.weight

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """Compute all nodes once; their K/V stays provisional until `commit`."""
        return self._forward(batch, self._spec.num_layers)

    @torch.inference_mode()
    def _forward(self, batch: ForwardBatch, num_layers: int) -> ForwardOutput:
        self._refuse_unknown_layers(batch)
        paths = row_paths(batch, self._device)
        x, rotations = self._enter(batch)
        self._provisional = _Provisional(batch, [], [])
        tapped: dict[int, NDArray[np.float32]] = {}
        for index in range(num_layers):
            x = self._layer(index, x, rotations, paths)
            if index in batch.tap_layers:
                tapped[index] = x.flatten(0, 1)[: len(batch.token_ids)].float().cpu().numpy()
        nodes = torch.from_numpy(batch.logit_nodes.astype(np.int64)).to(self._device)
        wanted = slices(x.flatten(0, 1)[nodes])
        logits = [self._decoder.head(one)[0] for one in wanted]
        whole = torch.cat(logits) if logits else x.new_zeros((0, self._spec.vocab))
        taps = [tapped[layer] for layer in batch.tap_layers]
        return ForwardOutput(
            whole[: len(nodes)].float(), np.concatenate(taps, axis=1) if taps else None
        )

    def _refuse_unknown_layers(self, batch: ForwardBatch) -> None:
        for layer in batch.tap_layers:
            if not 0 <= layer < self._spec.num_layers:
                raise BackendError(f"tapped layer {layer} of {self._spec.num_layers}")

    @torch.inference_mode()
    def commit(self, batch: ForwardBatch, paths: Sequence[Sequence[int]]) -> None:
        """Copy the K/V of the nodes on `paths` to their places in the block table."""
        kept = self._provisional
        if kept is None or kept.batch is not batch:
            raise BackendError("commit must follow the forward of the same batch")
        nodes: list[int] = []
        places: list[NDArray[np.int64]] = []
        for row, path in enumerate(paths):
            nodes += [int(batch.row_starts[row]) + node for node in path]
            positions = int(batch.committed[row]) + np.arange(len(path))
            blocks = batch.block_table[row, positions // BLOCK_LEN].astype(np.int64)
            places.append(blocks * BLOCK_LEN + positions % BLOCK_LEN)
        source = torch.tensor(nodes, dtype=torch.int64, device=self._device)
        target = torch.from_numpy(np.concatenate(places)).to(self._device)
        for index in range(len(kept.keys)):
            self._keys[index][target] = kept.keys[index][source]
            self._values[index][target] = kept.values[index][source]
        self._provisional = None

    def select(self, logits: Any, selection: Selection) -> Tokens:
        """The chosen token of each row; -1 where there is none."""
        rows = logits.cpu().numpy()
        chosen = np.full(len(rows), -1, np.int32)
        for index in range(len(rows)):
            sampler, path = _chooser(selection, index)
            try:
                position = int(selection.positions[index])
                chosen[index] = sampling.select(rows[index], sampler, position, path)
            except BackendError:
                continue
        return chosen

    def law(self, logits: Any, selection: Selection) -> NDArray[np.float32]:
        """The law of each row after all processors."""
        rows = logits.cpu().numpy()
        laws = np.empty(rows.shape, np.float32)
        for index in range(len(rows)):
            sampler, path = _chooser(selection, index)
            laws[index] = sampling.law(sampling.process(rows[index], sampler, path))
        return laws

    def logprobs(self, logits: Any, rows: Tokens) -> NDArray[np.float32]:
        """Raw log-softmax of the given rows."""
        return sampling.log_softmax(logits.cpu().numpy()[rows])

    def propose(self, plan: ProposalPlan) -> NDArray[np.int32]:
        """Read the unseen tokens, then choose step by step with the target's noise."""
        starts = plan.catch_up_starts.tolist()
        rows = range(len(starts) - 1)
        texts = [plan.catch_up[starts[row] : starts[row + 1]].tolist() for row in rows]
        for row in rows:
            prefill(self, plan.block_table[row : row + 1], texts[row][:-1], plan.committed[row])
        known = plan.committed + np.diff(plan.catch_up_starts)
        drafted: list[Tokens] = []
        pending = np.array([text[-1] for text in texts], np.int32)
        for step in range(plan.num_steps):
            pending = self._step(plan, pending, known + step, drafted)
            drafted.append(pending)
        return np.stack(drafted, axis=1)

    def grow(self, plan: GrowthPlan, num_layers: int = 0) -> list[Draft]:
        """Trees level by level, each level computing its rows' trees anew."""
        return growing.grow(plan, self._read(plan, num_layers or self._spec.num_layers))

    def foresee(self, plan: ForecastPlan) -> list[Draft]:
        """Drafts grown further, each level computing its rows' trees anew."""
        return foreseeing.foresee(plan, self._read(plan.below, self._spec.num_layers))

    def _read(self, plan: GrowthPlan, num_layers: int) -> growing.Read:
        def forward(batch: ForwardBatch) -> ForwardOutput:
            return ForwardOutput(self._forward(batch, num_layers).logits.cpu().numpy())

        return growing.rereader(forward, self.commit, plan)

    def keep(self, plan: GrowthPlan, row: int, path: Sequence[int]) -> bool:  # noqa: ARG002
        """Nothing: what was grown is read again as text."""
        return False

    def close(self) -> None:
        """Give back the K/V memory, and the weights where nobody else reads them."""
        self._keys, self._values, self._provisional = [], [], None
        del self._decoder, self._weights

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        if self._device.type == "cpu" and self._dtype != torch.bfloat16:
            dtype = np.float64 if self._dtype == torch.float64 else np.float32
            return torch.from_numpy(np.zeros(shape, dtype))  # memory is taken when written
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _enter(self, batch: ForwardBatch) -> tuple[Tensor, list[Rotation]]:
        """The residual stream `[slices SLICE C]` before the first layer, and its rotations."""
        padding = -len(batch.token_ids) % SLICE
        tokens = np.pad(batch.token_ids.astype(np.int64), (0, padding)).reshape(-1, SLICE)
        positions = np.pad(_positions(batch), (0, padding)).reshape(-1, SLICE)
        x = self._decoder.embed(torch.from_numpy(tokens).to(self._device))
        places = torch.from_numpy(positions).to(self._device)
        return x, [self._decoder.rotation(one[None], x.dtype) for one in places]

    def _layer(
        self, index: int, x: Tensor, rotations: list[Rotation], paths: list[RowPath]
    ) -> Tensor:
        layer = self._decoder.layers[index]
        parts = [
            layer.attention_inputs(x[one : one + 1], rotation)
            for one, rotation in enumerate(rotations)
        ]
        # [1 H SLICE D] of every slice -> [T H D]
        q, k, v = (torch.cat(heads, dim=2)[0].transpose(0, 1) for heads in zip(*parts, strict=True))
        assert self._provisional is not None
        self._provisional.keys.append(k)
        self._provisional.values.append(v)
        attended = torch.zeros_like(q)
        for path in paths:
            keys = torch.cat((self._keys[index][path.slots], k[path.nodes]))
            values = torch.cat((self._values[index][path.slots], v[path.nodes]))
            attended[path.fresh] = attend_path(q[path.fresh], keys, values, path.first)
        heads = attended.view(len(rotations), SLICE, *q.shape[1:]).transpose(1, 2)
        return torch.cat(
            [
                layer.feed_forward(layer.attention_output(x[one : one + 1], heads[one : one + 1]))
                for one in range(len(rotations))
            ]
        )

    def _step(
        self,
        plan: ProposalPlan,
        pending: Tokens,
        known: NDArray[np.int32],
        drafted: list[Tokens],
    ) -> Tokens:
        """Read one token a row, each at position `known - 1`, and choose what comes next."""
        num_rows = len(pending)
        batch = ForwardBatch(
            token_ids=pending,
            parents=np.full(num_rows, -1, np.int32),
            row_starts=np.arange(num_rows + 1, dtype=np.int32),
            committed=(known - 1).astype(np.int32),
            block_table=plan.block_table,
            logit_nodes=np.arange(num_rows, dtype=np.int32),
        )
        logits = self.forward(batch).logits
        self.commit(batch, [[0]] * num_rows)
        path = np.stack(drafted, axis=1) if drafted else np.zeros((num_rows, 0), np.int32)
        selection = Selection(
            positions=known.astype(np.int64),
            sampler_of=np.arange(num_rows, dtype=np.int32),
            samplers=plan.samplers,
            path_starts=np.arange(num_rows + 1, dtype=np.int32) * len(drafted),
            path_tokens=path.reshape(-1),
        )
        chosen = self.select(logits, selection)
        if chosen.min() < 0:
            raise BackendError("the drafting model returned NaN logits")
        return chosen


def _open_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BackendError(f"device {name!r} cannot be used by PyTorch: {reason}") from error
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"device {name!r}: the torch backend runs on cpu and cuda")
    return device


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Decoder:
    spec = checkpoint.spec
    with torch.device("meta"):
        decoder = Decoder(spec)
    state = {name: torch.from_numpy(checkpoint.tensor(name).float32()) for name in checkpoint.names}
    decoder.load_state_dict(state, assign=True)
    decoder.frequencies = torch.zeros(0)
    decoder.to(device=device, dtype=dtype).requires_grad_(requires_grad=False).eval()
    # Angles are computed in float32, whatever the weights' type.
    decoder.frequencies = rotary_frequencies(spec.rope, spec.head_dim).to(device)
    return decoder


def _positions(batch: ForwardBatch) -> NDArray[np.int64]:
    """`[T]` absolute position of every node."""
    positions = np.empty(len(batch.token_ids), np.int64)
    starts = batch.row_starts.tolist()
    parents = batch.parents.tolist()
    for row, (start, end) in enumerate(pairwise(starts)):
        for node in range(start, end):
            above = parents[node]
            before = int(batch.committed[row]) - 1 if above < 0 else int(positions[start + above])
            positions[node] = before + 1
    return positions


def _chooser(selection: Selection, index: int) -> tuple[Any, list[int]]:
    start, end = selection.path_starts[index : index + 2].tolist()
    sampler = selection.samplers[int(selection.sampler_of[index])]
    return sampler, selection.path_tokens[start:end].tolist()
