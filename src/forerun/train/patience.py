"""Whether training a drafter still pays, by what it yields on held-out text.

Knows figures and one log file. Must not know models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from forerun.train.expected import Expected

LEAST_GAIN = 0.005  # of tokens a round: less is noise of a few held-out rows


class Patience:
    """Keeps examinations in a file, one line each, and counts those that brought nothing."""

    def __init__(self, log: Path, patience: int) -> None:
        """`patience`: examinations in a row without progress that end a training; 0: none do."""
        self._log, self._patience = log, patience

    def goes_on(self, step: int, figures: Mapping[str, Expected]) -> bool:
        """Note what was found after `step`; False once it no longer pays."""
        each = {name: one.tokens_per_round for name, one in figures.items()}
        positions = {name: list(one.by_position) for name, one in figures.items()}
        record = {"step": step, "tokens_per_round": each, "by_position": positions}
        with self._log.open("a") as log:
            log.write(json.dumps(record) + "\n")
        return not self._patience or self._num_idle() < self._patience

    def _num_idle(self) -> int:
        """Examinations since the last one that was better than all before it."""
        records = [json.loads(line) for line in self._log.read_text().splitlines()]
        best, idle = 0.0, 0
        for record in records:
            values = list(record["tokens_per_round"].values())
            mean = sum(values) / len(values)
            idle = 0 if mean > best * (1 + LEAST_GAIN) else idle + 1
            best = max(best, mean)
        return idle
