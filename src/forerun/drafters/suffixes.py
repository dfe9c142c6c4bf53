"""Suffixes: which runs of tokens occurred in a text, what followed them, and what to propose of it.

A suffix trie of bounded depth over one growing text, scored as in SuffixDecoding (Oliaro et al.
2024, arXiv 2411.04975). Knows tokens only.

    node         a run of tokens that occurred; the root is the empty run
    active[n]    the node of the last n tokens; a new token moves every one to its child
    leaf         a run that occurred once: its continuation is read from the text itself, and its
                 children are made only when it occurs again

So a new token costs as many steps as the text's end has in common with what came before, at most
`MAX_DEPTH`, whatever the length of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from forerun.shapes.growth import best_first

MAX_DEPTH = 16  # longer matches foretell no better, and loops would make any trie that deep
MIN_PROBABILITY = 0.1  # a path less likely than this is not worth a node (the paper's value)
_ROOT = 0

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Found:
    """A tree of continuations: `parents` are 0 for the text's end, k for the k-th token of it, and
    `scores` the probabilities that the paths are right. `total` is their sum, the tokens it is
    expected to give."""

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()
    scores: Sequence[float] = ()
    total: float = 0.0


def best_continuation(
    matches: Iterable[tuple[int, S]],
    children: Callable[[S], Iterable[tuple[int, float, S]]],
    budget: int,
    depth: int,
    width: int,
) -> Found:
    """Of all matches, longest first, the one whose tree is expected to give most tokens.

    A match of n tokens may be n levels deep and have n nodes for each of `width` siblings: a short
    accidental one proposes little. The longer match wins ties.
    """
    best = Found()
    for length, state in matches:
        num_levels = min(length, depth)
        if best.total >= num_levels:
            break  # a level's probabilities sum to at most one, here and for all shorter matches
        grown = best_first(
            lambda one: islice(children(one), width),
            state,
            min(budget, length * width),
            num_levels,
            MIN_PROBABILITY,
        )
        total = sum(grown[2])
        if total > best.total:
            best = Found(*grown, total)
    return best


class SuffixIndex:
    """Which runs of up to `MAX_DEPTH` tokens occurred in one text, and what followed them."""

    __slots__ = (
        "_active", "_best", "_children", "_elder", "_first", "_followed", "_text", "_visits",
        "_youngest",
    )  # fmt: skip

    def __init__(self) -> None:
        self._text: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        # Per node: where its first occurrence ends, how often it occurred, how often something
        # followed it (0 for a leaf), and its likeliest child.
        self._first = [-1]
        self._visits = [2]  # the root is never a leaf
        self._followed = [0]
        self._best = [_ROOT]
        # The children of a node, newest first, as a list through them.
        self._youngest = [_ROOT]
        self._elder = [_ROOT]
        self._active = [_ROOT]

    def __len__(self) -> int:
        return len(self._text)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        for token in tokens:
            self._text.append(token)
            self._advance(token)

    def propose(self, max_drafted: int) -> list[int]:
        """The best-scored continuation of the text; empty when its end was never seen before."""
        return self.best_path(max_drafted)[0]

    def best_path(self, max_drafted: int) -> tuple[list[int], float]:
        """What `best_continuation` finds without forks, sooner; and its score."""
        drafted: list[int] = []
        best_score = 0.0
        for length in range(1, len(self._active)):
            node = self._active[length]
            if self._visits[node] < 2:
                break  # nor was any longer run
            path, score = self._walk(node, min(length, max_drafted))
            if score >= best_score:
                drafted, best_score = path, score
        return drafted, best_score

    def matches(self, beyond: Sequence[int] = ()) -> list[tuple[int, int]]:
        """`(length, state)` of the runs at the end of text and `beyond` that occurred before,
        longest first, but for those that occurred only where a longer one did. `beyond` is not
        added to the text."""
        states = [_ROOT]
        for node in self._active[1:]:
            if self._visits[node] < 2:
                break  # it occurred at the text's end only, and so did every longer run
            states.append(node)
        for token in beyond:
            moved = [_ROOT]
            for state in states[:MAX_DEPTH]:
                child = self._child(state, token)
                if child is None:
                    break
                moved.append(child)
            states = moved
        found, most = [], 0
        for length in range(len(states) - 1, 0, -1):
            visits = self._visits[states[length]] if states[length] > 0 else 1
            if visits > most:
                found.append((length, states[length]))
            most = visits
        return found

    def children(self, state: int) -> Iterator[tuple[int, float, int]]:
        """`(token, probability, state)` of what followed a run, likeliest first."""
        after = self._after(state)
        if after is not None:
            if after < len(self._text):
                yield self._text[after], 1.0, ~(after + 1)
            return
        best, followed = self._best[state], self._followed[state]
        for visits, _, child in sorted(self._likely(state, best), reverse=True):
            yield self._text[self._first[child]], visits / followed, child

    def _likely(self, node: int, best: int) -> Iterator[tuple[int, bool, int]]:
        """What may be worth drafting: how often, whether it is the best child, the child."""
        least = MIN_PROBABILITY * self._followed[node]
        child = self._youngest[node]
        while child != _ROOT:
            if self._visits[child] >= least:
                yield self._visits[child], child == best, child
            child = self._elder[child]

    def _after(self, state: int) -> int | None:
        """Where the only known continuation of a run begins; None where children are counted.

        A state is a node, or `~place` inside a continuation.
        """
        if state < 0:
            return ~state
        return None if self._followed[state] else self._first[state] + 1

    def _child(self, state: int, token: int) -> int | None:
        after = self._after(state)
        if after is None:
            return self._children.get((state, token))
        is_same = after < len(self._text) and self._text[after] == token
        return ~(after + 1) if is_same else None

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
        self._youngest.append(_ROOT)
        self._elder.append(self._youngest[node])
        self._youngest[node] = child
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
