"""Expected accepted length on text a target has made, without an engine: exact, given the text.

Knows how far each draft would have been kept, no model. Where a draft is judged by `match`, what
the target says does not depend on the drafts, so all that an engine would do on a text is known
once it is known, for every position, how many tokens of a draft begun there are the text's own. A
round begun at p that keeps n ends with the target's own token and the next one begins at p + n + 1:
a Markov reward process over round starts, of which a given text is one path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Expected:
    """What drafting yields on some texts.

    `by_position[k]`: of the rounds that kept k drafted tokens and drafted another, the share that
    kept it too. `from_anywhere`: tokens a round would yield if it began at any position alike.
    `by_length[n]`: tokens a round of chains of n + 1 drafted tokens.
    """

    num_tokens: int
    num_rounds: int
    by_position: tuple[float, ...]
    from_anywhere: float
    by_length: tuple[float, ...]

    @property
    def tokens_per_round(self) -> float:
        """Emitted tokens a round, the target's own included."""
        return self.num_tokens / max(1, self.num_rounds)


def matched_runs(drafted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """`[N]` tokens kept of each draft, of `[N K]`: whether the token is the text's own."""
    runs: NDArray[np.int64] = np.cumprod(drafted.astype(np.int64), axis=1).sum(axis=1)
    return runs


def starts_of(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The indices where rounds begin when the first begins at 0; `runs [N]` of every position.

    Index i is the i-th position whose next token is of the text; the last index yields one token.
    """
    starts, at = [], 0
    while at < len(runs):
        starts.append(at)
        at += int(min(runs[at], len(runs) - 1 - at)) + 1
    return np.array(starts, np.int64)


def expected(texts: Iterable[NDArray[np.int64]], num_drafted: int, *, plain: int = 1) -> Expected:
    """What an engine yields on texts, of each the `runs [N]` (see `starts_of`).

    `plain`: rounds of a text that draft nothing, because the prompt is still to be read: each
    yields one token in front of the first run. No draft passes the end of a text.
    """
    tokens = rounds = 0
    by_length = np.zeros(num_drafted, np.int64)  # rounds of chains of 1, 2, …
    reached, kept = np.zeros(num_drafted, np.int64), np.zeros(num_drafted, np.int64)
    anywhere = list[float]()
    for runs in texts:
        room = len(runs) - 1 - np.arange(len(runs))
        allowed, held = np.minimum(room, num_drafted), np.minimum(runs, room)
        starts = starts_of(runs)
        tokens += len(runs) + plain
        rounds += len(starts) + plain
        by_length += [len(starts_of(np.minimum(runs, n + 1))) + plain for n in range(num_drafted)]
        for k in range(num_drafted):
            reached[k] += int(((held[starts] >= k) & (allowed[starts] > k)).sum())
            kept[k] += int((held[starts] > k).sum())
        anywhere += (held + 1.0)[room >= num_drafted].tolist()
    share = kept / np.maximum(reached, 1)
    mean = float(np.mean(anywhere)) if anywhere else 1.0
    yields = tokens / np.maximum(by_length, 1)
    return Expected(tokens, rounds, tuple(share.tolist()), mean, tuple(yields.tolist()))
