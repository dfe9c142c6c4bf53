"""What a forward pass is: backends by name, loaded only when asked for."""

from __future__ import annotations

import importlib.util
from typing import Any, cast

from forerun.backends.memory import available_bytes
from forerun.backends.slots import blocks_for
from forerun.errors import BackendError, OptionError
from forerun.models.drafter_files import DrafterCheckpoint
from forerun.models.spec import ModelSpec
from forerun.models.weights import Checkpoint
from forerun.options import EngineOptions
from forerun.protocols import Backend, FeatureBackend

_MOST_FULL_ROWS = 16  # K/V memory for so many rows of the model's longest context is plenty


def open_backend(
    checkpoint: Checkpoint,
    options: EngineOptions,
    cores: tuple[int, ...] | None,
    weights: Any = None,
) -> Backend:
    """The backend that `options` name, with the checkpoint's weights, on these cores; `weights` are
    those of another one opened alike, to be shared (`sharing.py`).

    Raises:
        BackendError: this machine or installation lacks what the backend needs.
        OptionError: options that the backend cannot honour.
    """
    name = options.backend if options.backend != "auto" else _best(options)
    if name == "native":
        return _open_native(checkpoint, options, cores, weights)
    return _open_torch(checkpoint, options, cores, weights)


def open_feature_backend(
    checkpoint: DrafterCheckpoint,
    target: Backend,
    options: EngineOptions,
    cores: tuple[int, ...] | None,
    weights: Any = None,
) -> FeatureBackend:
    """A drafter that reads `target`'s features, on the target's own kind of backend; `weights` as
    `open_backend`.

    Raises:
        BackendError: this installation lacks what it needs.
    """
    positions = options.kv_positions or default_positions(checkpoint.spec.body, 4)
    num_blocks = min(blocks_for(positions), target.num_blocks)
    if target.numerics.startswith("torch"):
        from forerun.backends.torch.backend import TorchBackend
        from forerun.backends.torch.features import TorchFeatureBackend

        beside = cast("TorchBackend", target)
        return TorchFeatureBackend.beside(checkpoint, beside, num_blocks, weights)
    try:
        from forerun.backends.native import NativeBackend
        from forerun.backends.native_features import NativeFeatureBackend
    except ImportError as error:
        raise BackendError(
            f"the native core has no drafters that read features ({error}): reinstall forerun, or"
            " use backend='torch'"
        ) from error
    native = cast("NativeBackend", target)
    return NativeFeatureBackend(
        checkpoint, native, num_blocks=num_blocks, cores=cores, weights=weights
    )


def default_positions(spec: ModelSpec, num_value_bytes: int) -> int:
    """K/V positions that a quarter of the free memory holds, at most those of 16 full contexts."""
    bytes_per_position = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * num_value_bytes
    affordable = available_bytes() // 4 // bytes_per_position
    return max(1, min(_MOST_FULL_ROWS * spec.max_position, affordable))


def _best(options: EngineOptions) -> str:
    wants_torch = options.device != "cpu" or options.dtype != "auto"
    if not wants_torch and importlib.util.find_spec("forerun._native") is not None:
        return "native"
    if importlib.util.find_spec("torch") is not None:
        return "torch"
    raise BackendError(
        "no backend is installed: this build has no native core (it needs an x86-64 CPU and a C++"
        " compiler when installing); or install the extra: pip install 'forerun[torch]'"
    )


def _open_native(
    checkpoint: Checkpoint, options: EngineOptions, cores: tuple[int, ...] | None, weights: Any
) -> Backend:
    if options.device != "cpu" or options.dtype != "auto":
        raise OptionError(
            "the native backend computes bf16 on the CPU, and float32 with isa='float32-portable';"
            f" for device={options.device!r}, dtype={options.dtype!r} use backend='torch'"
        )
    try:
        from forerun.backends.native import NativeBackend, value_bytes
    except ImportError as error:
        raise BackendError(
            f"the native core is not built ({error}): reinstall forerun on an x86-64 machine with a"
            " C++ compiler, or use backend='torch'"
        ) from error
    isa = None if options.isa == "auto" else options.isa
    positions = options.kv_positions or default_positions(checkpoint.spec, value_bytes(isa))
    return NativeBackend(
        checkpoint, cores=cores, num_blocks=blocks_for(positions), isa=isa, weights=weights
    )


def _open_torch(
    checkpoint: Checkpoint, options: EngineOptions, cores: tuple[int, ...] | None, weights: Any
) -> Backend:
    if options.isa != "auto":
        raise OptionError(f"isa={options.isa!r} is for the native backend; the torch one has none")
    try:
        from forerun.backends.torch.backend import TorchBackend
    except ImportError as error:
        raise BackendError(
            f"the torch backend needs PyTorch ({error}): pip install 'forerun[torch]'"
        ) from error
    dtype = "float32" if options.dtype == "auto" else options.dtype
    num_bytes = {"float32": 4, "float64": 8, "bfloat16": 2}[dtype]
    positions = options.kv_positions or default_positions(checkpoint.spec, num_bytes)
    return TorchBackend(
        checkpoint,
        device=options.device,
        dtype=dtype,
        num_blocks=blocks_for(positions),
        num_threads=len(cores) if cores else None,
        weights=weights,
    )
