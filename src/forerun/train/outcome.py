"""What came of training a drafter: what it yields, why it ended, how it is used.

Knows figures and words. Must not know models.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from forerun.train.expected import Expected
from forerun.train.held_out import FILE

RECORDED_LENGTHS = (2, 4, 7)  # drafted tokens: what `--drafter auto` times a round with


class Ending(StrEnum):
    """Why a training ended."""

    BUDGET = "its budget is used up"
    PATIENCE = "the last examinations brought no progress (--patience)"
    STOPPED = "it was stopped; the same command goes on"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A drafter of a `kind` in `out` for `model`: the weights after `step` of `last_step`."""

    kind: str
    out: Path
    model: str
    ending: Ending
    step: int
    last_step: int
    figures: Mapping[str, Expected]

    @property
    def sentence(self) -> str:
        """One line: the yield, the reason, the command that uses it."""
        yields = " / ".join(f"{one.tokens_per_round:.2f}" for one in self.figures.values())
        temperatures = " / ".join(name.removeprefix("T=") for name in self.figures)
        use = f"forerun generate --model {shlex.quote(self.model)}"
        named = shlex.quote(f"{self.kind}:{self.out}")
        return (
            f"{yields} tokens a round at T = {temperatures} on held-out text"
            f" ({self.out / 'run' / FILE}), with the weights of step {self.step} of"
            f" {self.last_step}. Training ended: {self.ending.value}."
            f' Use it: {use} --drafter {named} "…"'
        )


def recorded_yields(figures: Mapping[str, Expected]) -> dict[int, float]:
    """Tokens a round by drafted tokens, the mean over temperatures, as discovery wants them: of 2,
    4 and 7, and of the longest chain where that is shorter."""
    longest = min(len(one.by_length) for one in figures.values())
    lengths = {*RECORDED_LENGTHS, min(longest, RECORDED_LENGTHS[-1])}
    return {
        num: sum(one.by_length[num - 1] for one in figures.values()) / len(figures)
        for num in sorted(lengths)
        if 0 < num <= longest
    }
