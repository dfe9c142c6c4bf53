"""What a drafter was told of its target's features, to be told again once it has lost them.

A target computes the features of a token once. A drafter that broke in the middle of a text can
read the tokens anew, but not those; so they are kept here, as they came, within `most_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 256 << 20  # of all sequences together


class Told:
    """Every sequence's features, in order and without a gap, or nothing of it at all."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._num_bytes = 0
        self._parts: dict[int, list[NDArray[np.float32]]] = {}

    def begin(self, sequence_id: int) -> None:
        """Keep what comes of this sequence."""
        self.forget(sequence_id)
        self._parts[sequence_id] = []

    def add(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """The features `[M, F]` of its next M tokens; no longer any of it where there is no room,
        for a text with a gap is of no use."""
        parts = self._parts.get(sequence_id)
        if parts is None:
            return
        if self._num_bytes + features.nbytes > self._most_bytes:
            self.forget(sequence_id)
            return
        self._num_bytes += features.nbytes
        parts.append(features)

    def of(self, sequence_id: int) -> Sequence[NDArray[np.float32]]:
        """All that was told of a sequence, in order."""
        return tuple(self._parts.get(sequence_id, ()))

    def forget(self, sequence_id: int) -> None:
        """Keep nothing of a sequence."""
        for features in self._parts.pop(sequence_id, ()):
            self._num_bytes -= features.nbytes
