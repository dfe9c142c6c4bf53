"""What all bodies have in common, and the fields that are known and refused by name.

`null` is the same as absence. Unknown fields are refused: a request that is answered was understood
in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_ENTRIES = 1024  # of an object
MOST = 2**31 - 1  # of any count
_OLD_TOOLS = "it was replaced by `tools` and `tool_choice`"
_STATELESS = "nothing is kept between requests"
_TEXT_ONLY = "this server reads and writes text only"

# Fields of OpenAI's and its peers' APIs that are known and not honoured: why, and which values
# change nothing and may be sent nevertheless.
REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "functions": (_OLD_TOOLS, ([],)),
        "function_call": (_OLD_TOOLS, ("none", "auto")),
        "grammar": ("GBNF is not read: `structured_outputs` takes Lark", ()),
        "suffix": ("text is continued, not filled in", ("",)),
        "best_of": ("all `n` completions are returned", (1,)),
        "annotations": (_TEXT_ONLY, ([],)),
        "audio": (_TEXT_ONLY, ()),
        "modalities": (_TEXT_ONLY, (["text"],)),
        "web_search_options": ("this server fetches nothing", ()),
        "reasoning_effort": ("it has no meaning for this model", ("none",)),
        "verbosity": ("it has no meaning for this model", ("medium",)),
        "chat_template": ("templates come with the model only", ()),
        "chat_template_kwargs": ("templates come with the model only", ({},)),
        "prompt_logprobs": ("`echo` with `logprobs` tells those of a prompt", (0,)),
        "previous_response_id": (_STATELESS, ()),
        "conversation": (_STATELESS, ()),
        "background": (_STATELESS, (False,)),
        "reasoning": ("it has no meaning for this model", ({},)),
        "truncation": ("what does not fit is refused", ("disabled",)),
        "max_tool_calls": ("calls are bounded by the answer's length only", ()),
        "use_beam_search": ("there is no beam search", (False,)),
    }
)


class Body(BaseModel):
    """What every body has in common: no coercion, no unknown fields, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        _refuse_crowds(body)
        given = {name: value for name, value in body.items() if value is not None}
        for name in REFUSED.keys() & given.keys() - cls.model_fields.keys():
            why, harmless = REFUSED[name]
            if not any(given[name] == one and type(given[name]) is type(one) for one in harmless):
                raise PydanticCustomError(
                    "refused", "{field} is not supported: {why}", {"field": name, "why": why}
                )
            del given[name]
        return given


def _readable(text: str) -> str:
    """JSON can spell halves of characters, which no text has."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise PydanticCustomError("unreadable", "half a character (a lone surrogate) is no text")
    return text


def _refuse_crowds(body: dict[Any, Any]) -> None:
    """Before each entry could become an error of its own, a million of them in one body."""
    tables = [body, *(value for value in body.values() if isinstance(value, dict))]
    if any(len(table) > MAX_ENTRIES for table in tables):
        raise PydanticCustomError(
            "crowded", "an object has more than {most} entries", {"most": MAX_ENTRIES}
        )


TokenId = Annotated[int, Field(ge=0, lt=MOST)]
Text = Annotated[str, AfterValidator(_readable)]
Stop = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_readable)]
