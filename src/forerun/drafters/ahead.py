"""Asking a drafter beyond the verdict: what a decoder that runs ahead may assume of it.

Such a decoder proposes, judges and proposes again before anybody knows whether its tokens stay:

    observed      t0 … t9
    asked for     t0 … t9 a b c     `settle((a, b, c))`, and again below c
    the verdict   t0 … t9 a x       `rewind(t0 … t9 a)`, `observe((a, x))`

So a proposal may be asked for more tokens than were observed. A drafter that learns from `observe`
alone has nothing to undo; one that keeps what it read, as a model keeps K/V, is told what is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from forerun.draft import Commit
from forerun.protocols import Drafter, Sampler


@runtime_checkable
class Ahead(Protocol):
    """A drafter that can be asked ahead without reading anything twice."""

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """What was kept of the last proposal, by a decoder whose tokens may be taken back."""

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Of what was read of a sequence only `tokens`, its beginning, still stands."""


def settle(drafter: Drafter, sequence_id: int, commit: Commit) -> None:
    """Tell a drafter what was kept for now; one that cannot go back only learns the verdict."""
    if isinstance(drafter, Ahead):
        drafter.settle(sequence_id, commit)


def rewind(drafter: Drafter, sequence_id: int, tokens: Sequence[int]) -> None:
    """Take a drafter back to `tokens`; one that cannot go back reads them again."""
    if isinstance(drafter, Ahead):
        drafter.rewind(sequence_id, tokens)
        return
    drafter.release(sequence_id)
    drafter.admit(sequence_id, tokens)


def sampler_after(sampler: Sampler, chosen: Sequence[int]) -> Sampler:
    """The sampler once these tokens are part of the output; only penalties look at them."""
    if not chosen or not sampler.params.has_penalties:
        return sampler
    counts = dict(zip(sampler.output_ids.tolist(), sampler.output_counts.tolist(), strict=True))
    together = Counter(counts) + Counter(chosen)
    return Sampler(
        sampler.params,
        sampler.seed,
        sampler.prompt_ids,
        np.fromiter(together.keys(), np.int32, len(together)),
        np.fromiter(together.values(), np.int32, len(together)),
    )
