"""Rows with a draft below each, as the arrays of one forward pass.

A row's nodes are its tokens whose K/V is not kept yet, the last of them pending, and then its draft
below that one:

    known …, pending, drafted …            parents: a chain, then the draft's own
             ^ node `base`; choices are wanted from here on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Draft
from forerun.protocols import DraftRow, ForwardBatch, Selection
from forerun.tree import Tokens

# Row b wants `starts[b]:starts[b + 1]` of the logits, and its node `bases[b]` is the pending token:
# (batch, selection, starts, bases).
Pass: TypeAlias = tuple[ForwardBatch, Selection, list[int], list[int]]


def assemble(
    rows: Sequence[DraftRow],
    drafts: Sequence[Draft],
    block_table: NDArray[np.int32],
    tap_layers: tuple[int, ...] = (),
) -> Pass:
    """Every row's unread tokens (from `committed_len` on) and its draft, row by row."""
    token_ids: list[int] = []
    parents: list[int] = []
    logit_nodes: list[int] = []
    positions: list[int] = []
    row_starts, starts, bases = [0], [0], []
    for row, draft in zip(rows, drafts, strict=True):
        known = row.tokens[row.committed_len :]
        base, first = len(known) - 1, len(token_ids) + len(known) - 1
        tree_parents = draft.tree.parents.tolist()
        token_ids += [*known, *draft.tree.tokens.tolist()[1:]]
        parents += range(-1, base)
        parents += [parent + base for parent in tree_parents[1:]]
        logit_nodes += range(first, len(token_ids))
        positions += choice_positions(len(row.tokens), tree_parents)
        row_starts.append(len(token_ids))
        starts.append(len(positions))
        bases.append(base)
    batch = ForwardBatch(
        token_ids=np.array(token_ids, np.int32),
        parents=np.array(parents, np.int32),
        row_starts=np.array(row_starts, np.int32),
        committed=np.array([row.committed_len for row in rows], np.int32),
        block_table=block_table,
        logit_nodes=np.array(logit_nodes, np.int32),
        tap_layers=tap_layers,
    )
    selection = Selection(
        np.array(positions, np.int64),
        np.repeat(np.arange(len(rows), dtype=np.int32), np.diff(starts)),
        [row.sampler for row in rows],
        *penalty_paths(rows, drafts, len(positions)),
    )
    return batch, selection, starts, bases


def choice_positions(first: int, parents: list[int]) -> list[int]:
    """Where the token chosen at each node goes: one after the node itself."""
    positions = [first]
    for parent in parents[1:]:
        positions.append(positions[parent] + 1)
    return positions


def penalty_paths(
    rows: Sequence[DraftRow], drafts: Sequence[Draft], num_choices: int
) -> tuple[Tokens, Tokens]:
    """Drafted tokens above each choice, for rows whose penalties depend on them."""
    penalised = [row.sampler.params.has_penalties for row in rows]
    if not any(penalised):
        return np.zeros(num_choices + 1, np.int32), np.zeros(0, np.int32)
    path_tokens: list[int] = []
    ends = [0]
    for has_penalties, draft in zip(penalised, drafts, strict=True):
        for node in range(len(draft.tree)):
            if has_penalties:
                path_tokens += draft.tree.tokens[draft.tree.path(node)[1:]].tolist()
            ends.append(len(path_tokens))
    return np.array(ends, np.int32), np.array(path_tokens, np.int32)
