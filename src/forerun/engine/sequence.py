"""One request: its tokens, how far their K/V is kept, and why it ended.

    tokens   prompt … | generated … , pending
             0 …………………………………… committed_len | known, K/V not kept

Between rounds `committed_len == len(tokens) - 1`, the last token being the pending one; a new
request has its prompt's tail still to be read, which its first round does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from forerun.engine.constraints import Constraint, Grammar
from forerun.engine.detokenize import Detokenizer
from forerun.errors import ForerunError
from forerun.options import SamplingParams
from forerun.protocols import Sampler
from forerun.stats import Tally

if TYPE_CHECKING:
    from forerun.drafters.expected import Expected
    from forerun.engine.parts import Parts


class Status(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A chosen token's raw log-probability and the n best `(token, logprob)`, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False)
class Sequence:
    """One request; `limit` is the most tokens it may have, prompt included.

    `speculates`: False if it is decoded plainly, whatever drafts for others. `partition`: whose
    kept prefixes it may begin with; of its prompt `num_cached` tokens came from there.
    `num_preempted`: how often it gave its K/V memory back and read its text again later.
    `is_watched`: whether who asked wants to see every round (`witness.Seen`). `parts`: how it is
    decoded, None for as the engine is; `expected`: the text that it may come to, if somebody said.
    `scores_prompt`: whether the log-probabilities of its prompt are asked for. `constraint`: what a
    grammar lets follow, where one binds it.
    """

    id: int
    index: int
    tokens: list[int]
    prompt_len: int
    limit: int
    params: SamplingParams
    seed: int
    stop_ids: frozenset[int]
    detokenizer: Detokenizer
    speculates: bool = True
    partition: str = ""
    num_cached: int = 0
    num_preempted: int = 0
    is_watched: bool = False
    constraint: Constraint | None = None
    parts: Parts | None = None
    expected: Expected | None = None
    scores_prompt: bool = False
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    committed_len: int = 0
    status: Status = Status.WAITING
    finish_reason: str | None = None
    error: ForerunError | None = None
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    has_penalties: bool = field(init=False)
    _sampler: Sampler = field(init=False)
    _sampler_len: int = field(init=False)

    def __post_init__(self) -> None:
        self.has_penalties = self.params.has_penalties
        self._sampler_len = self.prompt_len
        self._sampler = Sampler(self.params, self.seed)
        if self.has_penalties:
            prompt_ids = np.unique(np.array(self.tokens[: self.prompt_len], np.int32))
            self._sampler = Sampler(self.params, self.seed, prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    def sampler(self) -> Sampler:
        """How the next tokens are chosen, given those known now."""
        if self.has_penalties and self._sampler_len != len(self.tokens):
            counts = Counter(self.tokens[self.prompt_len :])
            ids = np.fromiter(counts.keys(), np.int32, len(counts))
            values = np.fromiter(counts.values(), np.int32, len(counts))
            known = self._sampler.prompt_ids
            self._sampler = Sampler(self.params, self.seed, known, ids, values)
            self._sampler_len = len(self.tokens)
        return self._sampler

    def bind(self, grammar: Grammar) -> None:
        """Let a grammar bind what is generated; its end is the text's, whatever was asked."""
        self.constraint = grammar.begin()
        self.stop_ids |= grammar.end_ids

    def finish(self, reason: str) -> None:
        """End with a reason: `stop`, `length`, `cancelled` or `error`."""
        self.status = Status.FINISHED
        self.finish_reason = reason

    def fail(self, error: ForerunError) -> None:
        """End because of an error of its own."""
        self.error = error
        self.finish("error")
