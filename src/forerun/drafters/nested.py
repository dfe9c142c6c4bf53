"""Nested: a speculative decoder as a drafter. Is it speculation all the way down? It may be.

A middle model decodes a few tokens ahead, with a drafter of its own below it, under the target's
noise; what it chose is the draft. Its rounds are those of the engine (`engine/round.py`): propose,
verify, judge, keep. What differs is that its tokens may be taken back:

    tokens       0 ………………… base-1 | accepted …, bonus
    its text     0 ………………… base-1 | chosen …, pending         as far as both agree it stands,
    its K/V      0 ………………… base-1 | chosen …                  and what lies behind is spare

The inner drafter may be nested itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forerun.backends.passes import assemble
from forerun.backends.prefill import prefill
from forerun.backends.slots import Slots, blocks_for
from forerun.draft import Commit, Draft, Draw, Verdict
from forerun.drafters.ahead import rewind, sampler_after, settle
from forerun.drafters.plain import plain_draft
from forerun.errors import CapacityError, DrafterError
from forerun.noise import RoundNoise
from forerun.protocols import (
    BLOCK_LEN,
    Backend,
    Drafter,
    DraftRow,
    Reads,
    Rule,
    Selection,
    Shape,
)
from forerun.stats import Span
from forerun.tree import TokenTree

LONGEST_CATCH_UP = 32  # unread tokens that a round reads itself; more are read in chunks before it


@dataclass(slots=True, eq=False)
class _Progress:
    """The middle model's text of one sequence: the K/V of `num_read` tokens is kept, the last token
    is pending, and the first `num_known` are the sequence's own. Blocks for `num_reserved`."""

    text: list[int]
    num_reserved: int
    num_read: int = 0
    num_known: int = 0
    has_inner: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class InnerDecoder:
    """What decodes ahead: a model, and three answers to the questions of speculation."""

    middle: Backend
    drafter: Drafter
    shape: Shape
    rule: Rule


