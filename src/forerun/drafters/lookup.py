"""Lookup: what followed the last time this text said the same.

Two sources, the better-scored of which is drafted; a request's own text wins ties:

    own       prompt and output of the sequence itself, in an index that is dropped with it
    corpus    the files of a directory that the caller names, read-only and the same for everybody

Nothing of one request is ever proposed to another: an own index belongs to one sequence, and no
request's text is added to the corpus. Who may not see a directory must not draft from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.corpus import Corpus, Reading
from forerun.drafters.plain import plain_draft
from forerun.drafters.suffixes import Found, SuffixIndex, best_continuation
from forerun.errors import OptionError
from forerun.protocols import DraftRow
from forerun.tree import TokenTree

_POINT = Draw.POINT  # looked up once: an enum's member is found by a slow call


class Lookup:
    """Drafts from each sequence's own text, and from a corpus if there is one.

    `width` is the most siblings: 1 drafts chains, more drafts trees, likeliest node first.

    Raises:
        OptionError: a width below 1.
    """

    def __init__(self, corpus: Corpus | None = None, width: int = 1) -> None:
        if width < 1:
            raise OptionError(f"width must be at least 1, found {width}")
        self._corpus = corpus
        self._width = width
        self._indexes: dict[int, SuffixIndex] = {}
        self._readings: dict[int, Reading] = {}

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Index the prompt."""
        index = self._indexes[sequence_id] = SuffixIndex()
        index.extend(prompt)
        if self._corpus is not None:
            self._readings[sequence_id] = self._corpus.read(prompt)

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One chain or tree a row."""
        return [self._propose(row) for row in rows]

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Index what was kept."""
        self._indexes[sequence_id].extend(commit.tokens)
        if self._corpus is not None:
            reading = self._readings[sequence_id]
            self._readings[sequence_id] = self._corpus.read(commit.tokens, reading)

    def settle(self, sequence_id: int, commit: Commit) -> None:
        """Nothing to learn before it is observed."""

    def rewind(self, sequence_id: int, tokens: Sequence[int]) -> None:
        """Nothing to undo: only what was observed is remembered."""

    def release(self, sequence_id: int) -> None:
        """Drop the index."""
        self._indexes.pop(sequence_id, None)
        self._readings.pop(sequence_id, None)

    def close(self) -> None:
        """Drop every index, and let go of the corpus."""
        self._indexes.clear()
        self._readings.clear()
        self._corpus = None

    def _propose(self, row: DraftRow) -> Draft:
        pending = row.tokens[-1]
        if min(row.max_drafted, row.max_depth) < 1:
            return plain_draft(pending)
        index = self._indexes[row.sequence_id]
        # Who decodes ahead of the verdict asks beyond what was observed.
        beyond = row.tokens[len(index) :]
        if self._width == 1 and self._corpus is None and not beyond:
            path = index.propose(min(row.max_drafted, row.max_depth))
            return Draft(TokenTree.made_chain([pending, *path]), _POINT)
        found = self._own(index, row, beyond)
        if self._corpus is not None:
            other = self._from_corpus(self._corpus, row, beyond)
            found = other if other.total > found.total else found
        return _draft(pending, found)

    def _own(self, index: SuffixIndex, row: DraftRow, beyond: Sequence[int]) -> Found:
        matches = index.matches(beyond)
        limits = row.max_drafted, row.max_depth, self._width
        return best_continuation(matches, index.children, *limits)

    def _from_corpus(self, corpus: Corpus, row: DraftRow, beyond: Sequence[int]) -> Found:
        reading = corpus.read(beyond, self._readings[row.sequence_id])
        limits = row.max_drafted, row.max_depth, self._width
        return best_continuation(corpus.matches(reading), corpus.children, *limits)


def _draft(pending: int, found: Found) -> Draft:
    tokens = [pending, *found.tokens]
    if list(found.parents) == list(range(len(found.parents))):
        tree = TokenTree.made_chain(tokens)
    else:
        tree = TokenTree(np.array(tokens, np.int32), np.array([-1, *found.parents], np.int32))
    return Draft(tree, _POINT, scores=np.array([np.nan, *found.scores], np.float32))
