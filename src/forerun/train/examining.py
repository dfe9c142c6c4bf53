"""A drafter looked at now and then while it is trained: what it yields, and its best weights.

Knows a module, its target, held-out text and the files of a run: `acceptance.jsonl`, a line for
each look, `best.safetensors`, the weights that yielded most, and a picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from forerun.train.checkpoints import read_state, write_state
from forerun.train.curve import draw_acceptance
from forerun.train.expected import Expected
from forerun.train.patience import Patience, mean_yield

LOG, BEST = "acceptance.jsonl", "best.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The weights that yielded most of all that were examined, after which step, and how much."""

    step: int
    figures: Mapping[str, Expected]
    weights: Mapping[str, Any]


class Examiner:
    """Looks at one drafter in the directory of its run.

    `at_step` is where the run stands: looks after it were of a training that was killed and are
    forgotten, and of a run that begins so are its best weights.
    """

    def __init__(
        self,
        examine: Callable[[], dict[str, Expected]],
        directory: Path,
        picture: Path,
        patience: int,
        at_step: int,
    ) -> None:
        self._examine, self._directory, self._picture = examine, directory, picture
        self._patience = Patience(directory / LOG, patience)
        self._patience.go_back_to(at_step)
        if at_step == 0:
            (directory / BEST).unlink(missing_ok=True)
        self._looked_at: int | None = None
        self.latest: float | None = None  # tokens a round, the mean over temperatures

    @property
    def is_over(self) -> bool:
        """Whether so many looks brought nothing that training no longer pays."""
        return self._patience.is_over

    def look(self, step: int, model: nn.Module) -> bool:
        """Note, draw and keep what there is after `step`; False once it no longer pays."""
        if step == self._looked_at:
            return not self.is_over
        self._looked_at, figures = step, self._examine()
        goes_on = self._patience.goes_on(step, figures)
        self.latest = _mean(figures)
        best = self.best()
        if best is None or self.latest > _mean(best.figures):
            self._keep(Best(step, figures, model.state_dict()))
        draw_acceptance(self._directory / LOG, self._picture)
        return goes_on

    def best(self) -> Best | None:
        """The best that was examined; None before the first look."""
        path = self._directory / BEST
        if not path.exists():
            return None
        state = read_state(path)
        figures = {name: Expected(**fields) for name, fields in state["figures"].items()}
        return Best(state["step"], figures, state["model"])

    def _keep(self, best: Best) -> None:
        figures = {name: asdict(one) for name, one in best.figures.items()}
        partial = (self._directory / BEST).with_suffix(".partial")
        write_state({"step": best.step, "figures": figures, "model": best.weights}, partial)
        os.replace(partial, self._directory / BEST)


def _mean(figures: Mapping[str, Expected]) -> float:
    return mean_yield({name: one.tokens_per_round for name, one in figures.items()})
