"""What a service has done so far, and how fast it is: sums, and the backlog's end foretold."""

from __future__ import annotations

from collections import Counter

from forerun.engine.queue import Step
from forerun.engine.sequence import Sequence

_MEMORY = 0.98  # of past steps that a step keeps: about the last fifty
_LEAST_S, _MOST_S = 0.1, 600.0  # of waiting that is ever advised
_UNKNOWN_RATE = 100.0  # tokens a second, before anything was measured


class Totals:
    """Sums over a service's life."""

    def __init__(self) -> None:
        self.num_requests: Counter[str] = Counter()
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        self.num_preemptions = 0
        self.num_rounds = 0
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.accepted_by_position: list[int] = []
        self._tokens, self._seconds = 0.0, 0.0

    def learn_begun(self, row: Sequence) -> None:
        """Count a request that got its K/V memory."""
        self.num_prompt_tokens += row.prompt_len
        self.num_cached_tokens += row.num_cached

    def learn(self, step: Step, seconds: float) -> None:
        """Count what a step brought in so many seconds."""
        num_generated = sum(len(gain.piece.token_ids) for gain in step.gains)
        self.num_generated_tokens += num_generated
        self.num_rounds += bool(step.gains)
        self.num_preemptions += step.num_preempted
        for gain in step.gains:
            self._learn_draft(gain.num_drafted, gain.num_accepted)
        self._tokens = _MEMORY * self._tokens + num_generated + step.num_read
        self._seconds = _MEMORY * self._seconds + seconds

    def _learn_draft(self, num_drafted: int, num_accepted: int) -> None:
        if not num_drafted:
            return
        self.num_drafts += 1
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_accepted
        more = num_accepted - len(self.accepted_by_position)
        self.accepted_by_position += [0] * more
        for position in range(num_accepted):
            self.accepted_by_position[position] += 1

    def seconds_for(self, num_tokens: float) -> float:
        """About how long so many tokens take, read or generated, at the rate of the last steps."""
        rate = self._tokens / self._seconds if self._seconds else _UNKNOWN_RATE
        return min(max(num_tokens / max(rate, 1e-9), _LEAST_S), _MOST_S)

    @property
    def mean_generated(self) -> float | None:
        """Tokens that an ended request came to; None before the first has ended."""
        num = self.num_requests.total()
        return self.num_generated_tokens / num if num else None
