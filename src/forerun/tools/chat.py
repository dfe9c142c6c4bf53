"""`forerun chat`: one line is one message; the model's own template makes the prompt.

A model without a template is not made for chat: there the conversation is one text that both go on
writing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forerun.errors import CapacityError, ForerunError
from forerun.models.conversation import plain_text
from forerun.options import SamplingParams
from forerun.tools.generate import Figures, cut_short, with_seed, write_pieces
from forerun.tools.terminal import Ink, say, write, write_json

if TYPE_CHECKING:
    from forerun.engine.engine import Engine, Piece
    from forerun.engine.patterns import Pattern
    from forerun.tools.arguments import EngineArguments

_ASK = "> "


@dataclass(frozen=True, slots=True)
class Talk:
    """What the model is told first, and how it answers; `pattern`: what every answer must be."""

    system: str | None
    params: SamplingParams
    pattern: Pattern | None = None


def run(talk: Talk, engine: EngineArguments, *, as_json: bool) -> int:
    """Talk until the end of input; with `as_json` print the whole conversation at the end, also
    where an answer failed on the way.

    Raises:
        ForerunError: an answer failed.
    """
    talk = replace(talk, params=with_seed(talk.params))
    with engine.open() as live:
        conversation = _Conversation(live, talk)
        conversation.refuse_unusable()
        if not as_json:
            say(Ink.of(sys.stderr).dim(conversation.greeting))
        failed: ForerunError | None = None
        try:
            _converse(conversation, talk, as_json=as_json)
        except ForerunError as error:
            failed = conversation.error = error
        if as_json:
            write_json(conversation.as_dict())
        if failed is not None:
            raise failed
    return 0


def _converse(conversation: _Conversation, talk: Talk, *, as_json: bool) -> None:
    """All messages and their answers, until the end of input or of the context."""
    for turn, message in enumerate(_messages(is_silent=as_json)):
        # Every answer has its own noise, and the whole conversation one seed.
        own = replace(talk.params, choice=turn % 2**16)
        try:
            pieces = conversation.answer(message, own)
        except CapacityError as error:
            conversation.error = error
            say(f"forerun: {error}: the conversation ends here")
            return
        figures = Figures()
        _show(figures.count(pieces), as_json=as_json)
        if why := cut_short(talk.pattern, figures.finish_reason, own):
            say(why)


def _show(pieces: Iterable[Piece], *, as_json: bool) -> None:
    """Write an answer as it comes; with `as_json` nothing of it."""
    if as_json:
        for _ in pieces:
            pass
        return
    try:
        write_pieces(pieces, Ink.of(sys.stdout))
    finally:
        write("\n")


class _Conversation:
    """The messages so far, as the model is to see them; `error` is what it ended with, if not with
    the end of input."""

    def __init__(self, engine: Engine, talk: Talk) -> None:
        self._engine, self._talk = engine, talk
        self._has_template = engine.tokenizer.template is not None
        self.messages: list[dict[str, str]] = []
        self.error: ForerunError | None = None
        if talk.system is not None:
            self.messages.append({"role": "system", "content": talk.system})

    @property
    def greeting(self) -> str:
        """What to expect, in one line."""
        if self._has_template:
            return "One line is one message. Ctrl-D ends."
        return "This model has no chat template: it continues what you type. Ctrl-D ends."

    def refuse_unusable(self) -> None:
        """Before anybody has typed, refuse what every answer would be refused for.

        Raises:
            OptionError: parameters that no text can be bound with.
            GrammarError: the grammar cannot be used, or the extra `grammar` is not installed.
        """
        if self._talk.pattern is not None:
            least = replace(self._talk.params, max_tokens=1)
            self._engine.stream([0], least, grammar=self._talk.pattern)  # checked; never begun

    def answer(self, message: str, params: SamplingParams) -> Iterator[Piece]:
        """Begin the answer to a message; each piece is kept as it comes.

        Raises:
            CapacityError: the conversation no longer fits the model or its memory.
        """
        self.messages.append({"role": "user", "content": message})
        prompt = self._templated() if self._has_template else plain_text(self.messages)
        return self._kept(self._engine.stream(prompt, params, grammar=self._talk.pattern))

    def _kept(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        for piece in pieces:
            answer["content"] += piece.text
            yield piece

    def _templated(self) -> list[int]:
        """All that was written so far, as the model was made to read it."""
        tokenizer = self._engine.tokenizer
        return tokenizer.encode(tokenizer.render_chat(self.messages), add_special_tokens=False)

    def as_dict(self) -> dict[str, Any]:
        """The object of `--json`; an answer that failed is there as far as it came."""
        return {
            "messages": self.messages,
            "seed": self._talk.params.seed,
            "error": None if self.error is None else str(self.error),
        }


def _messages(*, is_silent: bool) -> Iterator[str]:
    ink = Ink.of(sys.stdout)
    asks = sys.stdin.isatty() and not is_silent
    if asks:
        import readline  # noqa: F401 - gives `input` its line editing
    while True:
        try:
            line = input(ink.bold(_ASK) if asks else "")
        except EOFError:
            if asks:
                write("\n")
            return
        if line.strip():
            yield line
