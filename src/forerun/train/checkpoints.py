"""A training's state in one safetensors file: its tensors by name, all other values as JSON.

Knows nested mappings and lists. Must not know what a training is. To open one runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from forerun.errors import OptionError

_KEY = "state"  # of the file's metadata
_TENSOR = "$tensor"  # stands for a tensor: its name
_TUPLE = "$tuple"  # a list in JSON, a tuple again when read: specs are compared


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write numbers, texts, lists, tuples, mappings with texts as keys, and tensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(state, "")}
    save_file(tensors, path, metadata={_KEY: json.dumps(_named(state, ""))})


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote, with tensors on the CPU.

    Raises:
        OptionError: a file that it did not write, or only a part of one.
    """
    try:
        with safe_open(path, "pt") as file:

            def restored(value: dict[str, Any]) -> Any:
                if set(value) == {_TENSOR}:
                    return file.get_tensor(value[_TENSOR])
                return tuple(value[_TUPLE]) if set(value) == {_TUPLE} else value

            state: dict[str, Any] = json.loads(file.metadata()[_KEY], object_hook=restored)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise OptionError(
            f"{path} is no checkpoint of a training ({error}): give the directory of one, or train"
            " anew in another"
        ) from error
    return state


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, with names; nothing of one that is not."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from ((str(at), one) for at, one in enumerate(value))


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    for key, part in _parts(value):
        yield from _tensors(part, f"{name}/{key}")


def _named(value: Any, name: str) -> Any:
    """The value with each tensor's name in its place."""
    if isinstance(value, Tensor):
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {key: _named(part, f"{name}/{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_named(part, f"{name}/{at}") for at, part in enumerate(value)]
        return {_TUPLE: parts} if isinstance(value, tuple) else parts
    return value
