"""Drafters that read their target's features, behind the protocol, in plain PyTorch.

The readable reference: rows one after another, dense attention, trees grown by `growing.grow`. It
computes on the device and in the type of the table it borrows; bits may differ between chunkings,
which no drafter promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forerun.backends import foreseeing, growing
from forerun.backends.growing import Logits, Row
from forerun.backends.torch.backend import TorchBackend
from forerun.backends.torch.block import BlockDrafter, KeysValues
from forerun.backends.torch.eagle import EagleDrafter
from forerun.backends.torch.loaded import Loaded
from forerun.backends.torch.texts import Paged, Text
from forerun.composition import LONGEST
from forerun.draft import Draft
from forerun.errors import BackendError
from forerun.forecast import ForecastPlan
from forerun.models.drafter_spec import BlockSpec, DrafterSpec
from forerun.models.weights import WeightTensor
from forerun.protocols import BLOCK_LEN, GrowthPlan
from forerun.tree import Tokens

# A block is fed whole up to so many slots, however few are asked for: a pass takes that many rows
# in the time of one, and slots see each other.
FREE_SLOTS = 8

TOKEN_OFFSETS = "d2t"

_Module = TypeVar("_Module", bound=nn.Module)
_Drafter: TypeAlias = BlockDrafter | EagleDrafter


class DrafterWeights(Protocol):
    """What a drafter is read from: its spec, its tensors by canonical name, and the target's token
    of each token of its own vocabulary, or None where they are the same."""

    @property
    def spec(self) -> DrafterSpec: ...

    @property
    def token_map(self) -> NDArray[np.int64] | None: ...

    def tensor(self, name: str) -> WeightTensor: ...


class TorchFeatureBackend:
    """A `FeatureBackend` of PyTorch calls over both kinds of drafters.

    `table [V H]` is the target's table of tokens and says device and type; `head [V H]` the
    target's head where that is not the table (block drafters only). `weights` are those of another
    backend of the same checkpoint beside the same target, which share them and nothing else.
    """

    def __init__(
        self,
        checkpoint: DrafterWeights,
        *,
        table: Tensor,
        head: Tensor | None = None,
        num_blocks: int,
        weights: Loaded[_Drafter] | None = None,
    ) -> None:
        self._spec, self._num_blocks, self._table = checkpoint.spec, num_blocks, table
        self._weights = weights or Loaded(_loaded(_empty(checkpoint.spec), checkpoint, table))
        drafter = self._weights.module
        self._reader: _Reader
        if isinstance(drafter, BlockDrafter):
            self._reader = _Blocks(drafter, table, table if head is None else head, num_blocks)
        else:
            self._reader = _Eagle(drafter, table, num_blocks)

    @classmethod
    def beside(
        cls,
        checkpoint: DrafterWeights,
        target: TorchBackend,
        num_blocks: int,
        weights: Loaded[_Drafter] | None = None,
    ) -> TorchFeatureBackend:
        """The drafter of a target that runs in this process: same device, type, table and head."""
        table, head = target.borrowed
        return cls(checkpoint, table=table, head=head, num_blocks=num_blocks, weights=weights)

    @property
    def spec(self) -> DrafterSpec:
        return self._spec

    @property
    def exactness(self) -> str:
        return "law"

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def weights(self) -> Loaded[_Drafter]:
        """The drafter, for those that share it; what it borrows is the target's."""
        return self._weights

    @torch.inference_mode()
    def absorb(
        self,
        catch_up: Tokens,
        catch_up_starts: Tokens,
        committed: Tokens,
        block_table: NDArray[np.int32],
        features: NDArray[np.float32],
    ) -> None:
        """Keep the K/V of every row's features; nothing is drafted."""
        for text in self._texts(catch_up, catch_up_starts, committed, block_table, features):
            self._reader.absorb(text)

    @torch.inference_mode()
    def grow(self, plan: GrowthPlan, features: NDArray[np.float32]) -> list[Draft]:
        """Absorb, then one tree a row below its pending token."""
        return self._reader.grow(plan, self._absorbed(plan, features))

    @torch.inference_mode()
    def foresee(self, plan: ForecastPlan, features: NDArray[np.float32]) -> list[Draft]:
        """Absorb, then each row's draft grown further; a block says nothing past its end."""
        return self._reader.foresee(plan, self._absorbed(plan.below, features))

    def close(self) -> None:
        """Give back the K/V memory, and the weights where nobody else reads them."""
        del self._reader, self._weights, self._table

    def _absorbed(self, plan: GrowthPlan, features: NDArray[np.float32]) -> list[Text]:
        texts = self._texts(
            plan.catch_up, plan.catch_up_starts, plan.committed, plan.block_table, features
        )
        for text in texts:
            self._reader.absorb(text)
        return texts

    def _texts(
        self,
        catch_up: Tokens,
        starts: Tokens,
        committed: Tokens,
        block_table: NDArray[np.int32],
        features: NDArray[np.float32],
    ) -> list[Text]:
        expected = (len(catch_up) - len(committed), self._spec.feature_width)
        if features.shape != expected:
            raise BackendError(
                f"features are {list(features.shape)}, {list(expected)} are needed: one row for"
                " every token but the pending ones, as wide as all taps together"
            )
        where = self._table.device
        states = torch.from_numpy(np.ascontiguousarray(features)).to(where, self._table.dtype)
        tokens = torch.from_numpy(catch_up.astype(np.int64)).to(where)
        texts: list[Text] = []
        for row, (start, end) in enumerate(pairwise(starts.tolist())):
            first = int(committed[row])
            positions = np.arange(first + end - start - 1)
            blocks = block_table[row, positions // BLOCK_LEN].astype(np.int64)
            slots = torch.from_numpy(blocks * BLOCK_LEN + positions % BLOCK_LEN).to(where)
            own = states[start - row : end - row - 1]
            room = min(block_table.shape[1] * BLOCK_LEN, self._spec.body.max_position) - len(slots)
            texts.append(Text(first, tokens[start:end], own, slots, room))
        return texts


class _Reader(Protocol):
    """One kind of drafter over its own K/V."""

    def absorb(self, text: Text) -> None: ...

    def grow(self, plan: GrowthPlan, texts: Sequence[Text]) -> list[Draft]: ...

    def foresee(self, plan: ForecastPlan, texts: Sequence[Text]) -> list[Draft]: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Slots:
    """Slots of a block: `logits [... V]` but for what the tokens before add, `hidden [... H]`."""

    logits: Tensor
    hidden: Tensor

    def at(self, depth: int) -> _Slots:
        """The slot of a depth; past the last one a law of NaN."""
        if depth < len(self.logits):
            return _Slots(self.logits[depth], self.hidden[depth])
        return _Slots(torch.full_like(self.logits[0], torch.nan), self.hidden[0])


class _Blocks:
    """A block drafter: one pass, whose slots are read below every node of their depth."""

    def __init__(self, drafter: BlockDrafter, table: Tensor, head: Tensor, num_blocks: int) -> None:
        body = drafter.spec.body
        self._drafter, self._table, self._head = drafter, table, head
        self._paged = [Paged(body, num_blocks, table) for _ in range(body.num_layers)]

    def absorb(self, text: Text) -> None:
        if len(text.features) == 0:
            return
        fused = self._drafter.fuse(text.features)[None]
        for paged, fresh in zip(self._paged, self._drafter.context(fused, text.fresh), strict=True):
            paged.write(text.slots[text.first :], fresh)

    def grow(self, plan: GrowthPlan, texts: Sequence[Text]) -> list[Draft]:
        most = min(self._drafter.spec.max_drafted, LONGEST)
        depths = np.minimum(plan.depths, most).astype(np.int32)
        drafts = growing.grow(replace(plan, depths=depths), self._read(texts, depths))
        return [replace(draft, num_passes=1) for draft in drafts]

    def foresee(self, plan: ForecastPlan, texts: Sequence[Text]) -> list[Draft]:
        drafted = np.array([int(tree.depths().max()) for tree in plan.trees])
        most = self._drafter.spec.max_drafted
        depths = np.minimum(drafted + 1 + np.minimum(plan.below.depths, LONGEST), most)
        drafts = foreseeing.foresee(plan, self._read(texts, depths), by_level=True)
        return [replace(draft, num_passes=1) for draft in drafts]

    def _read(self, texts: Sequence[Text], depths: NDArray[np.int32]) -> growing.Read:
        """Slots by depth, so many a row; below the last a law of NaN, which offers nothing."""
        filled = [
            self._filled(text, max(1, depth))
            for text, depth in zip(texts, depths.tolist(), strict=True)
        ]
        start = self._table.new_zeros(self._drafter.spec.markov_rank)
        states: list[dict[int, Tensor]] = [{-1: start} for _ in texts]  # what each node has heard

        def read(rows: Sequence[Row], leaves: Sequence[tuple[int, int]]) -> Logits:
            nodes = [rows[index].nodes[node] for index, node in leaves]
            slots = [
                filled[index].at(one.depth) for (index, _), one in zip(leaves, nodes, strict=True)
            ]
            above = [
                states[index][one.parent if node else -1]
                for (index, node), one in zip(leaves, nodes, strict=True)
            ]
            before = torch.tensor([one.token for one in nodes], device=self._table.device)
            hidden = torch.stack([slot.hidden for slot in slots])
            heard, added = self._drafter.markov_step(torch.stack(above), before, hidden)
            for (index, node), state in zip(leaves, heard, strict=True):
                states[index][node] = state
            return _numpy(torch.stack([slot.logits for slot in slots]) + added)

        return read

    def _filled(self, text: Text, depth: int) -> _Slots:
        """The slots of the tokens at so many depths."""
        spec = self._drafter.spec
        unused = 0 if spec.is_shifted else 1
        num_fed = max(min(spec.block_len, FREE_SLOTS, text.room), depth + unused)
        tokens = text.tokens.new_full((num_fed,), spec.mask_id)
        tokens[0] = text.tokens[-1]
        context = torch.arange(text.pending, device=tokens.device)
        anchor = torch.tensor([[text.pending]], device=tokens.device)
        x = self._drafter.blocks_over(
            [paged.read(text.slots) for paged in self._paged],
            self._table[tokens][None],
            text.pending + torch.arange(len(tokens), device=tokens.device),
            self._drafter.masks(context, anchor, len(tokens)),
        )
        hidden = x[0, unused : unused + depth]
        return _Slots(self._drafter.logits(hidden, self._head), hidden)


@dataclass(slots=True, eq=False)
class _Grown:
    """What EAGLE-3 read below one row's pending token: `places` of nodes among keys and values
    `[1 G m D]`, and what came out of the layer at each `[H]`, node 0 included."""

    outputs: dict[int, Tensor]
    places: dict[int, int] = field(default_factory=dict)
    kept: KeysValues | None = None


class _Eagle:
    """EAGLE-3: a pass a level, each node fed with what came out of its parent."""

    def __init__(self, drafter: EagleDrafter, table: Tensor, num_blocks: int) -> None:
        body = drafter.spec.body
        self._drafter, self._table = drafter, table
        self._paged = Paged(body, num_blocks, table)
        # What came out at the last feature is needed again when a draft follows without new ones.
        self._outputs = table.new_zeros((num_blocks * BLOCK_LEN, body.hidden))

    def absorb(self, text: Text) -> None:
        if len(text.features) == 0:
            return
        embedded, fused = self._table[text.tokens[1:]], self._drafter.fuse(text.features)
        keys = torch.arange(text.pending, device=text.slots.device)
        x, kept = self._drafter.layer(
            embedded[None],
            fused[None],
            text.fresh,
            keys <= text.fresh[:, None],
            self._paged.read(text.slots[: text.first]),
        )
        own = text.slots[text.first :]
        self._paged.write(own, (kept[0][..., text.first :, :], kept[1][..., text.first :, :]))
        self._outputs[own] = x[0]

    def grow(self, plan: GrowthPlan, texts: Sequence[Text]) -> list[Draft]:
        return growing.grow(plan, self._read(texts))

    def foresee(self, plan: ForecastPlan, texts: Sequence[Text]) -> list[Draft]:
        return foreseeing.foresee(plan, self._read(texts), by_level=True)

    def _read(self, texts: Sequence[Text]) -> growing.Read:
        grown = [self._begun(text) for text in texts]

        def read(rows: Sequence[Row], leaves: Sequence[tuple[int, int]]) -> Logits:
            for index in sorted({index for index, node in leaves if node > 0}):
                nodes = [node for row, node in leaves if row == index]
                self._read_nodes(texts[index], grown[index], rows[index], nodes)
            outputs = torch.stack([grown[index].outputs[node] for index, node in leaves])
            return _numpy(self._drafter.target_logits(outputs))

        return read

    def _begun(self, text: Text) -> _Grown:
        if text.pending == 0:  # no feature, no draft: a law of NaN offers nothing
            return _Grown({0: self._outputs.new_full(self._outputs.shape[1:], torch.nan)})
        return _Grown({0: self._outputs[text.slots[-1]]})

    def _read_nodes(self, text: Text, grown: _Grown, row: Row, nodes: Sequence[int]) -> None:
        """Run the layer on nodes whose parents were read before."""
        where = text.slots.device
        tokens = torch.tensor([row.nodes[node].token for node in nodes], device=where)
        depths = torch.tensor([row.nodes[node].depth for node in nodes], device=where)
        above = torch.stack([grown.outputs[row.nodes[node].parent] for node in nodes])
        for node in nodes:
            grown.places[node] = len(grown.places)
        past = self._paged.read(text.slots)
        if grown.kept is not None:
            past = _joined(past, grown.kept)
        x, (keys, values) = self._drafter.layer(
            self._table[tokens][None],
            above[None],
            text.pending - 1 + depths,
            _path_mask(text.pending, grown.places, row, nodes).to(where),
            past,
        )
        grown.kept = (keys[..., text.pending :, :], values[..., text.pending :, :])
        for at, node in enumerate(nodes):
            grown.outputs[node] = x[0, at]


def _joined(past: KeysValues, fresh: KeysValues) -> KeysValues:
    return torch.cat((past[0], fresh[0]), dim=-2), torch.cat((past[1], fresh[1]), dim=-2)


def _path_mask(num_known: int, places: dict[int, int], row: Row, nodes: Sequence[int]) -> Tensor:
    """`[nodes, num_known + places]` bool: the text, the nodes above, the node itself."""
    mask = torch.zeros(len(nodes), num_known + len(places), dtype=torch.bool)
    mask[:, :num_known] = True
    for at, leaf in enumerate(nodes):
        node = leaf
        while node > 0:
            mask[at, num_known + places[node]] = True
            node = row.nodes[node].parent
    return mask


def _empty(spec: DrafterSpec) -> _Drafter:
    """A drafter of that kind, without memory."""
    with torch.device("meta"):
        return BlockDrafter(spec) if isinstance(spec, BlockSpec) else EagleDrafter(spec)


def _loaded(module: _Module, weights: DrafterWeights, like: Tensor) -> _Module:
    """The module with its tensors, on the device and in the type of another tensor."""
    names = [name for name in module.state_dict() if name != TOKEN_OFFSETS]
    state = {name: torch.from_numpy(weights.tensor(name).float32()) for name in names}
    if TOKEN_OFFSETS in module.state_dict():
        targets = weights.token_map
        if targets is None:
            raise BackendError(
                "the drafter's spec has a token map and its weights have none: give both or neither"
            )
        state[TOKEN_OFFSETS] = torch.from_numpy(targets - np.arange(len(targets)))
    module.load_state_dict(state, assign=True)
    module.to(device=like.device, dtype=like.dtype).requires_grad_(requires_grad=False)
    return module.eval()


def _numpy(logits: Tensor) -> Logits:
    numbers: Logits = logits.float().cpu().numpy()
    return numbers
