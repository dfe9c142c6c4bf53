"""Ahead: while a draft is verified, prepare the next one for the outcomes most likely to come.

Kumar, Dao, May 2026, *Speculative Speculative Decoding*, arXiv:2603.03251; over trees an outcome is
(exit node, bonus). Which of them are likeliest is for the drafter to say: it knows its margins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.draft import Draft
from forerun.errors import OptionError

MOST_BRANCHES = 256


@dataclass(frozen=True, slots=True)
class Ahead:
    """Prepare the `num_branches` likeliest outcomes, wherever the verdict may end.

    Raises:
        OptionError: a number of branches out of range.
    """

    num_branches: int
    per_exit: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_branches <= MOST_BRANCHES:
            raise OptionError(f"ahead:B needs B in [1, {MOST_BRANCHES}], found {self.num_branches}")

    def exits(self, draft: Draft) -> list[int]:
        """Every node."""
        return list(range(len(draft.tree)))
