"""Which ways to speculate a certificate covers when nobody names one.

Names only; what of them is built, and fits the model, is found out by opening them.
"""

from __future__ import annotations

from dataclasses import dataclass

from forerun.errors import OptionError
from forerun.options import Speculation
from forerun.tools.arguments import EngineArguments

_MATCH = (
    ("auto", "auto", "match"),
    ("lookup", "chain:8", "match"),
    ("lookup", "tree:8", "match"),
    ("lm", "chain:4", "match"),
    ("lm", "tree:16", "match"),
    ("lm", "tree:3x2x1", "match"),
    ("router(lookup,lm)", "chain:4", "match"),
    ("nested(lm,chain:2,match)", "chain:4", "match"),
    ("exit:1", "chain:3", "match"),
    ("dspark", "chain:4", "match"),
    ("dspark", "tree:8", "match"),
    ("eagle3", "tree:8", "match"),
)
_SAMPLED = (
    ("lookup", "chain:4", "rejection"),
    ("lm", "chain:4", "rejection"),
    ("lm", "tree:3x2x1", "rejection"),
    ("lm", "tree:3x2x1:top", "rejection"),
    ("lm", "chain:4", "block"),
    ("lm", "tree:3x2x1", "traversal"),
    ("lm", "tree:3x2x1", "kseq"),
    ("dspark", "chain:4", "rejection"),
)
REPRESENTATIVE = _MATCH + _SAMPLED


@dataclass(frozen=True, slots=True)
class Candidate:
    """One composition: its name in a report, and the reason where it cannot be."""

    name: str
    speculation: Speculation | None
    reason: str = ""

    @property
    def keeps_tokens(self) -> bool:
        """Whether its tokens, and not only their law, are those of plain decoding."""
        return self.speculation is not None and self.speculation.composition().rule == "match"


def candidates(engine: EngineArguments) -> list[Candidate]:
    """The composition that was named, or the representative ones.

    Raises:
        OptionError: the named one cannot be; those of the set carry their reason instead.
    """
    asked = engine.speculation()
    if asked != Speculation():
        return [Candidate(name_of(asked), asked)]
    return [_candidate(*words) for words in REPRESENTATIVE]


def name_of(speculation: Speculation) -> str:
    """As in a table: drafter, shape, rule."""
    return f"{speculation.drafter} {speculation.shape} {speculation.composition().rule}"


def _candidate(drafter: str, shape: str, rule: str) -> Candidate:
    try:
        speculation = Speculation(drafter, shape, rule)
    except OptionError as error:
        return Candidate(f"{drafter} {shape} {rule}", None, str(error))
    return Candidate(name_of(speculation), speculation)
