"""The round: propose, verify, judge, keep. There is no other loop; plain decoding is a tree of one.

Knows rows and the four axes; must not know text, admission or who asked. How rows become the arrays
of one pass is `backends/passes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.backends.passes import Pass, assemble, choice_positions, penalty_paths
from forerun.composition import LONGEST
from forerun.draft import Commit, Draft, Verdict
from forerun.engine.guiding import Guided, guided, masked
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence, TokenLogprobs
from forerun.errors import BackendError
from forerun.noise import RoundNoise
from forerun.protocols import DraftRow, ForwardBatch, Reads, Selection
from forerun.stats import RoundMeter
from forerun.tree import Tokens

_EMPTY = np.zeros(0, np.int32)


def run_round(rows: Rows[Sequence], parts: Parts, meter: RoundMeter) -> list[Commit | None]:
    """One round of all rows: what each gained, or None for a row that failed."""
    # Between two passes the caches hold weights, so every function called here is fetched from
    # memory: what follows is flat on purpose.
    with meter.draft:
        draft_rows = _draft_rows(rows, _lengths(rows, parts), parts)
        drafts = parts.drafter.propose(draft_rows)
        meter.num_draft_passes = max(draft.num_passes for draft in drafts)
        guide = guided(rows, draft_rows, drafts, parts)
        drafts = guide.drafts
    batch, selection, starts, bases = _assemble(rows, draft_rows, drafts, parts)
    parts.drafter.anticipate(*guide.free)
    with meter.verify:
        output = parts.target.forward(batch)
        logits = output.logits
        said = _said_under(guide, parts, logits, selection)
    verdicts, paths = [], []
    for index, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
        own = said if len(rows) == 1 else said[starts[index] : starts[index + 1]]
        noise = RoundNoise(row.seed, row.params.choice, len(row.tokens))
        verdict = parts.rule.judge(draft, own, noise)
        base = bases[index]
        path = verdict.path if base == 0 else [*range(base), *[base + at for at in verdict.path]]
        verdicts.append(verdict)
        paths.append(path if verdict.bonus >= 0 else ())
    if parts.witness is not None:
        parts.witness.saw(rows, drafts, said, starts, verdicts)
    with meter.verify:
        parts.target.commit(batch, paths)
    commits: list[Commit | None] = []
    for index, (row, draft, verdict) in enumerate(zip(rows, drafts, verdicts, strict=True)):
        if verdict.bonus < 0:
            _fail(row, verdict)
            commits.append(None)
            continue
        kept = _keep(row, draft, verdict, meter)
        taps = output.taps
        commit = Commit(kept, None if taps is None else taps[_flat(batch, index, paths[index])])
        commits.append(commit)
        if row.params.logprobs is not None:
            start = starts[index]
            _note_logprobs(row, commit, np.array(verdict.path, np.int32) + start, logits, parts)
        with meter.draft:
            parts.drafter.observe(row.id, commit)
    return commits


def _lengths(rows: Rows[Sequence], parts: Parts) -> list[int]:
    """Most nodes to draft for each row."""
    if parts.pace is None:
        return [parts.shape.max_drafted] * len(rows)
    asking = [row.id for row in rows if row.speculates]
    lengths = dict(zip(asking, parts.pace.lengths_for(asking, len(rows)), strict=True))
    return [lengths.get(row.id, 0) for row in rows]


def _draft_rows(rows: Rows[Sequence], lengths: Rows[int], parts: Parts) -> list[DraftRow]:
    draft_rows = []
    for row, most in zip(rows, lengths, strict=True):
        # A round emits one token more than it drafts, and must not pass the row's limit.
        room = row.limit - len(row.tokens) - 1
        fits = min(most, parts.shape.fits(room))
        sampler, kept = row.sampler(), row.committed_len
        own = row.id, row.tokens, row.prompt_len
        draft_rows.append(DraftRow(*own, sampler, fits, room, kept, row.is_watched))
    return draft_rows


def _assemble(
    rows: Rows[Sequence], draft_rows: Rows[DraftRow], drafts: Rows[Draft], parts: Parts
) -> Pass:
    """Every row's nodes one after another, as the arrays of one forward pass."""
    taps = parts.drafter.tap_layers
    if len(rows) == 1 and rows[0].committed_len == len(rows[0].tokens) - 1:
        return _assemble_one(rows[0], draft_rows[0], drafts[0], parts, taps)
    return assemble(draft_rows, drafts, parts.slots.table([row.id for row in rows]), taps)


def _assemble_one(
    row: Sequence, draft_row: DraftRow, draft: Draft, parts: Parts, taps: tuple[int, ...]
) -> Pass:
    """The common case, out of ready-made arrays: one row with nothing to read but its draft."""
    tree = draft.tree
    num_nodes = len(tree.tokens)
    fixed = _fixed(num_nodes)
    batch = ForwardBatch(
        tree.tokens,
        tree.parents,
        fixed.row_starts,
        np.array([row.committed_len], np.int32),
        parts.slots.table([row.id]),
        fixed.nodes,
        taps,
    )
    positions = np.array(choice_positions(len(row.tokens), tree.parents.tolist()), np.int64)
    if row.has_penalties:
        path_starts, path_tokens = penalty_paths([draft_row], [draft], num_nodes)
    else:
        path_starts, path_tokens = fixed.no_paths, _EMPTY
    samplers = [draft_row.sampler]
    selection = Selection(positions, fixed.zeros, samplers, path_starts, path_tokens)
    return batch, selection, [0, num_nodes], [0]


