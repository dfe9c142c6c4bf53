"""Where drafts begin in the windows of a step: random places, a pure function of seed and step.

Knows arrays. Must not know models. An anchor is the position of a pending token: a draft from it
reads what is before it and foretells what comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun.train.batches import Batches
from forerun.train.text import Text

Anchors: TypeAlias = NDArray[np.int64]
Slots: TypeAlias = NDArray[np.int64]
Anchored: TypeAlias = tuple[NDArray[np.int64], Anchors, NDArray[np.int64], Slots]

CORPUS_EVERY = 4  # steps of which one reads the corpus, where there is one


class Anchoring(Protocol):
    """The batch of a step."""

    def at(self, step: int) -> Anchored:
        """Windows `[B T+1]`, anchors `[B A]` in rising order, `[B]` where each text ends, and the
        slots `[Q]` of each draft that are filled, counted from the anchor."""
        ...


def draw_anchors(spans: NDArray[np.int64], num_anchors: int, seed: int, step: int) -> Anchors:
    """`[B num_anchors]` positions in spans `[B 2]` whose next token is in the span too, rising.

    None comes twice unless the span is shorter than that. Position 0 is no anchor: nothing is
    before it.
    """
    random = np.random.default_rng((seed, 1 << 35, step))
    rows = []
    for first, end in spans.tolist():
        places = np.arange(max(first, 1), max(end - 1, max(first, 1) + 1))
        again = len(places) < num_anchors
        rows.append(np.sort(random.choice(places, num_anchors, replace=again)))
    return np.stack(rows)


@dataclass(frozen=True, slots=True)
class AnchoredText:
    """Windows of the target's own text, and now and then of the corpus, with their anchors.

    Every `CORPUS_EVERY`-th step reads the corpus; some of its windows are four or eight times as
    long, so that drafts far into a text are learned too. A step has about as many anchors whatever
    the length of its windows, twice as many a window at most. The first `dense_steps` have only the
    `first_slots` first slots of each draft, and as many more drafts: a draft is kept only as far as
    its beginning, and the beginning teaches to read the features several times as fast.
    """

    text: Text
    num_rows: int
    num_anchors: int
    num_slots: int
    seed: int
    corpus: Batches | None = None
    dense_steps: int = 0
    first_slots: int = 1

    def at(self, step: int) -> Anchored:
        """The batch of `step`; see `Anchoring`."""
        if self.corpus is not None and step % CORPUS_EVERY == CORPUS_EVERY - 1:
            return self._anchored(*self._from_corpus(step // CORPUS_EVERY), step)
        turn = step - step // CORPUS_EVERY if self.corpus is not None else step
        chosen = self._order(turn)
        windows = self.text.rows[chosen].astype(np.int64)
        return self._anchored(windows, self.text.spans[chosen].astype(np.int64), step)

    def _from_corpus(self, turn: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.corpus is not None
        windows = self.corpus.at(turn)
        return windows, np.tile(np.array([1, windows.shape[1]]), (len(windows), 1))

    def _anchored(
        self, windows: NDArray[np.int64], spans: NDArray[np.int64], step: int
    ) -> Anchored:
        num_anchors, num_slots = self.num_anchors, self.num_slots
        if step < self.dense_steps:
            most = 3 * self.text.rows.shape[1] // 4
            num_anchors = min(most, num_anchors * num_slots // self.first_slots)
            num_slots = self.first_slots
        num_anchors *= min(2, max(1, self.num_rows // len(windows)))
        anchors = draw_anchors(spans, num_anchors, self.seed, step)
        return windows, anchors, np.ascontiguousarray(spans[:, 1]), np.arange(num_slots)

    def _order(self, turn: int) -> NDArray[np.int64]:
        """The rows of a turn: every epoch is another permutation of all of them."""
        count = len(self.text.rows)
        flat = np.arange(turn * self.num_rows, (turn + 1) * self.num_rows)
        epochs = {int(at) // count for at in flat}
        orders = {
            epoch: np.random.default_rng((self.seed, 1 << 33, epoch)).permutation(count)
            for epoch in epochs
        }
        return np.array([orders[int(at) // count][at % count] for at in flat])
