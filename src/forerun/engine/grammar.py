"""Grammars by `llguidance` (extra `grammar`): compiled once, followed by each request on its own.

Knows a tokenizer's bytes and what the library reads. Compiling may take long, so it is
bounded and not for the engine's thread; following is, one mask for each node of a round.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import numpy as np

from forerun.engine.constraints import Constraint, Masks
from forerun.engine.grammar_trial import STACK_BYTES, trouble_with
from forerun.engine.patterns import JSON_STYLE, Pattern
from forerun.errors import GrammarError
from forerun.models.tokenizer import Tokenizer
from forerun.tree import TokenTree

MOST_CHARS = 1 << 17  # of a grammar as it is written
_MOST_SYMBOLS = 100_000
_MOST_LEXER_STATES = 32_768  # of one request: about 2 kB each
_MOST_FUEL = 100_000  # of one mask: about 10 ms


class Compiler:
    """Compiles grammars for one model's tokens; from any thread, one at a time.

    Raises:
        GrammarError: the package is not there, or the model has no end-of-text token.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_ids: frozenset[int]) -> None:
        self._library = _library()
        if not end_ids:
            raise GrammarError(
                "this model has no end-of-text token, so no grammar could ever end: ask without"
            )
        self._vocab = vocab
        self._end_ids = end_ids
        self._lock = threading.Lock()
        wrapped = self._library.TokenizerWrapper(_Vocabulary(tokenizer, vocab, min(end_ids)))
        self._tokens = self._library.LLTokenizer(wrapped, n_vocab=vocab)

    def compile(self, pattern: Pattern) -> Compiled:
        """The grammar, ready to be begun.

        Raises:
            GrammarError: it is too large, is none, or allows nothing.
        """
        if pattern.num_chars > MOST_CHARS:
            raise GrammarError(
                f"the grammar has {pattern.num_chars} characters, at most {MOST_CHARS} are read:"
                " ask for less at a time"
            )
        with self._lock:
            try:
                matcher = _on_deep_stack(lambda: self._matcher(pattern))
            except GrammarError:
                raise
            except ValueError as error:
                raise GrammarError(f"the grammar cannot be read: {_short(error)}") from error
        if matcher.is_error():
            raise GrammarError(f"the grammar cannot be used: {_refused(matcher.get_error())}")
        return Compiled(matcher, self._vocab, self._end_ids)

    def may_begin(self, pattern: Pattern, beginning: str) -> bool:
        """Whether some text of a pattern that compiles begins so, however it is cut into tokens."""
        text, spelled = _written(self._library.LLMatcher, pattern), list(beginning.encode())

        def walked() -> int:
            matcher = self._library.LLMatcher(self._library.LLTokenizer("byte"), text, log_level=0)
            return int(matcher.try_consume_tokens(spelled))

        with self._lock:
            return bool(_on_deep_stack(walked) == len(spelled))

    def _matcher(self, pattern: Pattern) -> Any:
        """A matcher at the beginning, which has had to find its first mask."""
        text = _written(self._library.LLMatcher, pattern)
        trouble = "" if pattern.kind == "choice" else trouble_with(text)
        if trouble:
            raise GrammarError(f"the grammar cannot be used: {trouble}")
        limits = self._library.LLParserLimits(
            max_grammar_size=_MOST_SYMBOLS,
            max_lexer_states=_MOST_LEXER_STATES,
            step_lexer_fuel=_MOST_FUEL,
            verbose_errors=False,
        )
        matcher = self._library.LLMatcher(self._tokens, text, log_level=0, limits=limits)
        matcher.compute_bitmask()
        return matcher


