"""Which grammar a request asks for, and what its client is told where it cannot be had."""

from __future__ import annotations

from collections.abc import Sequence

from forerun.engine.constraints import Grammar
from forerun.engine.kept_grammars import Grammars
from forerun.engine.patterns import Pattern
from forerun.errors import GrammarError
from forerun.serve.fields import SamplingBody
from forerun.serve.grammar_fields import patterns_of
from forerun.serve.refusals import Refusal


def asked(grammars: Grammars, pattern: Pattern, partition: str, param: str) -> Grammar:
    """A pattern's grammar for a client, who is told which field asked for it.

    Raises:
        Refusal: it cannot be had.
    """
    try:
        return grammars.of(pattern, partition)
    except GrammarError as error:
        raise Refusal(400, f"{param}: {error}", param=param) from error


def refuse_lookalike(grammars: Grammars, name: str, pattern: Pattern, mark: str) -> None:
    """Refuse a text that may begin like a call where either of the two may come.

    Raises:
        Refusal: it may.
    """
    if grammars.may_begin(pattern, mark):
        raise Refusal(
            400, f"{name}: a text that may begin with {mark} cannot be told from a call: exclude"
            " that beginning, or send tool_choice: none or required", param=name,
        )  # fmt: skip


def wanted(body: SamplingBody) -> tuple[str, Pattern] | None:
    """The field that asks for a grammar, and what it asks for; None where none does.

    Raises:
        Refusal: two fields ask for one, or the text is to go on behind its end.
    """
    by_field: dict[str, Sequence[Pattern | None]] = {
        "response_format": [body.response_format.pattern] if body.response_format else [],
        "structured_outputs": body.structured_outputs.patterns if body.structured_outputs else [],
        "guided_json": patterns_of(body.guided_json, None, None, None),
        "guided_regex": patterns_of(None, body.guided_regex, None, None),
        "guided_choice": patterns_of(None, None, body.guided_choice, None),
        "guided_grammar": patterns_of(None, None, None, body.guided_grammar),
        "json_schema": patterns_of(body.json_schema, None, None, None),
    }
    every = [(name, one) for name, found in by_field.items() for one in found if one is not None]
    if not every:
        return None
    if len(every) > 1:
        names = " and ".join(name for name, _ in every)
        raise Refusal(400, f"{names}: an answer can be of one kind only", param=every[1][0])
    if body.ignore_eos:
        raise Refusal(
            400, f"ignore_eos: an answer ends where {every[0][0]} ends", param="ignore_eos"
        )
    return every[0]
