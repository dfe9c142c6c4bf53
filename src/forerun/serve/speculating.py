"""What a request may ask of speculation: the fields, and what they say to the engine.

How a request is drafted for is either one word (`auto`, `off`), the names of a composition with `+`
between them, or an object with a name for each axis. What is not named is as the server has it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from forerun.errors import OptionError
from forerun.options import Speculation
from forerun.serve.body import Body, Text
from forerun.serve.refusals import Refusal

MAX_NAME = 200  # characters; a longer one says nothing that a request may ask for
MAX_PARTS = 1024

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
    try:
        if isinstance(asked, CompositionBody):
            return Speculation(**asked.model_dump())
        return Speculation.parse(asked)
    except OptionError as error:
        raise Refusal(400, f"speculation: {error}", param="speculation") from error
