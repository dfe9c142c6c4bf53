"""Models that are open: weights of the same files are packed once, whoever reads them.

Knows what tells one packing from another, and that weights go with the last backend that reads
them. Must not know what the backends are for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar, cast
from weakref import WeakValueDictionary, ref

from forerun.backends import open_backend, open_feature_backend
from forerun.models.drafter_files import DrafterCheckpoint
from forerun.models.weights import Checkpoint
from forerun.options import EngineOptions
from forerun.protocols import Backend, FeatureBackend

Cores = tuple[int, ...] | None
_Opened = TypeVar("_Opened")


class Weights(Protocol):
    """What backends share: nothing changes it."""

    @property
    def num_bytes(self) -> int: ...


class _Reading(Protocol):
    """What every backend here has beside its contract."""

    @property
    def weights(self) -> Weights: ...


class OpenModels:
    """Opens backends: each has K/V blocks, workspace and threads of its own, and those of the same
    files on the same cores with the same options read the same weights.

    May be asked from any thread; a model that is asked for twice at once is packed once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weights: WeakValueDictionary[Hashable, Weights] = WeakValueDictionary()
        # All of them, whether they are found again or not: whoever counts waits for no packing.
        self._live: tuple[ref[Weights], ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory for all weights that an open backend reads; shared ones count once."""
        held = [one() for one in self._live]
        return sum(weights.num_bytes for weights in held if weights is not None)

    def model(self, checkpoint: Checkpoint, options: EngineOptions, cores: Cores) -> Backend:
        """A backend as `open_backend` opens it.

        Raises:
            BackendError, CapacityError, ModelError, OptionError: as there.
        """
        origin = _origin(options, cores), checkpoint.spec, _stamps(checkpoint.buffers)
        return self._shared(origin, lambda ready: open_backend(checkpoint, options, cores, ready))

    def features(
        self, checkpoint: DrafterCheckpoint, target: Backend, options: EngineOptions, cores: Cores
    ) -> FeatureBackend:
        """A drafter as `open_feature_backend` opens it; shared beside the same target's weights.

        Raises:
            BackendError, CapacityError: as there.
        """
        lent = cast("_Reading", target).weights
        files = _stamps(checkpoint.stored.buffers)
        origin = _origin(options, cores), checkpoint.spec, checkpoint.layout, files, lent
        return self._shared(
            origin, lambda ready: open_feature_backend(checkpoint, target, options, cores, ready)
        )

    def _shared(self, origin: Hashable, opener: Callable[[Weights | None], _Opened]) -> _Opened:
        with self._lock:
            opened = opener(self._weights.get(origin))
            weights = cast("_Reading", opened).weights
            self._weights[origin] = weights
            others = (one for one in self._live if one() not in (None, weights))
            self._live = (*others, ref(weights))
        return opened


def _origin(options: EngineOptions, cores: Cores) -> Hashable:
    """What of the options weights depend on: how much K/V memory there is says nothing of them."""
    return replace(options, kv_positions=None), cores


def _stamps(files: Iterable[Path]) -> Hashable:
    """Which files these are: others written under the same names are another model."""
    stats = [(file.resolve(), file.stat()) for file in sorted(files)]
    return tuple((file, one.st_ino, one.st_size, one.st_mtime_ns) for file, one in stats)
