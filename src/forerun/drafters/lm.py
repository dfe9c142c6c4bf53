"""A small language model with the target's vocabulary, drafting chains and trees.

Knows its own backend and K/V blocks. A proposal reads the tokens it has not seen and drafts below
them, all in one backend call. Of a coupled chain nothing is ever undone:

    tokens       0 ………………… base-1 | accepted …, bonus
    its K/V      0 ………………… base-1 | drafted …, all but the last

After a verdict the K/V is valid as far as both lines agree; that is its committed length. Of a tree
the kept path's K/V is moved behind the text; a leaf that was not read rides in the next proposal.
Of a forecast the branch that came is not read again by the next one (`carrying.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from forerun.backends.prefill import CHUNK, prefill
from forerun.backends.prefixes import Prefixes
from forerun.backends.slots import Slots, blocks_for
from forerun.draft import Commit, Draft, Draw
from forerun.drafters.asking import foresee_by_asking
from forerun.drafters.carrying import Kept, computed_path, winner_of
from forerun.drafters.margins import Margins
from forerun.drafters.plain import plain_draft
from forerun.drafters.pricing import priced
from forerun.errors import CapacityError
from forerun.forecast import (
    Carried,
    Carries,
    ForeseesDraws,
    ForeseesText,
    forecast_plan,
    given_plan,
    subtree,
)
from forerun.protocols import (
    BLOCK_LEN,
    Backend,
    DraftRow,
    Growth,
    GrowthPlan,
    Outlook,
    Prices,
    ProposalPlan,
    Sampler,
)
from forerun.stats import Span
from forerun.tree import Tokens, TokenTree

_COUPLED = Draw.COUPLED  # looked up once: an enum's member is found by a slow call

_CHAIN = Growth(_COUPLED)  # grown level by level: the same tokens as a chain proposed at once

LONGEST_CATCH_UP = 32  # unseen tokens a proposal reads itself; more are read in chunks before it
MOST_READ = CHUNK  # tokens of all rows' texts that are so read for a round: others wait meanwhile


@dataclass(frozen=True, slots=True, eq=False)
class _Grown:
    """A row's last tree, and which row of which proposal it was."""

    plan: GrowthPlan
    row: int
    draft: Draft
    is_forecast: bool = False

    @property
    def num_known(self) -> int:
        """Tokens of the text it was made for."""
        start, end = self.plan.catch_up_starts[self.row : self.row + 2]
        return int(self.plan.committed[self.row]) + int(end - start)


@dataclass(slots=True, eq=False)
class _Progress:
    """How far the small model has come with one sequence: `committed` tokens have valid K/V, and
    after them lie those of `drafted` (its last proposal, made when `committed` tokens were known).
    It owns blocks for `num_reserved` positions. `partition`: whose kept texts its own is among.
    `kept`: what need not be read again of its next draft.
    """

    num_reserved: int
    committed: int = 0
    drafted: list[int] = field(default_factory=list)
    grown: _Grown | None = None
    partition: str | None = None
    kept: Kept | None = None

    def settle(self, tokens: Sequence[int]) -> None:
        """Keep the K/V of drafted tokens that the sequence really has; the last has none. The
        pending token is read again in any case: what follows it is what is asked for."""
        base = self.committed
        for kept, drafted in zip(tokens[base:-1], self.drafted[:-1], strict=False):
            if kept != drafted:
                break
            self.committed += 1
        self.drafted = []


