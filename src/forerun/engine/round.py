"""The round: propose, verify, judge, keep. There is no other loop; plain decoding is a tree of one.

Knows rows and the four axes; must not know text, admission or who asked. A row's nodes are its
tokens whose K/V is not kept yet, the last of them pending, and then its draft below that one:

    known …, pending, drafted …            parents: a chain, then the draft's own
             ^ node `base`; choices are wanted from here on
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from forerun.composition import LONGEST
from forerun.draft import Commit, Draft, Verdict
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence, TokenLogprobs
from forerun.errors import BackendError
from forerun.noise import RoundNoise
from forerun.protocols import DraftRow, ForwardBatch, Reads, Selection
from forerun.stats import RoundMeter
from forerun.tree import Tokens

_EMPTY = np.zeros(0, np.int32)


# One pass as arrays. Row b wants `starts[b]:starts[b + 1]` of the logits, and its node `bases[b]`
# is the pending token: (batch, selection, starts, bases).
_Pass: TypeAlias = tuple[ForwardBatch, Selection, list[int], list[int]]


def run_round(rows: Rows[Sequence], parts: Parts, meter: RoundMeter) -> list[Commit | None]:
    """One round of all rows: what each gained, or None for a row that failed."""
    # Between two passes the caches hold weights, so every function called here is fetched from
    # memory: what follows is flat on purpose.
    with meter.draft:
        most = parts.shape.max_drafted if parts.pace is None else parts.pace.length
        draft_rows = _draft_rows(rows, most, parts)
        drafts = parts.drafter.propose(draft_rows)
    meter.num_draft_passes = max(draft.num_passes for draft in drafts)
    batch, selection, starts, bases = _assemble(rows, draft_rows, drafts, parts)
    with meter.verify:
        logits = parts.target.forward(batch).logits
        said = _said(parts, logits, selection)
    verdicts, paths = [], []
    for index, draft in enumerate(drafts):
        own = said if len(rows) == 1 else said[starts[index] : starts[index + 1]]
        row = rows[index]
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
    for row, draft, verdict, start in zip(rows, drafts, verdicts, starts, strict=False):
        if verdict.bonus < 0:
            _fail(row, verdict)
            commits.append(None)
            continue
        commit = _keep(row, draft, verdict, meter)
        commits.append(commit)
        if row.params.logprobs is not None:
            _note_logprobs(row, commit, np.array(verdict.path, np.int32) + start, logits, parts)
        with meter.draft:
            parts.drafter.observe(row.id, commit)
    return commits


def _draft_rows(rows: Rows[Sequence], most: int, parts: Parts) -> list[DraftRow]:
    draft_rows = []
    for row in rows:
        # A round emits one token more than it drafts, and must not pass the row's limit.
        room = row.limit - len(row.tokens) - 1
        fits = min(most, parts.shape.fits(room))
        sampler, kept = row.sampler(), row.committed_len
        draft_rows.append(DraftRow(row.id, row.tokens, row.prompt_len, sampler, fits, room, kept))
    return draft_rows


def _assemble(
    rows: Rows[Sequence], draft_rows: Rows[DraftRow], drafts: Rows[Draft], parts: Parts
) -> _Pass:
    """Every row's nodes one after another, as the arrays of one forward pass."""
    if len(rows) == 1 and rows[0].committed_len == len(rows[0].tokens) - 1:
        return _assemble_one(rows[0], draft_rows[0], drafts[0], parts)
    token_ids: list[int] = []
    parents: list[int] = []
    logit_nodes: list[int] = []
    positions: list[int] = []
    row_starts, starts, bases = [0], [0], []
    for row, draft in zip(rows, drafts, strict=True):
        known = row.tokens[row.committed_len :]
        base, first = len(known) - 1, len(token_ids) + len(known) - 1
        tree_parents = draft.tree.parents.tolist()
        token_ids += known + draft.tree.tokens.tolist()[1:]
        parents += range(-1, base)
        parents += [parent + base for parent in tree_parents[1:]]
        logit_nodes += range(first, len(token_ids))
        positions += _positions(len(row.tokens), tree_parents)
        row_starts.append(len(token_ids))
        starts.append(len(positions))
        bases.append(base)
    batch = ForwardBatch(
        token_ids=np.array(token_ids, np.int32),
        parents=np.array(parents, np.int32),
        row_starts=np.array(row_starts, np.int32),
        committed=np.array([row.committed_len for row in rows], np.int32),
        block_table=parts.slots.table([row.id for row in rows]),
        logit_nodes=np.array(logit_nodes, np.int32),
    )
    selection = Selection(
        np.array(positions, np.int64),
        np.repeat(np.arange(len(rows), dtype=np.int32), np.diff(starts)),
        [one.sampler for one in draft_rows],
        *_penalty_paths(rows, drafts, len(positions)),
    )
    return batch, selection, starts, bases


def _assemble_one(row: Sequence, draft_row: DraftRow, draft: Draft, parts: Parts) -> _Pass:
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
    )
    positions = np.array(_positions(len(row.tokens), tree.parents.tolist()), np.int64)
    if row.has_penalties:
        path_starts, path_tokens = _penalty_paths([row], [draft], num_nodes)
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


def _positions(first: int, parents: list[int]) -> list[int]:
    """Where the token chosen at each node goes: one after the node itself."""
    positions = [first]
    for parent in parents[1:]:
        positions.append(positions[parent] + 1)
    return positions


def _penalty_paths(
    rows: Rows[Sequence], drafts: Rows[Draft], num_choices: int
) -> tuple[Tokens, Tokens]:
    """Drafted tokens above each choice, for rows whose penalties depend on them."""
    if not any(row.has_penalties for row in rows):
        return np.zeros(num_choices + 1, np.int32), _EMPTY
    path_tokens: list[int] = []
    ends = [0]
    for row, draft in zip(rows, drafts, strict=True):
        for node in range(len(draft.tree)):
            if row.has_penalties:
                path_tokens += draft.tree.tokens[draft.tree.path(node)[1:]].tolist()
            ends.append(len(path_tokens))
    return np.array(ends, np.int32), np.array(path_tokens, np.int32)


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
            one = parts.target.law(logits[index : index + 1], _single(selection, index))
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
            one = parts.target.select(logits[index : index + 1], _single(selection, index))
            choices[index] = one[0]
    return choices


def _single(selection: Selection, index: int) -> Selection:
    start, end = selection.path_starts[index : index + 2].tolist()
    return Selection(
        selection.positions[index : index + 1],
        selection.sampler_of[index : index + 1],
        selection.samplers,
        np.array([0, end - start], np.int32),
        selection.path_tokens[start:end],
    )


def _fail(row: Sequence, verdict: Verdict) -> None:
    position = len(row.tokens) + verdict.num_accepted
    row.fail(
        BackendError(
            f"no token can be chosen for position {position}: the model's logits hold NaN, or"
            " bias and masks left none"
        )
    )


def _keep(row: Sequence, draft: Draft, verdict: Verdict, meter: RoundMeter) -> Commit:
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
    return Commit(kept)


def _note_logprobs(row: Sequence, commit: Commit, nodes: Tokens, logits: Any, parts: Parts) -> None:
    """The raw log-softmax of each token this round emitted, and of the best at its place."""
    num_top = row.params.logprobs or 0
    for token, line in zip(commit.tokens, parts.target.logprobs(logits, nodes), strict=True):
        best = np.argsort(-line, kind="stable")[:num_top].tolist()
        top = tuple((one, float(line[one])) for one in best)
        row.logprobs.append(TokenLogprobs(token, float(line[token]), top))
