"""How much of a text is a loop: the one definition, used by benchmarks and by training.

A token *loops* when it is covered by a 4-gram of the generated tokens that already occurred
earlier in them. The prompt does not count: repeating the prompt is copying, not looping.
Ordinary code repeats some 4-grams, so the share is a little above zero for good text too; it
errs towards calling text a loop, never the other way. That holds by kind of text too: tables,
records and tests repeat what their form repeats, so compare a share with another of its category.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NGRAM_LEN = 4


def looping(token_ids: Sequence[int]) -> list[bool]:
    """For each generated token, whether it lies inside a repeated 4-gram."""
    seen: set[tuple[int, ...]] = set()
    marks = [False] * len(token_ids)
    for start in range(len(token_ids) - NGRAM_LEN + 1):
        ngram = tuple(token_ids[start : start + NGRAM_LEN])
        if ngram in seen:
            marks[start : start + NGRAM_LEN] = [True] * NGRAM_LEN
        seen.add(ngram)
    return marks


def loop_share(completions: Iterable[Sequence[int]]) -> float:
    """Looping tokens ÷ all tokens, over several completions; 0 for none."""
    marks = [mark for token_ids in completions for mark in looping(token_ids)]
    return sum(marks) / len(marks) if marks else 0.0
