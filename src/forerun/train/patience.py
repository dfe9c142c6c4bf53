"""Whether training a drafter still pays, by what it yields on held-out text.

Knows figures and one log file. Must not know models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.train.expected import Expected

LEAST_GAIN = 0.005  # of tokens a round: less is noise of a few held-out rows


class Patience:
    """Keeps examinations in a file, one line each, and counts those that brought nothing."""

    def __init__(self, log: Path, patience: int) -> None:
        """`patience`: examinations in a row without progress that end a training; 0: none do."""
        self._log, self._patience = log, patience

    @property
    def is_over(self) -> bool:
        """Whether it no longer pays, by what was noted so far."""
        return bool(self._patience) and self._num_idle() >= self._patience

    def go_back_to(self, step: int) -> None:
        """Forget what was noted after `step`: a training that was killed goes on from there."""
        kept = [record for record in self._records() if record["step"] <= step]
        self._log.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def goes_on(self, step: int, figures: Mapping[str, Expected]) -> bool:
        """Note what was found after `step`; False once it no longer pays."""
        self.go_back_to(step - 1)  # a step is noted once
        each = {name: one.tokens_per_round for name, one in figures.items()}
        positions = {name: list(one.by_position) for name, one in figures.items()}
        record = {"step": step, "tokens_per_round": each, "by_position": positions}
        with self._log.open("a") as log:
            log.write(json.dumps(record) + "\n")
        return not self.is_over

    def _num_idle(self) -> int:
        """Examinations since the last one that was better than all before it."""
        best, idle = 0.0, 0
        for record in self._records():
            mean = mean_yield(record["tokens_per_round"])
            idle = 0 if mean > best * (1 + LEAST_GAIN) else idle + 1
            best = max(best, mean)
        return idle

    def _records(self) -> list[dict[str, Any]]:
        if not self._log.exists():
            return []
        return [json.loads(line) for line in self._log.read_text().splitlines()]


def mean_yield(tokens_per_round: Mapping[str, float]) -> float:
    """One figure for all temperatures."""
    return sum(tokens_per_round.values()) / len(tokens_per_round)
