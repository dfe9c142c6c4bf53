"""What stands between a drafter and a request: a bad proposal costs speed, never a token.

Anything may go wrong in a drafter, for its code and weights may be anybody's. The round then
decodes plainly, the failure is counted, and a drafter that keeps failing is switched off.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forerun.draft import Commit, Draft
from forerun.drafters.late import ReadsLate
from forerun.drafters.plain import plain_draft
from forerun.drafters.router import Router
from forerun.errors import CapacityError, DrafterError
from forerun.protocols import Anticipates, Drafter, DraftRow, ReadsFeatures, Shape
from forerun.tree import TokenTree

MAX_FAILURES = 3  # in a row; then the drafter is not asked again

_log = logging.getLogger(__name__)


class Guard:
    """A drafter that never raises and never proposes what the shape or the target cannot take."""

    def __init__(self, drafter: Drafter, shape: Shape, vocab: int) -> None:
        self._drafter = drafter
        self._shape = shape
        self._vocab = vocab
        self._num_in_a_row = 0
        self._admitted: set[int] = set()
        self._failed: set[int] = set()
        self._reader = drafter if isinstance(drafter, ReadsFeatures) else None
        self._ahead = drafter if isinstance(drafter, Anticipates) else None
        self._late = drafter if isinstance(drafter, ReadsLate) else None
        self.num_failures = 0
        self._num_faults = 0

    @property
    def is_disabled(self) -> bool:
        """Whether the drafter failed too often to be asked again."""
        return self._num_in_a_row >= MAX_FAILURES

    @property
    def state(self) -> str:
        """`healthy`, `resting` while a failure keeps it from being asked, or `disabled`."""
        if self.is_disabled:
            return "disabled"
        return "resting" if getattr(self._drafter, "is_resting", False) else "healthy"

    def chosen(self, sequence_id: int) -> str | None:
        """Which of several drafters is asked for a sequence; None where there is but one."""
        return self._drafter.chosen(sequence_id) if isinstance(self._drafter, Router) else None

    def inject_faults(self, num: int) -> None:
        """Let the next proposals fail as if the drafter had raised: to be shown what happens."""
        self._num_faults = num

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Target layers that the drafter wants to read; none where it reads none, or is off."""
        return () if self._reader is None or self.is_disabled else self._reader.tap_layers

    def admit(self, sequence_id: int, prompt: Sequence[int], partition: str | None = None) -> None:
        """Admit a sequence, or draft nothing for it; `read` has its text read where that waits."""
        if self.is_disabled:
            return
        try:
            if self._late is None:
                self._drafter.admit(sequence_id, prompt)
            else:
                self._late.begin(sequence_id, prompt, partition)
            self._admitted.add(sequence_id)
        except CapacityError as error:
            _log.info("sequence %d is decoded plainly: %s", sequence_id, error)
            self._forget(sequence_id)
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._fail("admit", error)
            self._forget(sequence_id)

    def num_unread(self, sequence_id: int, num_tokens: int) -> int:
        """Tokens of a sequence's first so many that a drafter which reads text has not read."""
        if self._late is None or sequence_id not in self._admitted or self.is_disabled:
            return 0
        return self._late.num_unread(sequence_id, num_tokens)

    def read(self, sequence_id: int, tokens: Sequence[int], most: int) -> int:
        """Let such a drafter read some of them; a row it fails for decodes plainly."""
        if self._late is None or sequence_id not in self._admitted or self.is_disabled:
            return 0
        try:
            return self._late.read(sequence_id, tokens, most)
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._fail("read", error)
            self._forget(sequence_id)
            return 0

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One draft a row, each within `max_drafted` and the target's vocabulary."""
        if self._failed:
            self._failed.clear()
        asked = [row for row in rows if row.sequence_id in self._admitted]
        if self._num_in_a_row >= MAX_FAILURES or not asked:
            return [plain_draft(row.tokens[-1]) for row in rows]
        checked = []
        try:
            if self._num_faults:
                self._num_faults -= 1
                raise DrafterError("a fault was asked for")
            for row, draft in zip(asked, self._drafter.propose(asked), strict=True):
                checked.append(self._checked(row, draft))
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._failed.update(row.sequence_id for row in asked)
            self._fail("propose", error)
            return [plain_draft(row.tokens[-1]) for row in rows]
        self._num_in_a_row = 0
        if len(asked) == len(rows):
            return checked
        drafts = {row.sequence_id: draft for row, draft in zip(asked, checked, strict=True)}
        return [drafts.get(row.sequence_id) or plain_draft(row.tokens[-1]) for row in rows]

    def anticipate(self, rows: Sequence[DraftRow], drafts: Sequence[Draft]) -> None:
        """Let a drafter that works ahead begin: these drafts are about to be verified."""
        if self._ahead is None or self.is_disabled:
            return
        pairs = [
            (row, draft)
            for row, draft in zip(rows, drafts, strict=True)
            if row.sequence_id in self._admitted
        ]
        try:
            self._ahead.anticipate([row for row, _ in pairs], [draft for _, draft in pairs])
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._fail("anticipate", error)

    def absorb(self, sequence_id: int, features: NDArray[np.float32]) -> None:
        """Hand the drafter what was tapped of a prompt; a row it fails for decodes plainly."""
        if self._reader is None or sequence_id not in self._admitted or self.is_disabled:
            return
        try:
            self._reader.absorb(sequence_id, features)
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._fail("absorb", error)
            self._forget(sequence_id)

    def failed(self, sequence_id: int) -> bool:
        """Whether the last proposal for a sequence was thrown away."""
        return sequence_id in self._failed

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Tell the drafter what was kept."""
        if sequence_id not in self._admitted or self.is_disabled:
            return
        try:
            self._drafter.observe(sequence_id, commit)
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._fail("observe", error)
            self._forget(sequence_id)

    def release(self, sequence_id: int) -> None:
        """Let the drafter forget a sequence."""
        if sequence_id in self._admitted:
            self._forget(sequence_id)

    def close(self) -> None:
        """Close the drafter; it may not fail on the way out either."""
        try:
            self._drafter.close()
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._fail("close", error)

    def _checked(self, row: DraftRow, draft: Draft) -> Draft:
        tree = self._shape.limit(draft.tree)
        if tree is not draft.tree:
            if draft.law is not None:
                raise DrafterError("a sampled tree must have the shape's size: no part may be cut")
            draft = Draft(tree, draft.draw)
        if len(tree.tokens) > 1 + row.max_drafted:
            raise DrafterError(f"{len(tree) - 1} tokens were proposed where {row.max_drafted} fit")
        if not tree.is_chain and int(tree.depths().max()) > row.max_depth:
            raise DrafterError(f"a path is deeper than the {row.max_depth} tokens that fit")
        tokens = tree.tokens.tolist()
        if tokens[0] != row.tokens[-1]:
            raise DrafterError(f"node 0 must be the pending token {row.tokens[-1]}, is {tokens[0]}")
        if tree.tokens.dtype != np.int32 or tree.parents.dtype != np.int32:
            draft = replace(draft, tree=_as_int32(tree))
        if min(tokens) < 0 or max(tokens) >= self._vocab:
            raise DrafterError(f"token ids must be in [0, {self._vocab}), found {tokens}")
        return draft

    def _forget(self, sequence_id: int) -> None:
        self._admitted.discard(sequence_id)
        try:
            self._drafter.release(sequence_id)
        except Exception as error:  # noqa: BLE001  a drafter may raise anything
            self._fail("release", error)

    def _fail(self, verb: str, error: Exception) -> None:
        self.num_failures += 1
        self._num_in_a_row += 1
        text = f"{type(error).__name__}: {error}"
        if self._num_in_a_row == MAX_FAILURES:
            _log.warning(
                "the drafter failed %d times in a row and is switched off (%s: %s);"
                " decoding goes on without it",
                MAX_FAILURES, verb, text,
            )  # fmt: skip
        else:
            _log.info("the drafter's %s failed, this round is decoded plainly (%s)", verb, text)


def _as_int32(tree: TokenTree) -> TokenTree:
    if tree.tokens.dtype.kind not in "iu" or tree.parents.dtype.kind not in "iu":
        raise DrafterError(f"token ids must be integers, found {tree.tokens.dtype}")
    return TokenTree(tree.tokens.astype(np.int32), tree.parents.astype(np.int32))
