"""Sequential: draft, then verify; nothing is prepared while the verdict is pending."""

from __future__ import annotations

from dataclasses import dataclass

from forerun.draft import Draft


@dataclass(frozen=True, slots=True)
class Sequential:
    """Guess no outcome."""

    num_branches = 0

    def exits(self, draft: Draft) -> list[int]:  # noqa: ARG002  the protocol's name
        """Nothing, whatever was drafted."""
        return []
