"""A checkpoint directory as checked, memory-mapped tensors.

Knows which tensors a `ModelSpec` needs and in what shape. Must not know packing or backends.
`open_checkpoint` checks names, shapes, types and file sizes of everything before it returns.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from forerun.errors import ModelError
from forerun.models.shards import READABLE, TensorEntry, map_file, read_entries
from forerun.models.spec import ModelSpec, read_spec

EMBEDDING, HEAD, FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass(frozen=True, slots=True, eq=False)
class WeightTensor:
    """One tensor, mapped from disk: `array` is uint16 for BF16, else float16 or float32."""

    array: NDArray[Any]
    dtype: Literal["BF16", "F16", "F32"]

    def float32(self) -> NDArray[np.float32]:
        """The exact values as float32; every stored type widens without rounding."""
        if self.dtype == "BF16":
            return (self.array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return self.array.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model's weights, whole and checked; tensors are mapped when asked for."""

    directory: Path
    spec: ModelSpec
    entries: dict[str, TensorEntry]
    buffers: dict[Path, mmap.mmap]

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor of the model; the input embedding serves as `lm_head` where tied."""
        return tuple(self.entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(entry.end - entry.begin for entry in self.entries.values())

    def tensor(self, name: str) -> WeightTensor:
        """The tensor of that name, as a view of the mapped file."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"{self.directory} has no tensor {name!r}")
        dtype = cast("Literal['BF16', 'F16', 'F32']", entry.dtype)
        return WeightTensor(entry.map(self.buffers[entry.file]), dtype)

    def drop_pages(self) -> None:
        """Give back the memory of everything read so far; it is read from disk when asked again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for buffer in self.buffers.values():
                buffer.madvise(mmap.MADV_DONTNEED)


def open_checkpoint(directory: Path) -> Checkpoint:
    """Open a model directory after checking all of it.

    Raises:
        ModelError: unknown architecture, missing config keys, no safetensors, a truncated or
            inconsistent file, a tensor that is missing, unknown, or of another shape or type.
    """
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory with a model in it")
    spec = read_spec(directory)
    found = read_entries(directory)
    expected = expected_tensors(spec)
    _refuse_missing(directory, spec, found, expected)
    _refuse_mismatched(found, expected)
    buffers = {file: map_file(file) for file in {entry.file for entry in found.values()}}
    checkpoint = Checkpoint(directory, spec, {name: found[name] for name in expected}, buffers)
    _refuse_unknown(found, expected, checkpoint)
    return checkpoint


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor the model needs, in the order a forward pass reads them."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab, spec.hidden)}
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + name: shape for name, shape in _layer_tensors(spec).items()}
    shapes[FINAL_NORM] = (spec.hidden,)
    if not spec.tied:
        shapes[HEAD] = (spec.vocab, spec.hidden)
    return shapes


def _layer_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden, head_dim = spec.hidden, spec.head_dim
    widths = {"q": spec.num_heads * head_dim}
    widths |= dict.fromkeys("kv", spec.num_kv_heads * head_dim)
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    for part, width in widths.items():
        shapes[f"self_attn.{part}_proj.weight"] = (width, hidden)
        if spec.qkv_bias:
            shapes[f"self_attn.{part}_proj.bias"] = (width,)
    if spec.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (head_dim,)
    shapes["self_attn.o_proj.weight"] = (hidden, widths["q"])
    shapes["post_attention_layernorm.weight"] = (hidden,)
    shapes["mlp.gate_proj.weight"] = shapes["mlp.up_proj.weight"] = (spec.ffn, hidden)
    shapes["mlp.down_proj.weight"] = (hidden, spec.ffn)
    return shapes


def _refuse_missing(
    directory: Path,
    spec: ModelSpec,
    found: dict[str, TensorEntry],
    expected: dict[str, tuple[int, ...]],
) -> None:
    missing = [name for name in expected if name not in found]
    if missing == [HEAD]:
        raise ModelError(
            f"{directory} has no tensor {HEAD!r}, and config.json says tie_word_embeddings=false:"
            " set it to true if the model shares its embedding, else the weights are not whole"
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{directory} has no tensor {missing[0]!r}{more}: a {spec.family} model of"
            f" {spec.num_layers} layers needs {len(expected)} tensors, the files have {len(found)}"
        )


def _refuse_mismatched(found: dict[str, TensorEntry], expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        entry = found[name]
        if entry.shape != shape:
            raise ModelError(
                f"{entry.file}: tensor {name!r} has shape {list(entry.shape)}, config.json asks for"
                f" {list(shape)}"
            )
        if entry.dtype not in READABLE:
            raise ModelError(
                f"{entry.file}: tensor {name!r} is {entry.dtype}; forerun reads"
                f" {', '.join(READABLE)}: use the bf16, f16 or f32 checkpoint"
            )


def _refuse_unknown(
    found: dict[str, TensorEntry], expected: dict[str, tuple[int, ...]], checkpoint: Checkpoint
) -> None:
    """A tensor we would leave out must be one that changes nothing."""
    for name, entry in found.items():
        if name in expected or name.endswith("rotary_emb.inv_freq"):
            continue
        if name == HEAD:
            _refuse_untied(entry, checkpoint)
            continue
        raise ModelError(
            f"{entry.file}: tensor {name!r} {list(entry.shape)} has no place in a"
            f" {checkpoint.spec.family} model of {checkpoint.spec.num_layers} layers as config.json"
            " describes it: leaving it out would change the answers"
        )


def _refuse_untied(head: TensorEntry, checkpoint: Checkpoint) -> None:
    embedding = checkpoint.entries[EMBEDDING]
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and np.array_equal(
        head.map(checkpoint.buffers[head.file]),
        embedding.map(checkpoint.buffers[embedding.file]),
        equal_nan=head.dtype != "BF16",
    )
    if not same:
        raise ModelError(
            f"{head.file}: {HEAD!r} {head.dtype}{list(head.shape)} differs from {EMBEDDING!r}"
            f" {embedding.dtype}{list(embedding.shape)} although config.json says"
            " tie_word_embeddings=true: set it to false to use both"
        )
