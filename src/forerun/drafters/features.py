"""A drafter that reads its target's features: block drafters and EAGLE-3 heads alike.

Knows a `FeatureBackend`, its K/V blocks and what the engine hands over of the target. What the
target has not read cannot be drafted from, so a row drafts once it has features of all its tokens
but the pending one:

    tokens       0 ………………… base-1 | accepted …, bonus
    features     0 ………………… base-1 | waiting …          of the bonus there are none yet
    its K/V      0 ………………… base-1 |                    the next proposal takes in what waits

Turning features into K/V takes time, which is lost where nothing is drafted; so they wait, within
`MOST_WAITING_BYTES`, to be read beside the prompt or by a proposal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import CHUNK
from forerun.backends.prefixes import Prefixes
from forerun.backends.slots import Slots, blocks_for
from forerun.draft import Commit, Draft
from forerun.drafters.margins import Margins
from forerun.drafters.plain import plain_draft
from forerun.drafters.pricing import priced
from forerun.errors import CapacityError
from forerun.forecast import ForeseesFeatures, forecast_plan
from forerun.models.drafter_spec import BlockSpec, DrafterSpec
from forerun.protocols import (
    BLOCK_LEN,
    DraftRow,
    FeatureBackend,
    Growth,
    GrowthPlan,
    Outlook,
    Prices,
)
from forerun.stats import Span

FREE_SLOTS = 8  # of a block, fed however few are asked for: a pass takes as long for one
LONGEST_WAIT = 32  # tokens a proposal takes in itself; more are taken in before it, in chunks
MOST_WAITING_BYTES = 128 << 20  # of features of all sequences, each of which has an equal share


@dataclass(slots=True, eq=False)
class _Progress:
    """How far the drafter has come with one sequence: the features of the first `committed` of its
    `tokens` are K/V, those of the next `num_waiting` wait. It owns blocks for `num_reserved`
    positions. `num_known`: tokens whose K/V an earlier text left, and whose features are yet to be
    handed over again. `partition`: whose kept texts its own is among. `has_begun`: whether its
    first round is over. `newest`: the features of the last committed token. `last`: what it
    proposed, and whether for a greedy row."""

    tokens: list[int]
    num_reserved: int
    committed: int = 0
    num_known: int = 0
    partition: str | None = None
    has_begun: bool = False
    num_waiting: int = 0
    waiting: list[NDArray[np.float32]] = field(default_factory=list)
    newest: NDArray[np.float32] | None = None
    last: tuple[Draft, bool] | None = None


class Featured:
    """Drafts `growth` with a backend of its own, at most `num_levels` deep and no deeper than the
    drafter can; by `prices`, where there are some, no more than pays. `span` sums the seconds of
    that backend's calls. Closing it closes the backend.
    """

    def __init__(
        self,
        backend: FeatureBackend,
        num_levels: int,
        span: Span,
        growth: Growth,
        prices: Prices | None = None,
        most_waiting_bytes: int = MOST_WAITING_BYTES,
    ) -> None:
        self._backend = backend
        self._most_waiting_bytes = most_waiting_bytes
        self.num_levels = min(num_levels, deepest(backend.spec))
        self._span = span
        self._growth = growth
        self._prices = prices
        self._num_fed = slots_fed(backend.spec, self.num_levels)
        self._margins = Margins()
        self._slots = Slots(backend.num_blocks)
        self._texts = Prefixes(self._slots)
        self._progress: dict[int, _Progress] = {}

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """The target layers that its spec names."""
        return self._backend.spec.tap_layers

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Own room for the prompt; its features come later.

        Raises:
            CapacityError: the prompt does not fit the drafter's context or K/V memory.
        """
        self.begin(sequence_id, prompt)

    def begin(self, sequence_id: int, prompt: Sequence[int], partition: str | None = None) -> None:
        """As `admit`; what was taken in of an earlier text of the same partition is not taken in
        again, if it has one."""
        num_known, kept_for = 0, partition if self._is_exact else None
        if kept_for is not None:
            num_known = self._texts.begin(kept_for, prompt, sequence_id)
        num_reserved = self._reserve(sequence_id, len(prompt) + self.num_levels)
        self._progress[sequence_id] = _Progress(
            list(prompt), num_reserved, num_known, num_known, kept_for
        )

    def absorb(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """Take in the features `[M, F]` of the next M tokens of a prompt."""
        progress = self._progress.get(sequence_id)
        if progress is not None:
            self._take(sequence_id, progress, features)

    def num_unread(self, sequence_id: int, num_tokens: int) -> int:
        """How many tokens wait that a proposal would not take in itself; none while it pauses."""
        progress = self._progress.get(sequence_id)
        if progress is None or not self._is_exact or self._is_paused:
            return 0
        if progress.num_waiting <= LONGEST_WAIT:
            return 0
        return min(progress.num_waiting, num_tokens - progress.committed) - 1

    def read(self, sequence_id: int, tokens: Sequence[int], most: int) -> int:
        """Turn the features of at most so many tokens that wait into K/V: how many it were."""
        count = min(most, self.num_unread(sequence_id, len(tokens)))
        if count <= 0:
            return 0
        progress = self._progress[sequence_id]
        start = progress.committed
        self._read_first(sequence_id, progress, count)
        if progress.partition is not None and progress.committed > start:
            self._texts.keep(progress.partition, tokens[: progress.committed], sequence_id)
        return progress.committed - start

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One draft a row in one backend call; none for rows without features or without room."""
        ready = [] if self._is_paused else [row for row in rows if self._is_ready(row)]
        if not ready:
            return [plain_draft(row.tokens[-1]) for row in rows]
        drafts = self._grown(ready)
        if len(ready) == len(rows):
            return drafts
        made = dict(zip((row.sequence_id for row in ready), drafts, strict=True))
        return [made.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        """Each draft grown further, without the features of what it drafts: they do not exist yet.
        A row for which nothing waits is read its newest token once more. Draws of a sampled rule
        are not made here: those it would judge need the features."""
        grown = list(drafts)
        if self._growth.draw.is_sampled or not isinstance(self._backend, ForeseesFeatures):
            return grown
        deepest_draft = max(int(draft.tree.depths().max()) for draft in drafts)
        ready = [at for at, row in enumerate(rows) if self._can_foresee(row, deepest_draft + 1)]
        if not ready:
            return grown
        asked = [rows[at] for at in ready]
        plan = forecast_plan(self._plan(asked), drafts, outlook, ready, self.num_levels)
        with self._span:
            made = self._backend.foresee(plan, self._features(asked))
        for at, draft in zip(ready, made, strict=True):
            self._settle(rows[at], draft)
            grown[at] = draft
        return grown

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Learn what was kept of the last proposal, and take in the features of the round."""
        progress = self._progress.get(sequence_id)
        if progress is None:
            return
        last, progress.last = progress.last, None
        if last is not None:
            self._margins.learn(last[0], commit, is_greedy=last[1])
        progress.has_begun = True
        progress.tokens += commit.tokens
        if commit.features is not None:
            self._take(sequence_id, progress, commit.features)

    def release(self, sequence_id: int) -> None:
        """Give back the sequence's blocks."""
        self._slots.release(sequence_id)
        self._progress.pop(sequence_id, None)

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()

    def _take(self, sequence_id: int, progress: _Progress, features: NDArray[np.float32]) -> None:
        """Let features wait, as many as a sequence may keep, but for those that are K/V already."""
        num_known = min(progress.num_known, len(features))
        progress.num_known -= num_known
        features = features[num_known:]
        if not len(features):
            return
        progress.waiting.append(features)
        progress.num_waiting += len(features)
        num_bytes = progress.num_waiting * self._backend.spec.feature_width * features.itemsize
        if num_bytes * len(self._progress) > self._most_waiting_bytes:
            self._read_waiting(sequence_id, progress)

    @property
    def _is_exact(self) -> bool:
        """Whether it may matter to no draft when, in which chunks or in which text it was read.
        Elsewhere it could, and a sampled rule's draws may not depend on who else asks."""
        return self._backend.exactness == "bits"

    @property
    def _is_paused(self) -> bool:
        return self._prices is not None and self._prices.is_paused

    def _read_waiting(self, sequence_id: int, progress: _Progress) -> None:
        """Take in what waits, if it is much, but for the last: what follows the last is what a
        proposal is asked for."""
        if progress.num_waiting > LONGEST_WAIT:
            self._read_first(sequence_id, progress, progress.num_waiting - 1)

    def _read_first(self, sequence_id: int, progress: _Progress, count: int) -> None:
        """Take in the first `count` of what waits, where there is room for the sequence."""
        if not self._has_room(sequence_id, progress):
            return
        waiting = _joined(progress.waiting)
        for start in range(0, count, CHUNK):
            end = min(start + CHUNK, count)
            self._read(sequence_id, progress, waiting[start:end])
            progress.waiting = [waiting[end:]]
            progress.num_waiting -= end - start
        progress.waiting = [waiting[count:].copy()]

    def _read(self, sequence_id: int, progress: _Progress, features: NDArray[np.float32]) -> None:
        """Turn the features of the next tokens into K/V."""
        end = progress.committed + len(features)
        with self._span:
            self._backend.absorb(
                np.array(progress.tokens[progress.committed : end + 1], np.int32),
                np.array([0, len(features) + 1], np.int32),
                np.array([progress.committed], np.int32),
                self._slots.table([sequence_id]),
                features,
            )
        progress.committed = end

    def _is_ready(self, row: DraftRow) -> bool:
        """Whether a row can draft: it has features of all tokens but the pending one, and room.

        No row does in its first round: how much of a prompt that round still reads depends on who
        else is new, and under sampled rules a seed must give the same tokens in any company.
        """
        progress = self._progress.get(row.sequence_id)
        if row.max_drafted < 1 or progress is None or not progress.has_begun:
            return False
        if progress.committed + progress.num_waiting != len(row.tokens) - 1:
            return False
        return progress.num_waiting > 0 and self._has_room(row.sequence_id, progress)

    def _can_foresee(self, row: DraftRow, num_more: int) -> bool:
        """As `_is_ready`; a token whose features were taken in already may be taken back."""
        progress = self._progress.get(row.sequence_id)
        if progress is None or not progress.has_begun or row.max_drafted < 1:
            return False
        if progress.num_waiting == 0 and progress.newest is not None:
            progress.waiting, progress.num_waiting = [progress.newest], 1
            progress.committed -= 1
        has_all = progress.committed + progress.num_waiting == len(row.tokens) - 1
        return has_all and self._has_room(row.sequence_id, progress, num_more)

    def _has_room(self, sequence_id: int, progress: _Progress, num_more: int = 0) -> bool:
        """Own blocks for the text and all that is fed below it, `num_more` levels in between; a
        sequence that outgrew them is let go.

        How many slots of a block are fed is seen in what it drafts. Where the blocks ended, the
        table of a row in company would end later, or lead into blocks of somebody else.
        """
        text_len = len(progress.tokens) + num_more
        limit = self._backend.spec.body.max_position
        needed = max(text_len + self.num_levels, min(text_len - 1 + self._num_fed, limit))
        if needed <= progress.num_reserved:
            return True
        try:
            progress.num_reserved = self._reserve(sequence_id, needed)
        except CapacityError:
            self.release(sequence_id)
            return False
        return True

    def _reserve(self, sequence_id: int, num_positions: int) -> int:
        """Own whole blocks for so many positions; how many they hold within its context."""
        limit = self._backend.spec.body.max_position
        if num_positions > limit:
            raise CapacityError(
                f"{num_positions} positions of text and draft, the drafter's context has {limit}"
            )
        self._slots.reserve(sequence_id, num_positions)
        return min(blocks_for(num_positions) * BLOCK_LEN, limit)

    def _grown(self, rows: Sequence[DraftRow]) -> list[Draft]:
        plan = self._plan(rows)
        with self._span:
            drafts = self._backend.grow(plan, self._features(rows))
        for row, draft in zip(rows, drafts, strict=True):
            self._settle(row, draft)
        return drafts

    def _features(self, rows: Sequence[DraftRow]) -> NDArray[np.float32]:
        """What waits of all rows."""
        ready = [self._progress[row.sequence_id] for row in rows]
        return _joined([some for progress in ready for some in progress.waiting])

    def _settle(self, row: DraftRow, draft: Draft) -> None:
        """What waited is K/V now."""
        progress = self._progress[row.sequence_id]
        progress.committed += progress.num_waiting
        progress.newest = progress.waiting[-1][-1:]
        progress.waiting, progress.num_waiting = [], 0
        progress.last = draft, row.sampler.params.temperature == 0

    def _plan(self, rows: Sequence[DraftRow]) -> GrowthPlan:
        for row in rows:
            self._read_waiting(row.sequence_id, self._progress[row.sequence_id])
        committed = [self._progress[row.sequence_id].committed for row in rows]
        unread = [row.tokens[seen:] for row, seen in zip(rows, committed, strict=True)]
        depths = [min(self.num_levels, row.max_depth, row.max_drafted) for row in rows]
        plan = GrowthPlan(
            catch_up=np.array([token for tokens in unread for token in tokens], np.int32),
            catch_up_starts=np.array([*accumulate(map(len, unread), initial=0)], np.int32),
            committed=np.array(committed, np.int32),
            block_table=self._slots.table([row.sequence_id for row in rows]),
            samplers=[row.sampler for row in rows],
            budgets=np.array([row.max_drafted for row in rows], np.int32),
            depths=np.array(depths, np.int32),
            growth=self._growth,
            acceptance=self._margins.of(rows),
            is_told=any(row.is_watched for row in rows),
        )
        return priced(plan, rows, self._prices)


def slots_fed(spec: DrafterSpec, num_levels: int) -> int:
    """Positions from the pending token on that a backend computes for so many levels."""
    return max(num_levels, min(spec.block_len, FREE_SLOTS)) if isinstance(spec, BlockSpec) else 0


def deepest(spec: DrafterSpec) -> int:
    """Most levels that a drafter can fill below the pending token."""
    return spec.max_drafted if isinstance(spec, BlockSpec) else spec.body.max_position


def _joined(some: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return some[0] if len(some) == 1 else np.concatenate(some)
