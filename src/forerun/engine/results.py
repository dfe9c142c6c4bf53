"""What the engine hands out: pieces while a request runs, a completion when it has ended."""

from __future__ import annotations

from dataclasses import dataclass

from forerun.engine.sequence import TokenLogprobs
from forerun.errors import ForerunError
from forerun.stats import GenerationStats


@dataclass(frozen=True, slots=True)
class Piece:
    """What one round added to one request.

    `texts` is the text that became certain with each of `token_ids` (empty while it may begin a
    stop string or is half a character), `is_drafted` whether the token is an accepted draft or the
    target's own. `index` is the prompt's place in the call; `finish_reason` comes with the last.
    """

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    is_drafted: tuple[bool, ...]
    index: int = 0
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """The whole text of the piece."""
        return "".join(self.texts)

    @property
    def num_accepted(self) -> int:
        """How many of its tokens are accepted drafts."""
        return sum(self.is_drafted)


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request.

    `token_ids` are the generated ones, a stopping token and those that spell a stop string
    included; `text` ends before the stop string. `finish_reason` is `stop`, `length`, `cancelled`
    or `error` (then `error` says why). The same seed, numerics and request give the same tokens.
    `prediction`: of the text that was expected, how many proposed tokens are part of the answer,
    and how many are not; None where none was. `drafter_state`: of its drafter, as it ended
    (`Guard.state`).
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    seed: int
    numerics: str
    exactness: str
    stats: GenerationStats
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: ForerunError | None = None
    prediction: tuple[int, int] | None = None
    drafter_state: str = ""
