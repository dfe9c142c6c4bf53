"""Sequential: draft, then verify; nothing is prepared while the verdict is pending."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.draft import Draft


@dataclass(frozen=True, slots=True)
class Sequential:
    """Guess no outcome."""

    num_branches = 0
    per_exit: ClassVar[int] = 0

    def exits(self, draft: Draft) -> list[int]:  # noqa: ARG002  the protocol's name
        """Nothing, whatever was drafted."""
        return []
