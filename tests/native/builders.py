"""Small random models in memory, and the few ways in which tests make a backend read text.

spec = tiny_spec(head_dim=80)              what a model is
with opened(random_checkpoint(spec, 1)) as backend:
    text = Text(backend, blocks=range(4))  one sequence that owns blocks 0..3
    logits = text.decode([5, 7, 9])        one token a pass: what every other way must equal
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from forerun import _native
from forerun.backends.native import NativeBackend
from forerun.models.spec import ModelSpec, Rope
from forerun.models.weights import WeightTensor, expected_tensors
from forerun.protocols import BLOCK_LEN, ForwardBatch

PATHS: tuple[str, ...] = tuple(_native.available_paths())
FLOAT32 = "float32-portable"  # the only path of the second arithmetic
EVERY_PATH = (*PATHS, FLOAT32)
CORES: tuple[int, ...] = tuple(_native.affinity_cores())
Floats = NDArray[np.float32]


# --- models ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryCheckpoint:
    """What a backend asks of a checkpoint, without files."""

    spec: ModelSpec
    tensors: dict[str, WeightTensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def tensor(self, name: str) -> WeightTensor:
        return self.tensors[name]

    def drop_pages(self) -> None:
        """Nothing is mapped."""

    def changed(self, **tensors: Floats) -> MemoryCheckpoint:
        """The same with some tensors replaced (as bf16); `__` in a keyword stands for a dot."""
        new = {name.replace("__", "."): bf16_tensor(values) for name, values in tensors.items()}
        return MemoryCheckpoint(self.spec, self.tensors | new)


def tiny_spec(**changes: Any) -> ModelSpec:
    """A small Llama-like model; keyword arguments are fields of `ModelSpec`."""
    small = ModelSpec(
        family="llama",
        hidden=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        ffn=96,
        vocab=97,
        max_position=2048,
        norm_eps=1e-6,
        rope=Rope(),
        tied=True,
        qkv_bias=False,
        qk_norm=False,
        eos_ids=(),
        bos_id=None,
        dtype="bfloat16",
    )
    return replace(small, **changes)


def bf16_bits(values: Floats) -> NDArray[np.uint16]:
    """Round to nearest even, by integers; for finite values, denormals kept."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_tensor(values: Floats) -> WeightTensor:
    return WeightTensor(bf16_bits(values).reshape(values.shape), "BF16")


def random_checkpoint(spec: ModelSpec, seed: int) -> MemoryCheckpoint:
    """Normal weights wide enough that attention is peaked and logits spread."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_tensors(spec).items():
        if name.endswith("norm.weight"):
            values = rng.normal(1.0, 0.2, shape)
        elif name.endswith("bias"):
            values = rng.normal(0.0, 0.5, shape)
        else:
            values = rng.normal(0.0, 1.5 / np.sqrt(shape[1]), shape)
        tensors[name] = bf16_tensor(values.astype(np.float32))
    return MemoryCheckpoint(spec, tensors)


@contextmanager
def opened(
    checkpoint: MemoryCheckpoint, *, isa: str = "auto", threads: int = 1, num_blocks: int = 16
) -> Iterator[NativeBackend]:
    """A backend on the first cores there are; its threads and memory are gone afterwards."""
    cores = tuple(CORES[i % len(CORES)] for i in range(threads))
    backend = NativeBackend(checkpoint, cores=cores, num_blocks=num_blocks, isa=isa)
    try:
        yield backend
    finally:
        backend.close()


def yardstick(isa: str) -> str:
    """The path whose bits another one must give."""
    return FLOAT32 if isa == FLOAT32 else "portable"


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Shapes that leave remainders everywhere: widths, vocabulary, head sizes and groups."""
    num_kv_heads, group = draw(st.sampled_from([(2, 1), (1, 2), (2, 2), (1, 7)]))
    return tiny_spec(
        hidden=draw(st.sampled_from([40, 64, 72, 100])),
        num_layers=draw(st.integers(1, 2)),
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        head_dim=draw(st.sampled_from([64, 80, 96, 128])),
        ffn=draw(st.sampled_from([33, 75, 96])),
        vocab=draw(st.sampled_from([37, 50, 97])),
        tied=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


# --- batches -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: its nodes, what it has kept, and the blocks it owns."""

    tokens: Sequence[int]
    parents: Sequence[int]
    committed: int
    blocks: Sequence[int]


def chain(num_nodes: int) -> list[int]:
    """Parents of a chain."""
    return list(range(-1, num_nodes - 1))


def batch_of(
    rows: Sequence[Row], *, logits: bool = True, tap_layers: tuple[int, ...] = ()
) -> ForwardBatch:
    """Rows side by side, with the logits of every node unless none are wanted."""
    table = np.zeros((len(rows), max(len(row.blocks) for row in rows)), np.int32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row.blocks)] = row.blocks
    starts = np.cumsum([0, *(len(row.tokens) for row in rows)]).astype(np.int32)
    return ForwardBatch(
        token_ids=np.array([t for row in rows for t in row.tokens], np.int32),
        parents=np.array([p for row in rows for p in row.parents], np.int32),
        row_starts=starts,
        committed=np.array([row.committed for row in rows], np.int32),
        block_table=table,
        logit_nodes=np.arange(starts[-1] if logits else 0, dtype=np.int32),
        tap_layers=tap_layers,
    )