class LM:
    """Drafts with a backend of its own; `span` sums the seconds of that backend's calls.

    Without a `growth` it drafts coupled chains of `num_levels`; with one, trees at most so deep,
    and by `prices`, where there are some, no more of them than pays.
    """

    def __init__(
        self,
        backend: Backend,
        num_levels: int,
        span: Span,
        growth: Growth | None = None,
        prices: Prices | None = None,
    ) -> None:
        self._backend = backend
        self._num_steps = num_levels
        self._span = span
        self._growth = growth
        self._prices = prices
        self._margins = Margins()
        self._slots = Slots(backend.num_blocks)
        self._texts = Prefixes(self._slots)
        self._progress: dict[int, _Progress] = {}
        self._room_to_read = MOST_READ

    @property
    def backend(self) -> Backend:
        """What runs the small model."""
        return self._backend

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Read the prompt.

        Raises:
            CapacityError: the prompt does not fit the small model's context or K/V memory.
        """
        self.begin(sequence_id, prompt)
        self.read(sequence_id, prompt, len(prompt))

    def begin(self, sequence_id: int, prompt: Sequence[int], partition: str | None = None) -> None:
        """Own room for the prompt and read nothing: the first proposal reads what is left. What
        was read of an earlier text of the same partition is not read again, if it has one.

        Raises:
            CapacityError: as `admit`.
        """
        limit = self._backend.spec.max_position
        if len(prompt) >= limit:
            raise CapacityError(f"{len(prompt)} tokens of prompt, the drafter's limit is {limit}")
        num_known = 0
        # Where two ways of computing a token may differ, none may depend on what others asked.
        kept_for = partition if self._backend.exactness == "bits" else None
        if kept_for is not None:
            num_known = self._texts.begin(kept_for, prompt, sequence_id)
        num_reserved = self._reserve(sequence_id, len(prompt) + self._num_steps)
        self._progress[sequence_id] = _Progress(num_reserved, num_known, partition=kept_for)

    def num_unread(self, sequence_id: int, num_tokens: int) -> int:
        """How many of a sequence's first tokens, the pending one apart, are not read."""
        progress = self._progress.get(sequence_id)
        return 0 if progress is None else max(0, num_tokens - 1 - progress.committed)

    def read(self, sequence_id: int, tokens: Sequence[int], most: int) -> int:
        """Read at most so many of the next tokens, the last of all never: how many it were."""
        progress = self._progress.get(sequence_id)
        if progress is None:
            return 0
        start = progress.committed
        until = min(start + most, len(tokens) - 1)
        if until <= start:
            return 0
        self._read(sequence_id, progress, tokens, until)
        if progress.partition is not None:
            self._texts.keep(progress.partition, tokens[:until], sequence_id)
        return until - start

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One chain a row; nothing for rows without room, in one backend call for all others."""
        is_paused = self._prices is not None and self._prices.is_paused
        self._room_to_read = MOST_READ
        drafting = [] if is_paused else [row for row in rows if self._prepare(row)]
        if not drafting:
            return [plain_draft(row.tokens[-1]) for row in rows]
        # A chain proposed at once has neither margins nor chances to show.
        is_grown = self._growth is not None or any(row.is_watched for row in drafting)
        drafts = self._trees(drafting) if is_grown else self._chains(drafting)
        if len(drafting) == len(rows):
            return drafts
        made = dict(zip((row.sequence_id for row in drafting), drafts, strict=True))
        return [made.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def foresee(
        self, rows: Sequence[DraftRow], drafts: Sequence[Draft], outlook: Outlook
    ) -> list[Draft]:
        """Each draft grown further, all in one backend call; draws of sampled rules a few outcomes
        a call, and by a backend that cannot grow on one by one."""
        growth = self._growth or _CHAIN
        if growth.draw.is_sampled or not isinstance(self._backend, ForeseesText):
            is_able = growth.draw.is_sampled and isinstance(self._backend, ForeseesDraws)
            together = self._below_outcomes if is_able else None
            return foresee_by_asking(self, rows, drafts, outlook, together)
        self._room_to_read = MOST_READ
        ready = [
            at
            for at, (row, draft) in enumerate(zip(rows, drafts, strict=True))
            if self._prepare(row, int(draft.tree.depths().max()) + 1)
        ]
        grown = list(drafts)
        if not ready:
            return grown
        text = self._growth_plan([rows[at] for at in ready], growth)
        carried = [self._carried(rows[at], drafts[at]) for at in ready]
        plan = forecast_plan(text, drafts, outlook, ready, self._num_steps, carried)
        with self._span:
            made = self._backend.foresee(plan)
        for index, (at, draft) in enumerate(zip(ready, made, strict=True)):
            progress = self._progress[rows[at].sequence_id]
            progress.committed = len(rows[at].tokens)
            progress.grown = _Grown(plan.below, index, draft, is_forecast=True)
            grown[at] = draft
        return grown

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Keep what was computed of the kept path; of a chain the next proposal compares tokens."""
        progress = self._progress[sequence_id]
        grown, progress.grown, progress.kept = progress.grown, None, None
        if grown is None:
            return
        is_greedy = grown.plan.samplers[grown.row].params.temperature == 0
        self._margins.learn(grown.draft, commit, is_greedy=is_greedy)
        # The bonus may have been guessed and read; as the pending token it is read again.
        path = computed_path(grown.draft, commit.tokens[:-1])
        with self._span:
            is_kept = self._backend.keep(grown.plan, grown.row, path)
        progress.committed += len(path) if is_kept else 0
        if grown.is_forecast and is_kept:
            progress.kept = self._kept(grown, commit.tokens)

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """As `observe`: what is taken back later is rewound."""
        self.observe(sequence_id, commit)

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Forget what was read beyond `tokens`."""
        progress = self._progress.get(sequence_id)
        if progress is None:
            return
        progress.grown = progress.kept = None
        if progress.committed > len(tokens):
            progress.committed, progress.drafted = len(tokens), []

    def release(self, sequence_id: int) -> None:
        """Give back the sequence's blocks."""
        self._slots.release(sequence_id)
        self._progress.pop(sequence_id, None)

    def close(self) -> None:
        """Close the small model."""
        self._backend.close()

    def _below_outcomes(
        self,
        row: DraftRow,
        draft: Draft,
        outcomes: Sequence[tuple[int, int]],
        most: int,
        depth: int,
    ) -> list[Draft] | None:
        """What would be drawn in the round behind each outcome, in one backend call."""
        assert self._growth is not None
        assert isinstance(self._backend, ForeseesDraws)
        depths = draft.tree.depths()
        deepest = max(int(depths[node]) for node, _ in outcomes) + 1
        if row.max_depth - deepest < depth or not self._prepare(row, int(depths.max()) + 1):
            return None  # the last rounds of a text
        text = self._growth_plan([replace(row, max_drafted=most, max_depth=depth)], self._growth)
        plan = given_plan(text, draft.tree, outcomes)
        with self._span:
            (whole,) = self._backend.foresee_given(plan)
        progress = self._progress[row.sequence_id]
        progress.committed, progress.drafted = len(row.tokens), []
        first = len(draft.tree)
        return [subtree(whole, first + at, bonus) for at, (_, bonus) in enumerate(outcomes)]

    def _kept(self, grown: _Grown, tokens: Sequence[int]) -> Kept | None:
        """What a forecast read of the outcome that came."""
        winner = winner_of(grown.draft, grown.num_known, tokens)
        if winner is None or not isinstance(self._backend, Carries):
            return None
        with self._span:
            num_held, held = self._backend.take(grown.plan, grown.row, winner.nodes)
        return Kept.of(winner, grown.draft.tree, num_held, held) if num_held else None

    def _carried(self, row: DraftRow, draft: Draft) -> Carried | None:
        """What need not be read of a row's draft."""
        progress = self._progress[row.sequence_id]
        if progress.kept is None or progress.committed != len(row.tokens) - 1:
            return None
        return progress.kept.carried(len(row.tokens), draft.tree)

    def _prepare(self, row: DraftRow, num_more: int = 0) -> bool:
        """Whether the row can draft, with `num_more` levels in between; if so it has blocks, and
        few tokens are unread. One with many reads some, and drafts once it has read them."""
        progress = self._progress.get(row.sequence_id)
        if row.max_drafted < 1 or progress is None:
            return False
        needed = len(row.tokens) + num_more + self._num_steps
        if needed > progress.num_reserved:
            if needed > self._backend.spec.max_position:
                return False
            try:
                progress.num_reserved = self._reserve(row.sequence_id, needed)
            except CapacityError:
                return False
        progress.settle(row.tokens)
        progress.committed = min(progress.committed, len(row.tokens) - 1)
        if len(row.tokens) - progress.committed > LONGEST_CATCH_UP:
            self._room_to_read -= self.read(row.sequence_id, row.tokens, self._room_to_read)
        return len(row.tokens) - progress.committed <= LONGEST_CATCH_UP

    def _reserve(self, sequence_id: int, num_positions: int) -> int:
        """Own whole blocks for so many positions; how many they hold within the model's context."""
        self._slots.reserve(sequence_id, num_positions)
        return min(blocks_for(num_positions) * BLOCK_LEN, self._backend.spec.max_position)

    def _read(
        self, sequence_id: int, progress: _Progress, tokens: Sequence[int], until: int
    ) -> None:
        table = self._slots.table([sequence_id])
        with self._span:
            prefill(self._backend, table, tokens[progress.committed : until], progress.committed)
        progress.committed = until

    def _chains(self, rows: Sequence[DraftRow]) -> list[Draft]:
        plan = self._chain_plan(rows)
        with self._span:
            proposed = self._backend.propose(plan)
        drafts: list[Draft] = []
        for row, tokens in zip(rows, proposed.tolist(), strict=True):
            progress = self._progress[row.sequence_id]
            progress.committed, progress.drafted = len(row.tokens), tokens
            tree = TokenTree.made_chain([row.tokens[-1], *tokens[: row.max_drafted]])
            drafts.append(Draft(tree, _COUPLED, num_passes=plan.num_steps))
        return drafts

    def _trees(self, rows: Sequence[DraftRow]) -> list[Draft]:
        plan = self._growth_plan(rows, self._growth or _CHAIN)
        if self._growth is not None:
            plan = priced(plan, rows, self._prices)
        with self._span:
            drafts = self._backend.grow(plan)
        for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            progress = self._progress[row.sequence_id]
            progress.committed, progress.grown = len(row.tokens), _Grown(plan, index, draft)
        return drafts

    def _chain_plan(self, rows: Sequence[DraftRow]) -> ProposalPlan:
        most = max(row.max_drafted for row in rows)
        return ProposalPlan(*self._unread(rows), min(self._num_steps, max(most, 1)))

    def _growth_plan(self, rows: Sequence[DraftRow], growth: Growth) -> GrowthPlan:
        depths = [min(self._num_steps, row.max_depth) for row in rows]
        return GrowthPlan(
            *self._unread(rows),
            budgets=np.array([row.max_drafted for row in rows], np.int32),
            depths=np.array(depths, np.int32),
            growth=growth,
            acceptance=self._margins.of(rows),
            is_told=any(row.is_watched for row in rows),
        )

    def _unread(
        self, rows: Sequence[DraftRow]
    ) -> tuple[Tokens, Tokens, Tokens, NDArray[np.int32], list[Sampler]]:
        """What each row has not read, and where it goes: the first fields of both plans."""
        catch_up: list[int] = []
        starts, committed = [0], []
        for row in rows:
            seen = self._progress[row.sequence_id].committed
            catch_up += row.tokens[seen:]
            starts.append(len(catch_up))
            committed.append(seen)
        return (
            np.array(catch_up, np.int32),
            np.array(starts, np.int32),
            np.array(committed, np.int32),
            self._slots.table([row.sequence_id for row in rows]),
            [row.sampler for row in rows],
        )
