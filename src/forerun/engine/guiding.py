"""Rows bound by a grammar: which drafted nodes may stay, and which tokens may follow each node.

Knows drafts, masks and the contract of a constraint; must not know grammars (`grammar.py`). A mask
belongs to a node of the token tree, for what may follow depends on the whole path above it:

    text … {"a": ── 1 ── ,      below `1` more digits, a comma or a brace
                 └─ " ── x      below `"` anything that a string may hold
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from forerun.draft import Draft, Draw
from forerun.engine.constraints import Masks
from forerun.engine.parts import Parts
from forerun.engine.sequence import Sequence
from forerun.forecast import keeping
from forerun.protocols import DraftRow, Reads
from forerun.tree import TokenTree

MOST_FORCED = 32  # forced tokens of a round: more only make a pass long that others wait for
NAME = "grammar"  # who drafted forced tokens


@dataclass(frozen=True, slots=True, eq=False)
class Guided:
    """A round's drafts as grammars leave them. `masks`: of each row that one binds, where its nodes
    begin among those of all rows, and `[N V]` what may follow each. `free` are the rows that none
    binds: what may follow the drafts of the others is not worth a guess."""

    drafts: list[Draft]
    masks: Rows[tuple[int, Masks]]
    free: tuple[Rows[DraftRow], Rows[Draft]]


def masked(logits: Any, allowed: Masks) -> Any:
    """A copy of logits `[N V]` in which what is not allowed is -inf."""
    if isinstance(logits, np.ndarray):
        return np.where(allowed, logits, np.float32(-np.inf))
    xp = array_namespace(logits)
    where = xp.asarray(allowed, device=device(logits))
    return xp.where(where, logits, xp.full_like(logits, -float("inf")))


def guided(
    rows: Rows[Sequence], draft_rows: Rows[DraftRow], drafts: list[Draft], parts: Parts
) -> Guided:
    """The drafts of a round in which a grammar binds some rows; the others keep theirs.

    Where the rule reads choices, forced tokens are drafted instead of what reaches no further, and
    what a grammar forbids is cut away. Drafts of sampled rules stay as they were drawn: a cut would
    change the law they were drawn from, a mask only the target's.
    """
    if all(row.constraint is None for row in rows):
        return Guided(drafts, (), (draft_rows, drafts))
    edits, start = parts.rule.reads is Reads.CHOICES, 0
    kept, masks = [], []
    for row, asked, draft in zip(rows, draft_rows, drafts, strict=True):
        own = draft
        if row.constraint is not None:
            text = row.tokens[row.prompt_len :]
            is_plain = not row.speculates or (row.parts or parts).drafter_name == "none"
            room = 0 if is_plain or not edits else min(asked.max_depth, MOST_FORCED)
            offered = _forced(row, text, draft, room)
            allowed = row.constraint.allowed(text, offered.tree)
            own, allowed = _legal(offered, allowed) if edits else (offered, allowed)
            masks.append((start, allowed))
        kept.append(own)
        start += len(own.tree)
    free = [at for at, row in enumerate(rows) if row.constraint is None]
    unbound = [draft_rows[at] for at in free], [drafts[at] for at in free]
    return Guided(kept, masks, unbound)


def _forced(row: Sequence, text: Rows[int], draft: Draft, room: int) -> Draft:
    """Forced tokens as a chain, unless the draft has them all and something below, or comes from
    the text that the row is expected to come to, which counts what becomes of it."""
    is_expected = row.expected is not None and row.expected.is_pending
    if row.constraint is None or is_expected or room < 1:
        return draft
    tokens = row.constraint.forced(text, room)
    if not tokens or _reaches_beyond(draft.tree, tokens):
        return draft
    chain = TokenTree.made_chain([int(draft.tree.tokens[0]), *tokens])
    return Draft(chain, Draw.POINT, source=NAME)


def _reaches_beyond(tree: TokenTree, tokens: Rows[int]) -> bool:
    node = 0
    for token in tokens:
        child = tree.child(node, token)
        if child is None:
            return False
        node = child
    return bool(np.any(tree.parents == node))


def _legal(draft: Draft, allowed: Masks) -> tuple[Draft, Masks]:
    """The nodes that their own paths allow and that something may follow, with their masks."""
    tokens, parents = draft.tree.tokens.tolist(), draft.tree.parents.tolist()
    nodes, found = [0], {0}
    for node in range(1, len(tokens)):
        if parents[node] not in found or not allowed[parents[node], tokens[node]]:
            continue
        if allowed[node].any():
            nodes.append(node)
            found.add(node)
    if len(nodes) == len(tokens):
        return draft, allowed
    return keeping(draft, nodes), allowed[nodes]