def path_to(parents: Sequence[int], node: int) -> list[int]:
    """Node ids from node 0 to `node`."""
    nodes = [node]
    while parents[nodes[-1]] >= 0:
        nodes.append(parents[nodes[-1]])
    return nodes[::-1]


def computed(backend: Any, batch: ForwardBatch) -> Floats:
    """`[n V+LH]` all that a pass computes of its nodes: logits, and every layer's output.

    Logits alone are weak witnesses: rounding to bf16 before the head hides small differences. A
    backend that has no `spec` is asked for logits only.
    """
    spec = getattr(backend, "spec", None)
    layers = tuple(range(spec.num_layers)) if spec is not None else ()
    output = backend.forward(replace(batch, tap_layers=layers))
    taps = np.zeros((len(batch.token_ids), 0)) if output.taps is None else np.array(output.taps)
    return np.concatenate([output.logits, taps.reshape(len(taps), -1)], 1, dtype=np.float32)


class Text:
    """One sequence on one backend: the blocks it owns and how much of it is kept."""

    def __init__(self, backend: Any, blocks: Iterable[int]) -> None:
        self.backend = backend
        self.blocks = list(blocks)
        self.committed = 0

    def row(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> Row:
        """The next nodes of this sequence, a chain unless parents are given."""
        return Row(
            tokens, chain(len(tokens)) if parents is None else parents, self.committed, self.blocks
        )

    def read(self, tokens: Sequence[int]) -> Floats:
        """What one pass computes of all tokens; keeps them."""
        batch = batch_of([self.row(tokens)])
        found = computed(self.backend, batch)
        self.backend.commit(batch, [range(len(tokens))])
        self.committed += len(tokens)
        return found

    def decode(self, tokens: Sequence[int]) -> Floats:
        """The same, one token a pass: plain decoding."""
        return np.concatenate([self.read([token]) for token in tokens])

    def grow(self, tokens: Sequence[int], parents: Sequence[int]) -> tuple[ForwardBatch, Floats]:
        """What one pass computes of a tree; keeps nothing yet."""
        batch = batch_of([self.row(tokens, parents)])
        return batch, computed(self.backend, batch)

    def keep(self, batch: ForwardBatch, path: Sequence[int]) -> None:
        """Keep a path of the tree just grown."""
        self.backend.commit(batch, [path])
        self.committed += len(path)


def decode_tree(
    backend: Any, prefix: Sequence[int], tokens: Sequence[int], parents: Sequence[int]
) -> Floats:
    """What is computed of every node, each decoded token by token along its own path alone."""
    blocks = range(-(-(len(prefix) + len(tokens)) // BLOCK_LEN))
    prompt = Text(backend, blocks)
    if prefix:
        prompt.decode(prefix)
    rows = []
    for node in range(len(tokens)):
        text = Text(backend, blocks)
        text.committed = len(prefix)
        rows.append(text.decode([tokens[n] for n in path_to(parents, node)])[-1])
    return np.array(rows)


# --- comparison --------------------------------------------------------------------------------


def same_bits(left: Floats, right: Floats) -> bool:
    """Whether two arrays of floats are the same bit by bit (-0 is not 0)."""
    return left.shape == right.shape and np.array_equal(
        np.ascontiguousarray(left, np.float32).view(np.uint32),
        np.ascontiguousarray(right, np.float32).view(np.uint32),
    )


def require_same_bits(found: Floats, expected: Floats, what: str) -> None:
    """Fails with where and by how much two results differ."""
    if same_bits(found, expected):
        return
    assert found.shape == expected.shape, f"{what}: {found.shape} instead of {expected.shape}"
    differ = np.ascontiguousarray(found).view(np.uint32) != np.ascontiguousarray(expected).view(
        np.uint32
    )
    first = tuple(int(i) for i in np.argwhere(differ)[0])
    raise AssertionError(
        f"{what}: {int(differ.sum())} of {differ.size} floats differ, the first at {first}:"
        f" {found[first]!r} instead of {expected[first]!r}"
    )
