"""Safetensors files on disk: which files a checkpoint has, and what their headers promise.

Knows bytes, offsets and names; maps files instead of reading them. Must not know what a model is.
Every header is checked in full before the first tensor is handed out, so a bad file is refused
as a whole and never half-loaded.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_STORED_AS: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}
READABLE = ("BF16", "F16", "F32")  # as weights; the others are tables of ids
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One header line: where a tensor lies; `[begin, end)` counts bytes of the whole file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def map(self, buffer: mmap.mmap) -> NDArray[Any]:
        """A read-only view of the mapped file; bf16 appears as its raw 16 bits."""
        raw = np.frombuffer(buffer, np.uint8, self.end - self.begin, self.begin)
        array: NDArray[Any] = raw.view(_STORED_AS[self.dtype]).reshape(self.shape)
        # Headers of any length are legal, so data may start at an odd byte: copy only then.
        return array if array.flags.aligned else array.copy()


def read_entries(directory: Path) -> dict[str, TensorEntry]:
    """All tensors of a checkpoint by name, after checking every file that holds them.

    Raises:
        ModelError: no safetensors there, a broken index, a missing shard, a bad or short file.
    """
    weight_map = _read_weight_map(directory)
    files = _single_file(directory) if weight_map is None else sorted(set(weight_map.values()))
    entries: dict[str, TensorEntry] = {}
    for file in files:
        for name, entry in _read_header(directory / file).items():
            if name in entries:
                raise ModelError(
                    f"tensor {name!r} is in both {entries[name].file} and {entry.file}: keep one"
                )
            entries[name] = entry
    for name, file in (weight_map or {}).items():
        if name not in entries or entries[name].file.name != file:
            raise ModelError(
                f"{directory / INDEX_NAME} says tensor {name!r} is in {file}, but it is not"
            )
    return entries


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write one file of tensors, in this order; uint16 is taken for the bits of bf16.

    Raises:
        ModelError: an array of a type that no reader here would take.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    described = {name: (_stored_type(name, array), array.shape) for name, array in arrays.items()}
    with path.open("wb") as file:
        file.write(header_of(described))
        for array in arrays.values():
            file.write(array.data)


def header_of(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """What a file of such tensors, `(type, shape)` by name, one behind the other, begins with."""
    # Older loaders refuse a file that does not name its format.
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + _ITEM_BYTES[dtype] * math.prod(shape)
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 64)
    return struct.pack("<Q", len(text)) + text


def _stored_type(name: str, array: NDArray[Any]) -> str:
    for dtype, stored in _STORED_AS.items():
        if array.dtype == stored:
            return dtype
    raise ModelError(
        f"tensor {name!r} is {array.dtype}; written are float32, float16, int64, bool, and bf16 as"
        " its bits in uint16"
    )


def map_file(path: Path) -> mmap.mmap:
    """The file's bytes, paged in as they are touched."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _single_file(directory: Path) -> list[str]:
    present = sorted(path.name for path in directory.glob("*.safetensors"))
    if SINGLE_NAME in present:
        return [SINGLE_NAME]
    if len(present) == 1:
        return present
    if present:
        raise ModelError(
            f"{directory} has {len(present)} .safetensors files but no {INDEX_NAME} that says how"
            " they belong together: copy that file from where the model came from"
        )
    raise ModelError(_nothing_readable(directory))


def _nothing_readable(directory: Path) -> str:
    patterns = ("*.bin", "*.pt", "*.pth", "*.pkl")
    pickles = sorted(path.name for pattern in patterns for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory} has only pickle weights ({pickles[0]}), which can run code when opened;"
            " forerun reads safetensors only: load the model once in Transformers and save it"
            " with model.save_pretrained(DIR), or take a safetensors revision"
        )
    if any(directory.glob("*.gguf")):
        return (
            f"{directory} has GGUF weights; forerun reads safetensors only: use the original"
            " checkpoint the GGUF file was made from"
        )
    return f"{directory} has no weights: expected {SINGLE_NAME}, or {INDEX_NAME} and its shards"


def _read_weight_map(directory: Path) -> dict[str, str] | None:
    """Which file each tensor is in, for a sharded checkpoint."""
    index = directory / INDEX_NAME
    if (directory / SINGLE_NAME).is_file() or not index.is_file():
        return None
    try:
        value = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{index} cannot be read as JSON: {error}") from error
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no 'weight_map' object")
    for file in weight_map.values():
        plain = isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
        if not plain:
            raise ModelError(f"{index} names the file {file!r}; it must be a plain *.safetensors")
        if not (directory / file).is_file():
            raise ModelError(f"{index} lists {file}, which is not there: the download is not whole")
    return weight_map


def _read_header(path: Path) -> dict[str, TensorEntry]:
    """Parse and check one file: sizes agree with offsets, and the data has no gap or overlap."""
    data_begin, header = _raw_header(path)
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, data_begin) for name, value in header.items()}
    end = data_begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            kind = "overlaps the one before it" if entry.begin < end else "leaves a gap before it"
            raise ModelError(
                f"{path}: tensor {name!r} starts at byte {entry.begin}, expected {end}: it {kind}"
            )
        end = entry.end
    size = path.stat().st_size
    if end != size:
        state = "is truncated" if size < end else "has bytes no tensor owns"
        raise ModelError(
            f"{path} {state}: its header describes {end} bytes, the file has {size};"
            " download it again"
        )
    return entries


def _raw_header(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(
                    f"{path} is not a safetensors file, or is truncated: its header claims"
                    f" {length} bytes, the file has {size}"
                )
            header = json.loads(file.read(length), object_pairs_hook=_distinct_keys)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} has an unreadable safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path} has a safetensors header that is not an object")
    return 8 + length, header


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _entry(path: Path, name: str, value: Any, data_begin: int) -> TensorEntry:
    fields = value if isinstance(value, dict) else {}
    dtype: Any = fields.get("dtype")
    shape, offsets = _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None:
        raise ModelError(f"{path}: tensor {name!r} has no valid dtype, shape and data_offsets")
    if dtype not in _ITEM_BYTES:
        raise ModelError(f"{path}: tensor {name!r} has the unknown dtype {dtype!r}")
    needed = math.prod(shape) * _ITEM_BYTES[dtype]
    if len(offsets) != 2 or offsets[1] - offsets[0] != needed:
        raise ModelError(
            f"{path}: tensor {name!r} is {dtype}{shape} = {needed} bytes, but its"
            f" data_offsets are {offsets}"
        )
    return TensorEntry(path, dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _counts(value: Any) -> list[int] | None:
    """The value as a list of integers not below zero, if it is one."""
    good = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return value if good else None
