"""The grammars that requests ask for, compiled and kept for a while; each partition has its own.

Compiling happens where requests are read, never on the engine's thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from forerun.engine.constraints import Grammar
from forerun.engine.grammar import Compiler, Pattern
from forerun.errors import GrammarError
from forerun.models.tokenizer import Tokenizer
from forerun.serve.fields import SamplingBody
from forerun.serve.grammar_fields import patterns_of
from forerun.serve.refusals import Refusal

MOST_KEPT = 64  # compiled grammars of all partitions together


class Grammars:
    """Compiles grammars for one model and keeps the last ones; from any thread."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_ids: frozenset[int]) -> None:
        self._model = tokenizer, vocab, end_ids
        self._compiler: Compiler | None = None
        self._kept: OrderedDict[tuple[str, Pattern], Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    def of(self, pattern: Pattern, partition: str) -> Grammar:
        """A pattern's grammar, compiled unless the partition asked for it before.

        Raises:
            GrammarError: it is none, or too large, or the model cannot be bound by any.
        """
        key = partition, pattern
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._opening:
            if self._compiler is None:
                self._compiler = Compiler(*self._model)
        grammar = self._compiler.compile(pattern)
        with self._lock:
            self._kept[key] = grammar
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return grammar

    def asked(self, pattern: Pattern, partition: str, param: str) -> Grammar:
        """The same for a client, who is told which field asked for it.

        Raises:
            Refusal: it cannot be had.
        """
        try:
            return self.of(pattern, partition)
        except GrammarError as error:
            raise Refusal(400, f"{param}: {error}", param=param) from error


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
    asked = [(name, one) for name, found in by_field.items() for one in found if one is not None]
    if not asked:
        return None
    if len(asked) > 1:
        names = " and ".join(name for name, _ in asked)
        raise Refusal(400, f"{names}: an answer can be of one kind only", param=asked[1][0])
    if body.ignore_eos:
        raise Refusal(
            400, f"ignore_eos: an answer ends where {asked[0][0]} ends", param="ignore_eos"
        )
    return asked[0]
