"""Which ways to speculate a certificate covers when nobody names one, or only a schedule.

Names only; what of them is built, and fits the model, is found out by opening them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from forerun.errors import OptionError
from forerun.options import Speculation
from forerun.tools.arguments import EngineArguments

# Where time is short the last ones are left out: what differs most comes first.
REPRESENTATIVE = (
    ("auto", "auto", "match"),
    ("lm", "tree:16", "match"),
    ("lm", "chain:4", "rejection"),
    ("lookup", "chain:8", "match"),
    ("dspark", "tree:8", "match"),
    ("lm", "tree:3x2x1", "traversal"),
    ("eagle3", "tree:8", "match"),
    ("lm", "chain:4", "block"),
    ("router(lookup,lm)", "chain:4", "match"),
    ("lm", "tree:3x2x1", "kseq"),
    ("nested(lm,chain:2,match)", "chain:4", "match"),
    ("exit:1", "chain:3", "match"),
    ("dspark", "chain:4", "rejection"),
    ("lookup", "chain:4", "rejection"),
    ("lm", "tree:3x2x1", "rejection"),
    ("lm", "tree:3x2x1:top", "rejection"),
    ("lm", "chain:4", "match"),
    ("lookup", "tree:8", "match"),
    ("lm", "tree:3x2x1", "match"),
    ("dspark", "chain:4", "match"),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One composition: its name in a report, the reason where it cannot be, and whether somebody
    asked for it, who then hears an error where one of a set is left out."""

    name: str
    speculation: Speculation | None
    reason: str = ""
    is_asked_for: bool = False

    @property
    def keeps_tokens(self) -> bool:
        """Whether its tokens, and not only their law, are those of plain decoding."""
        return self.speculation is not None and self.speculation.composition().rule == "match"

    @property
    def sequential(self) -> Speculation | None:
        """The same composition on the sequential schedule, where that must draw the same tokens
        and plain decoding need not: a sampled rule, drafted for ahead by draws that are not damped.
        """
        if self.speculation is None or self.keeps_tokens:
            return None
        schedule = self.speculation.composition().schedule
        if schedule.kind not in ("parallel", "ahead") or schedule.damping < 1.0:
            return None
        return replace(self.speculation, schedule="sequential")


def candidates(engine: EngineArguments) -> list[Candidate]:
    """The composition that was named, or the representative ones; where only a schedule was named,
    each of them on it.

    Raises:
        OptionError: the named one cannot be; those of the set carry their reason instead.
    """
    asked = engine.speculation()
    if {asked.drafter, asked.shape, asked.rule} != {"auto"}:
        return [Candidate(name_of(asked), asked, is_asked_for=True)]
    return [_candidate((*words, asked.schedule)) for words in REPRESENTATIVE]


def name_of(speculation: Speculation) -> str:
    """As in a table: drafter, shape, rule, and the schedule where one was named."""
    rule, schedule = speculation.composition().rule, speculation.schedule
    return _name((speculation.drafter, speculation.shape, rule, schedule))


def _name(words: tuple[str, ...]) -> str:
    return " ".join(words[:3] if words[3] == "auto" else words)


def _candidate(words: tuple[str, ...]) -> Candidate:
    try:
        speculation = Speculation(*words)
    except OptionError as error:
        return Candidate(_name(words), None, str(error))
    return Candidate(name_of(speculation), speculation)