class Compiled:
    """A `Grammar`: a matcher that stays where it is, copied for each request."""

    def __init__(self, matcher: Any, vocab: int, end_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._vocab = vocab
        self._end_ids = end_ids
        self._lock = threading.Lock()

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        return self._end_ids

    def begin(self) -> Constraint:
        """What may follow an empty text."""
        return Followed(self)

    def copy(self) -> Any:
        """A matcher of one's own, at the beginning."""
        with self._lock:
            return self._matcher.deep_copy()

    def mask(self, matcher: Any) -> Masks | None:
        """`[V]` what may follow where a matcher stands; None where it can tell no more."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            return None
        allowed: Masks = np.unpackbits(bits, count=self._vocab, bitorder="little").astype(np.bool_)
        ends = list(self._end_ids)
        allowed[ends] = allowed[ends].any()  # a matcher knows one of them
        return allowed


class Followed:
    """A `Constraint`: a matcher that walks to where it is asked about, and back.

    An error ends a matcher for good; it is replaced, for what failed was perhaps only drafted.
    """

    def __init__(self, grammar: Compiled) -> None:
        self._grammar = grammar
        self._matcher = grammar.copy()
        self._seen: list[int] = []

    def forced(self, text: Sequence[int], most: int) -> list[int]:
        """The tokens that a tokenizer would make of the bytes that must come, then the end."""
        self._stand(text)
        tokens = [int(token) for token in self._matcher.compute_ff_tokens()[:most]]
        is_there = len(tokens) < most and self._go_to([*text, *tokens], len(text))
        if is_there and self._matcher.is_stopped():
            tokens.append(min(self._grammar.end_ids))
        return tokens

    def allowed(self, text: Sequence[int], tree: TokenTree) -> Masks:
        """One mask a node."""
        self._stand(text)
        num_nodes, tokens = len(tree), tree.tokens.tolist()
        root = self._grammar.mask(self._matcher)
        if root is None:
            raise self._failure(len(text))
        allowed = np.ones((num_nodes, len(root)), np.bool_)
        allowed[0] = root
        below: list[list[int]] = [[] for _ in tokens]
        for node, parent in enumerate(tree.parents.tolist()[1:], start=1):
            below[parent].append(node)
        # Depth first, so that a matcher goes back as little as it can.
        to_visit = [(node, [*text]) for node in reversed(below[0])]
        while to_visit:
            node, above = to_visit.pop()
            token = tokens[node]
            if not allowed[tree.parents[node], token] or token in self._grammar.end_ids:
                continue
            path = [*above, token]
            mask = self._grammar.mask(self._matcher) if self._go_to(path, len(text)) else None
            allowed[node] = False if mask is None else mask
            to_visit += [(child, path) for child in reversed(below[node])]
        return allowed

    def _stand(self, text: Sequence[int]) -> None:
        """Go to the end of a text that the grammar allowed."""
        if not self._go_to(list(text)):
            raise self._failure(len(text))

    def _go_to(self, tokens: list[int], floor: int = 0) -> bool:
        """Walk to the end of `tokens`, whose first `floor` are known to be those before."""
        if self._matcher.is_error():
            self._matcher, self._seen, floor = self._grammar.copy(), [], 0
        seen = self._seen
        if seen != tokens[: len(seen)]:
            pairs = zip(seen[floor:], tokens[floor:], strict=False)
            same = floor + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            self._matcher.rollback(len(seen) - same)
            del seen[same:]
        more = tokens[len(seen) :]
        if more and not self._matcher.consume_tokens(more):
            return False
        seen += more
        return not self._matcher.is_error()

    def _failure(self, num_tokens: int) -> GrammarError:
        return GrammarError(
            f"the grammar cannot be followed beyond token {num_tokens} of the answer"
            f" ({_short(self._matcher.get_error())}): ask for a simpler one"
        )


class _Vocabulary:
    """A tokenizer as llguidance asks for one: the bytes of every token, and how text is cut."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_id: int) -> None:
        self.eos_token_id = end_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab)]
        for token in self.special_token_ids:
            self.tokens[token] = tokenizer.added.get(token, "").encode()
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def _on_deep_stack(work: Callable[[], Any]) -> Any:
    """What `work` gives, on a thread of its own: the library reads grammars by recursion, and one
    whose rules lead from one to the next by the thousand would overflow an ordinary stack."""
    with ThreadPoolExecutor(1, "forerun-grammar") as threads:
        before = threading.stack_size(STACK_BYTES)
        try:
            future = threads.submit(work)
        finally:
            threading.stack_size(before)
        return future.result()


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise GrammarError(
            "grammars need the package llguidance: pip install 'forerun[grammar]'"
        ) from error
    return llguidance


def _written(matcher: Any, pattern: Pattern) -> str:
    """The grammar in llguidance's own form."""
    text: str
    match pattern.kind:
        case "json_schema":
            options = {**JSON_STYLE, "lenient": pattern.is_lenient}
            text = matcher.grammar_from_json_schema(pattern.text, overrides=options)
        case "regex":
            text = matcher.grammar_from_regex(pattern.text)
        case "choice":
            text = matcher.grammar_from_lark(_alternatives(pattern.text))
        case "lark" if pattern.named:
            parts = [{"lark_grammar": pattern.text}]
            parts += [_part(matcher, name, one) for name, one in pattern.named]
            text = json.dumps({"grammars": parts})
        case "lark":
            text = matcher.grammar_from_lark(pattern.text)
    return text


def _part(matcher: Any, name: str, pattern: Pattern) -> dict[str, Any]:
    """A grammar under a name by which another one refers to it."""
    if pattern.kind in ("lark", "choice"):
        is_listed = pattern.kind == "choice"
        return {
            "name": name,
            "lark_grammar": _alternatives(pattern.text) if is_listed else pattern.text,
        }
    whole = json.loads(_written(matcher, pattern))
    return {**whole["grammars"][0], "name": name}


def _alternatives(choices: str) -> str:
    return "start: " + " | ".join(json.dumps(one) for one in json.loads(choices))


def _refused(error: object) -> str:
    """Why a grammar is refused, and what to do where something may be done."""
    why = _short(error)
    if not why.startswith("Unimplemented keys"):
        return why
    return (
        f"{why} are not enforced: take them out of the schema, or let them go unenforced"
        " (is_lenient, --lenient; over HTTP without strict)"
    )


def _short(error: object) -> str:
    """The first line of what a library says, no longer than a sentence."""
    return str(error).strip().split("\n", 1)[0][:200]
