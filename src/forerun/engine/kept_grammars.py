"""Grammars that were asked for: compiled when they first are, kept for a while.

Each partition has its own, so that nobody learns from a clock what another asked for. Compiling
happens on the thread that asks, never on the engine's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from forerun.engine.constraints import Grammar
from forerun.engine.patterns import Pattern
from forerun.errors import OptionError
from forerun.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from forerun.engine.grammar import Compiler

MOST_KEPT = 64  # compiled grammars of all partitions together


class Grammars:
    """Compiles patterns for one model and keeps the last ones; from any thread."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_ids: frozenset[int]) -> None:
        self._model = tokenizer, vocab, end_ids
        self._compiler: Compiler | None = None
        self._kept: OrderedDict[tuple[str, Pattern], Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    def of(self, pattern: Pattern, partition: str = "") -> Grammar:
        """A pattern's grammar, compiled unless the partition asked for it before.

        Raises:
            GrammarError: it is none, or too large, the package is not installed, or the model
                cannot be bound by any.
            OptionError: it is no pattern.
        """
        if not isinstance(pattern, Pattern):
            raise OptionError(
                f"grammar must be a Pattern, found {type(pattern).__name__}: write"
                " Pattern.json_schema(…), .regex(…), .choice(…) or .lark(…)"
            )
        key = partition, pattern
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        grammar = self._opened().compile(pattern)
        with self._lock:
            self._kept[key] = grammar
            if len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return grammar

    def may_begin(self, pattern: Pattern, beginning: str) -> bool:
        """Whether some text of a pattern that can be used begins so."""
        return self._opened().may_begin(pattern, beginning)

    def _opened(self) -> Compiler:
        # Most engines are asked for none, and start-up is imports.
        from forerun.engine.grammar import Compiler

        with self._opening:
            if self._compiler is None:
                self._compiler = Compiler(*self._model)
            return self._compiler