@dataclass(frozen=True, slots=True, eq=False)
class _Fixed:
    """What is the same for every single row of N nodes; never written to."""

    row_starts: Tokens
    nodes: Tokens
    zeros: Tokens
    no_paths: Tokens


@lru_cache(maxsize=LONGEST + 1)
def _fixed(num_nodes: int) -> _Fixed:
    zeros = np.zeros(num_nodes + 1, np.int32)
    nodes = np.arange(num_nodes, dtype=np.int32)
    return _Fixed(np.array([0, num_nodes], np.int32), nodes, zeros[1:], zeros)


def _said_under(guide: Guided, parts: Parts, logits: Any, selection: Selection) -> Any:
    """What the target says at every wanted node, masked where a grammar binds the row."""
    masks = guide.masks
    if len(masks) == 1 and len(masks[0][1]) == len(selection.positions):
        return _said(parts, masked(logits, masks[0][1]), selection)
    said = _said(parts, logits, selection)
    for start, allowed in masks:
        said = np.require(said, requirements="W")
        end = start + len(allowed)
        own = masked(logits[start:end], allowed)
        said[start:end] = _said(parts, own, _part(selection, start, end))
    return said


def _said(parts: Parts, logits: Any, selection: Selection) -> Any:
    """What the target says at every wanted node, as the rule reads it."""
    if parts.rule.reads is Reads.LAWS:
        return _laws(parts, logits, selection)
    return _select(parts, logits, selection)


def _laws(parts: Parts, logits: Any, selection: Selection) -> Any:
    """The target's law at every wanted node, NaN where there is none."""
    try:
        return parts.target.law(logits, selection)
    except BackendError:
        laws = np.full((len(selection.positions), parts.target.spec.vocab), np.nan, np.float32)
    for index in range(len(laws)):
        with suppress(BackendError):
            one = parts.target.law(logits[index : index + 1], _part(selection, index, index + 1))
            laws[index] = one[0]
    return laws


def _select(parts: Parts, logits: Any, selection: Selection) -> Tokens:
    """The target's choice at every wanted node, -1 where there is none.

    A node nobody keeps may have no choice without harm: only a verdict that ends there fails.
    """
    try:
        return parts.target.select(logits, selection)
    except BackendError:
        choices = np.full(len(selection.positions), -1, np.int32)
    for index in range(len(choices)):
        with suppress(BackendError):
            one = parts.target.select(logits[index : index + 1], _part(selection, index, index + 1))
            choices[index] = one[0]
    return choices


def _part(selection: Selection, first: int, end: int) -> Selection:
    """Of some rows of logits that follow one another."""
    path_starts = selection.path_starts[first : end + 1]
    return Selection(
        selection.positions[first:end],
        selection.sampler_of[first:end],
        selection.samplers,
        path_starts - path_starts[0],
        selection.path_tokens[path_starts[0] : path_starts[-1]],
    )


def _fail(row: Sequence, verdict: Verdict) -> None:
    position = len(row.tokens) + verdict.num_accepted
    row.fail(
        BackendError(
            f"no token can be chosen for position {position}: the model's logits hold NaN, or"
            " bias, masks and grammar left none"
        )
    )


def _flat(batch: ForwardBatch, row: int, path: Rows[int]) -> Tokens:
    """A row's nodes as nodes of the whole batch."""
    nodes: Tokens = np.array(path, np.int32) + batch.row_starts[row]
    return nodes


def _keep(row: Sequence, draft: Draft, verdict: Verdict, meter: RoundMeter) -> tuple[int, ...]:
    """Append what was agreed on; the bonus is the next pending token."""
    tokens = draft.tree.tokens.tolist()
    kept = (*[tokens[node] for node in verdict.path[1:]], verdict.bonus)
    row.tokens.extend(kept)
    row.committed_len = len(row.tokens) - 1
    num_drafted, num_accepted = len(tokens) - 1, len(kept) - 1
    row.tally.num_drafted += num_drafted
    row.tally.num_accepted += num_accepted
    meter.num_drafted += num_drafted
    meter.num_accepted += num_accepted
    return kept


def _note_logprobs(row: Sequence, commit: Commit, nodes: Tokens, logits: Any, parts: Parts) -> None:
    """The raw log-softmax of each token this round emitted, and of the best at its place."""
    num_top = row.params.logprobs or 0
    for token, line in zip(commit.tokens, parts.target.logprobs(logits, nodes), strict=True):
        top = tuple((one, float(line[one])) for one in likeliest(line, num_top))
        row.logprobs.append(TokenLogprobs(token, float(line[token]), top))


def likeliest(line: NDArray[np.float32], num_top: int) -> list[int]:
    """The tokens of the greatest of `line [V]`, greatest first, of equals the lower token first.

    What a whole stable sort begins with; most of a large vocabulary is not sorted.
    """
    if num_top == 0:
        return []
    falling, last = -line, min(num_top, len(line)) - 1
    bound = np.partition(falling, last)[last]
    found = np.flatnonzero(~(falling > bound))  # what is no number is no greater either
    best: list[int] = found[np.argsort(falling[found], kind="stable")][:num_top].tolist()
    return best
