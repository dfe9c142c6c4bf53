"""Turn a missing training package into a sentence that names the extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from forerun.errors import BackendError

EXTRA_PACKAGES = {"torch": "torch", "matplotlib": "train"}


@contextmanager
def needed_extras() -> Iterator[None]:
    """Raises BackendError where a package of an extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRA_PACKAGES.get(error.name or "")
        if extra is None:
            raise
        raise BackendError(
            f"training needs the package {error.name}: pip install 'forerun[{extra}]'"
        ) from None
