"""What a request may ask of speculation: the fields, and what they say to the engine.

How a request is drafted for is either one word (`auto`, `off`), the names of a composition with `+`
between them, or an object with a name for each axis. What is not named is as the server has it, and
what the server has is told in the same names.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from forerun.composition import Composition, DrafterName, ScheduleName, ShapeName
from forerun.errors import OptionError
from forerun.options import Speculation
from forerun.serve.body import Body, Text
from forerun.serve.refusals import Refusal

MAX_NAME = 200  # characters; a longer one says nothing that a request may ask for
MAX_PARTS = 1024

# Drafters that no request names, as a word of their own: not in a file's place behind a colon.
_UNNAMED = re.compile(r"(?:^|[\s+(,])(grammar|prediction)(?=[\s+),:]|$)")
_TOLD = MappingProxyType(
    {
        "grammar": "drafter grammar drafts by itself wherever something binds an answer: send"
        " response_format or tools, and leave grammar out",
        "prediction": "send the expected text in the field prediction, and leave"
        " prediction out of speculation",
    }
)

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class CompositionBody(Body):
    """A composition, axis by axis."""

    drafter: Name = "auto"
    shape: Name = "auto"
    rule: Name = "auto"
    schedule: Name = "auto"


def _form_of(value: Any) -> str:
    return "by-axis" if isinstance(value, dict | CompositionBody) else "in-words"


# Tags that hold a hyphen are left out of the names of fields (`complaints.param_of`).
SpeculationField: TypeAlias = Annotated[
    Annotated[Name, Tag("in-words")] | Annotated[CompositionBody, Tag("by-axis")],
    Discriminator(_form_of),
]


class PredictedPart(Body):
    """One part of a predicted text."""

    type: Literal["text"]
    text: Text


class PredictionBody(Body):
    """OpenAI's Predicted Outputs: text that the answer may come to."""

    type: Literal["content"]
    content: (
        Text
        | Annotated[list[PredictedPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    )

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


def drafts(asked: str | CompositionBody) -> bool:
    """Whether anything is to be drafted."""
    return asked != "off"


def speculation_of(asked: str | CompositionBody) -> Speculation | None:
    """The composition that was asked for; None where it is the server's own.

    Raises:
        Refusal: names that are none, or that cannot be together.
    """
    if asked in ("auto", "off"):
        return None
    names = asked.drafter if isinstance(asked, CompositionBody) else asked
    unnamed = _UNNAMED.search(names)
    if unnamed is not None:
        raise Refusal(400, f"speculation: {_TOLD[unnamed[1]]}", param="speculation")
    try:
        if isinstance(asked, CompositionBody):
            return Speculation(**asked.model_dump())
        return Speculation.parse(asked)
    except OptionError as error:
        told = _without_places(str(error))
        raise Refusal(400, f"speculation: {told}", param="speculation") from error


def _without_places(message: str) -> str:
    """What an error says, without names that lead to files: those are for the server's owner."""
    said, available, names = message.partition("; available: ")
    fit = [name for name in names.split(", ") if not re.search("DIR|FILE", name)]
    return said + available + ", ".join(fit)


def names_of(composition: Composition) -> dict[str, str]:
    """What a server decodes with, by axis, in names that a request may ask for: never a place of
    files. A tree out of a file is `tree:FILE.json`, which no request may ask for."""
    return {
        "drafter": _drafter(composition.drafter),
        "shape": _shape(composition.shape),
        "rule": composition.rule,
        "schedule": _schedule(composition.schedule),
    }


def _drafter(drafter: DrafterName) -> str:
    inside = [_drafter(part) for part in drafter.parts]
    if drafter.shape is not None:
        inside += [_shape(drafter.shape), drafter.rule]
    if inside:
        return f"{drafter.name}({','.join(inside)})"
    return f"exit:{drafter.argument}" if drafter.name == "exit" else drafter.name


def _shape(shape: ShapeName) -> str:
    if shape.kind == "auto":
        return "auto"
    size = "x".join(map(str, shape.widths)) or str(shape.size or "auto")
    if shape.file is not None:
        size = "FILE.json"
    return ":".join(word for word in (shape.kind, size, shape.siblings) if word)


def _schedule(schedule: ScheduleName) -> str:
    if not schedule.num_branches:
        return schedule.kind
    damping = f":{schedule.damping!r}" if schedule.damping < 1.0 else ""
    return f"{schedule.kind}:{schedule.num_branches}{damping}"
