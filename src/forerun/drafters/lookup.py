"""Lookup: what followed the last time this text said the same.

A suffix trie of bounded depth over prompt and output, one per sequence, scored as in
SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975). Knows tokens only.

    node         a run of tokens that occurred; the root is the empty run
    active[n]    the node of the last n tokens; a new token moves every one to its child
    leaf         a run that occurred once: its continuation is read from the text itself, and its
                 children are made only when it occurs again

So a new token costs as many steps as the text's end has in common with what came before, at most
`MAX_DEPTH`, whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from forerun.draft import Commit, Draft, Draw
from forerun.drafters.plain import plain_draft
from forerun.protocols import DraftRow
from forerun.tree import TokenTree

_POINT = Draw.POINT  # looked up once: an enum's member is found by a slow call

MAX_DEPTH = 16  # longer matches foretell no better, and loops would make any trie that deep
MIN_PROBABILITY = 0.1  # a path less likely than this is not worth a node (the paper's value)
_ROOT = 0


class SuffixIndex:
    """Which runs of up to `MAX_DEPTH` tokens occurred in one text, and what followed them."""

    __slots__ = ("_active", "_best", "_children", "_first", "_followed", "_text", "_visits")

    def __init__(self) -> None:
        self._text: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        # Per node: where its first occurrence ends, how often it occurred, how often something
        # followed it (0 for a leaf), and its likeliest child.
        self._first = [-1]
        self._visits = [2]  # the root is never a leaf
        self._followed = [0]
        self._best = [_ROOT]
        self._active = [_ROOT]

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self._text.append(token)
            self._advance(token)

    def propose(self, max_drafted: int) -> list[int]:
        """The best-scored continuation of the text; empty when its end was never seen before.

        A match of n tokens may propose n tokens, and scores the sum of the probabilities that its
        path is right so far: a short accidental match proposes little. The longer match wins ties.
        """
        drafted: list[int] = []
        best_score = 0.0
        for length in range(1, len(self._active)):
            node = self._active[length]
            if self._visits[node] < 2:
                break  # nor was any longer run
            path, score = self._walk(node, min(length, max_drafted))
            if score >= best_score:
                drafted, best_score = path, score
        return drafted

    def _advance(self, token: int) -> None:
        """Move every active node to its child by the token just appended."""
        children, visits, end = self._children, self._visits, len(self._text) - 1
        moved = [_ROOT]
        for node in self._active[:MAX_DEPTH]:
            if visits[node] < 2:
                break  # a leaf, and every longer run is one
            child = children.get((node, token))
            if child is None:
                child = self._add(node, token, end)
            elif self._first[child] != end:  # else `_open` has just counted it
                visits[child] += 1
                self._count(node, child)
                if visits[child] == 2 and len(moved) < MAX_DEPTH:
                    self._open(child)
            moved.append(child)
        self._active = moved

    def _open(self, leaf: int) -> None:
        """A leaf occurred again: give it the child that followed its first occurrence."""
        after = self._first[leaf] + 1
        self._add(leaf, self._text[after], after)

    def _add(self, node: int, token: int, end: int) -> int:
        child = self._children[node, token] = len(self._visits)
        self._first.append(end)
        self._visits.append(1)
        self._followed.append(0)
        self._best.append(_ROOT)
        self._count(node, child)
        return child

    def _count(self, node: int, child: int) -> None:
        best = self._best[node]
        self._followed[node] += 1
        if best == _ROOT or self._visits[child] >= self._visits[best]:
            self._best[node] = child  # the latest of equals

    def _walk(self, node: int, num_steps: int) -> tuple[list[int], float]:
        """The likeliest path of at most `num_steps` tokens below a node, and its score."""
        path: list[int] = []
        probability, score = 1.0, 0.0
        while len(path) < num_steps and self._followed[node]:
            child = self._best[node]
            probability *= self._visits[child] / self._followed[node]
            if probability < MIN_PROBABILITY:
                return path, score
            score += probability
            path.append(self._text[self._first[child]])
            node = child
        after = self._first[node] + 1
        rest = self._text[after : after + num_steps - len(path)]
        return path + rest, score + probability * len(rest)


class Lookup:
    """Drafts point chains from each sequence's own text."""

    def __init__(self) -> None:
        self._indexes: dict[int, SuffixIndex] = {}

    def admit(self, sequence_id: int, prompt: Sequence[int]) -> None:
        """Index the prompt."""
        index = self._indexes[sequence_id] = SuffixIndex()
        index.extend(prompt)

    def propose(self, rows: Sequence[DraftRow]) -> list[Draft]:
        """One chain a row."""
        return [self._propose(row) for row in rows]

    def observe(self, sequence_id: int, commit: Commit) -> None:
        """Index what was kept."""
        self._indexes[sequence_id].extend(commit.tokens)

    def release(self, sequence_id: int) -> None:
        """Drop the index."""
        self._indexes.pop(sequence_id, None)

    def close(self) -> None:
        """Drop every index."""
        self._indexes.clear()

    def _propose(self, row: DraftRow) -> Draft:
        pending = row.tokens[-1]
        if row.max_drafted < 1:
            return plain_draft(pending)
        drafted = self._indexes[row.sequence_id].propose(row.max_drafted)
        return Draft(TokenTree.made_chain([pending, *drafted]), _POINT)
