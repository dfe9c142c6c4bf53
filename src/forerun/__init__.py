"""forerun: same tokens, sooner. Public names only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forerun.errors import (
    BackendError,
    CapacityError,
    DrafterError,
    EngineClosed,
    ForerunError,
    GrammarError,
    IncompatibleSpeculation,
    ModelError,
    OptionError,
)
from forerun.options import SamplingParams, Speculation

if TYPE_CHECKING:
    __version__: str
    from forerun.engine.engine import Completion, Engine, Pattern, Piece

__all__ = [
    "BackendError",
    "CapacityError",
    "Completion",
    "DrafterError",
    "Engine",
    "EngineClosed",
    "ForerunError",
    "GrammarError",
    "IncompatibleSpeculation",
    "ModelError",
    "OptionError",
    "Pattern",
    "Piece",
    "SamplingParams",
    "Speculation",
    "__version__",
]

_LAZY = {"Completion", "Engine", "Pattern", "Piece"}


def __getattr__(name: str) -> object:
    """Load the engine when it is asked for: the command line must answer `--help` at once."""
    if name == "__version__":
        return _version()
    if name in _LAZY:
        from forerun.engine import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'forerun' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("forerun")
    except PackageNotFoundError:  # run from a source tree
        return "0.0.0"