class Nested:
    """Drafts chains of at most `num_steps` tokens that the middle model chose; `span` sums the
    seconds of its backend calls. Closing it closes all of `decoder`."""

    def __init__(self, decoder: InnerDecoder, num_steps: int, span: Span) -> None:
        self._middle = decoder.middle
        self._inner = decoder.drafter
        self._shape = decoder.shape
        self._rule = decoder.rule
        self._num_steps = num_steps
        self._span = span
        self._slots = Slots(decoder.middle.num_blocks)
        self._progress: dict[int, _Progress] = {}
        # A token chosen under the target's noise is coupled to the target's own.
        reads_choices = decoder.rule.reads is Reads.CHOICES
        self._draw = Draw.COUPLED if reads_choices else Draw.POINT

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Read the prompt; without room for the inner drafter the middle model decodes plainly.

        Raises:
            CapacityError: the prompt does not fit the middle model's context or K/V memory.
        """
        limit = self._middle.spec.max_position
        if len(prompt) >= limit:
            raise CapacityError(f"{len(prompt)} tokens of prompt, the middle model takes {limit}")
        num_reserved = self._reserve(sequence_id, self._needed(len(prompt)))
        progress = _Progress(list(prompt), num_reserved, num_known=len(prompt))
        self._progress[sequence_id] = progress
        self._read(sequence_id, progress)
        try:
            self._inner.admit(sequence_id, prompt)
            progress.has_inner = True
        except CapacityError:
            self._inner.release(sequence_id)

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One chain a row; the middle model's rounds serve all rows at once."""
        wanted = {row.sequence_id: self._prepare(row) for row in rows}
        while unfinished := [row for row in rows if self._missing(row, wanted) > 0]:
            self._round(unfinished, [self._missing(row, wanted) for row in unfinished])
        return [self._chain(row, wanted[row.sequence_id]) for row in rows]

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """The next proposal compares tokens; the inner drafter is told."""
        if self._progress[sequence_id].has_inner:
            self._inner.observe(sequence_id, commit)

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """The next proposal compares tokens."""

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Compare the text from here on."""
        progress = self._progress.get(sequence_id)
        if progress is not None:
            progress.num_known = min(progress.num_known, len(tokens))

    def release(self, sequence_id: int) -> None:
        """Give back the sequence's blocks, and let the inner drafter forget it."""
        self._slots.release(sequence_id)
        progress = self._progress.pop(sequence_id, None)
        if progress is not None and progress.has_inner:
            self._inner.release(sequence_id)

    def close(self) -> None:
        """Close the middle model and the inner drafter."""
        try:
            self._inner.close()
        finally:
            self._middle.close()

    def _needed(self, num_tokens: int) -> int:
        """Positions that a proposal below so many tokens may write."""
        return num_tokens + self._num_steps + self._shape.max_drafted

    def _reserve(self, sequence_id: int, num_positions: int) -> int:
        """Own whole blocks for so many positions; how many they hold within the model's context."""
        self._slots.reserve(sequence_id, num_positions)
        return min(blocks_for(num_positions) * BLOCK_LEN, self._middle.spec.max_position)

    def _read(self, sequence_id: int, progress: _Progress) -> None:
        """Keep the K/V of all tokens but the pending one."""
        table = self._slots.table([sequence_id])
        unread = progress.text[progress.num_read : -1]
        with self._span:
            prefill(self._middle, table, unread, progress.num_read)
        progress.num_read = len(progress.text) - 1

    def _prepare(self, row: DraftRow) -> int:
        """How many tokens to choose for a row; if any, it has blocks and its text stands."""
        progress = self._progress.get(row.sequence_id)
        num_wanted = min(self._num_steps, row.max_drafted, row.max_depth)
        if progress is None or num_wanted < 1:
            return 0
        needed = self._needed(len(row.tokens))
        if needed > progress.num_reserved:
            if needed > self._middle.spec.max_position:
                return 0
            try:
                progress.num_reserved = self._reserve(row.sequence_id, needed)
            except CapacityError:
                return 0
        self._take_back(row, progress)
        if len(progress.text) - progress.num_read > LONGEST_CATCH_UP:
            self._read(row.sequence_id, progress)
        return num_wanted

    def _take_back(self, row: DraftRow, progress: _Progress) -> None:
        """Give up what was chosen where the sequence went another way; what it went past stays."""
        text, tokens, at = progress.text, row.tokens, progress.num_known
        while at < min(len(text), len(tokens)) and text[at] == tokens[at]:
            at += 1
        progress.num_known = len(tokens)
        if at == len(tokens):
            return  # the middle model is ahead already
        num_kept = min(at, len(tokens) - 1)  # the pending token is always read anew
        if progress.has_inner and at < len(text):
            rewind(self._inner, row.sequence_id, tokens[:num_kept])
        progress.num_read = min(progress.num_read, num_kept)
        progress.text = list(tokens)

    def _missing(self, row: DraftRow, wanted: dict[int, int]) -> int:
        num_wanted = wanted[row.sequence_id]
        if not num_wanted:
            return 0
        return num_wanted + len(row.tokens) - len(self._progress[row.sequence_id].text)

    def _chain(self, row: DraftRow, num_wanted: int) -> Draft:
        if not num_wanted:
            return plain_draft(row.tokens[-1])
        text, base = self._progress[row.sequence_id].text, len(row.tokens) - 1
        return Draft(TokenTree.made_chain(text[base : base + num_wanted + 1]), self._draw)

    def _round(self, rows: Sequence[DraftRow], missing: Sequence[int]) -> None:
        """One round of the middle model: every row gains a token at least."""
        inner_rows = [self._inner_row(row, num - 1) for row, num in zip(rows, missing, strict=True)]
        drafts = self._drafts(inner_rows)
        table = self._slots.table([row.sequence_id for row in inner_rows])
        batch, selection, starts, bases = assemble(inner_rows, drafts, table)
        with self._span:
            logits = self._middle.forward(batch).logits
            said = self._said(logits, selection)
        verdicts, paths = [], []
        for index, (row, draft) in enumerate(zip(inner_rows, drafts, strict=True)):
            noise = RoundNoise(row.sampler.seed, row.sampler.params.choice, len(row.tokens))
            own = said[starts[index] : starts[index + 1]]
            verdict = self._rule.judge(draft, own, noise)
            base = bases[index]
            verdicts.append(verdict)
            paths.append([*range(base), *[base + node for node in verdict.path]])
        with self._span:
            self._middle.commit(batch, paths)
        for row, draft, verdict in zip(inner_rows, drafts, verdicts, strict=True):
            self._keep(row.sequence_id, draft, verdict)

    def _inner_row(self, row: DraftRow, room: int) -> DraftRow:
        """The middle model's text as a sequence of its own, which must not gain much more than what
        is wanted: a round emits one token beside those drafted."""
        progress = self._progress[row.sequence_id]
        most = min(self._shape.max_drafted, self._shape.fits(room))
        sampler = sampler_after(row.sampler, progress.text[len(row.tokens) :])
        text, num_read = progress.text, progress.num_read
        return DraftRow(row.sequence_id, text, row.prompt_len, sampler, most, room, num_read)

    def _drafts(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """The inner drafter's proposals within its shape."""
        asked = [row for row in rows if self._progress[row.sequence_id].has_inner]
        made = self._inner.propose(asked) if asked else []
        drafts = {}
        for row, draft in zip(asked, made, strict=True):
            tree = self._shape.limit(draft.tree)
            if tree is not draft.tree:
                if draft.law is not None:
                    raise DrafterError("a sampled tree must have the inner shape's size")
                draft = Draft(tree, draft.draw)
            drafts[row.sequence_id] = draft
        return [drafts.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def _said(self, logits: Any, selection: Selection) -> Any:
        """What the middle model says at every node, as the inner rule reads it."""
        if self._rule.reads is Reads.LAWS:
            return self._middle.law(logits, selection)
        return self._middle.select(logits, selection)

    def _keep(self, sequence_id: int, draft: Draft, verdict: Verdict) -> None:
        if verdict.bonus < 0:
            raise DrafterError("the middle model has no token to choose: its logits hold NaN")
        progress = self._progress[sequence_id]
        kept = [*draft.tree.tokens[list(verdict.path[1:])].tolist(), verdict.bonus]
        progress.text += kept
        progress.num_read = len(progress.text) - 1
        if progress.has_inner:
            settle(self._inner, sequence_id, Commit(tuple(kept)))
