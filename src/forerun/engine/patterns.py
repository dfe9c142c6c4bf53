"""What a text may be bound by, as it is written: four ways, as one frozen value.

Pure. Knows no tokenizer and no library; how a pattern becomes masks is `grammar.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from forerun.errors import OptionError

# JSON on one line, with a blank behind a comma or a colon if the model likes. Where blanks are free
# some models never come to the next part, and little of what must come is certain.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

Kind = Literal["json_schema", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a text must be: of a JSON schema, a regular expression, one of some texts, or of a
    grammar in llguidance's dialect of Lark; best made by the four functions of those names.

    `text` is the pattern as it is written; of choices, a JSON list. `is_lenient`: keywords of a
    schema that cannot be enforced are left unenforced instead of refused. `named`: patterns that a
    `lark` text refers to, as `@name`. Whether it can be used is found out where it is asked for,
    by `GrammarError`.
    """

    kind: Kind
    text: str
    is_lenient: bool = False
    named: tuple[tuple[str, Pattern], ...] = ()

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | str, *, is_lenient: bool = False) -> Pattern:
        """JSON of a schema, which is given as an object or as its text; keys come in its order.

        Raises:
            OptionError: something else.
        """
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
        except TypeError as error:
            raise OptionError(
                "a schema is a JSON object or its text; of a model of pydantic it is"
                " Model.model_json_schema()"
            ) from error
        return Pattern("json_schema", text, is_lenient)

    @staticmethod
    def regex(expression: str) -> Pattern:
        """A text that a regular expression matches from its beginning to its end."""
        return Pattern("regex", expression)

    @staticmethod
    def choice(texts: Sequence[str]) -> Pattern:
        """One of these texts.

        Raises:
            OptionError: none, or a text instead of several.
        """
        if isinstance(texts, str) or not texts:
            raise OptionError("choices are a list of one text or more, as ['yes', 'no']")
        return Pattern("choice", json.dumps(list(texts)))

    @staticmethod
    def lark(grammar: str) -> Pattern:
        """A text of a grammar whose first rule is `start`."""
        return Pattern("lark", grammar)

    @property
    def num_chars(self) -> int:
        """How long it is as it is written, with all that it refers to."""
        return len(self.text) + sum(one.num_chars for _, one in self.named)


ANY_OBJECT = Pattern.json_schema({"type": "object"})
