"""`forerun chat`: one line is one message; the model's own template makes the prompt.

A model without a template is not made for chat: there the conversation is one text that both go on
writing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from forerun.errors import CapacityError
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
    """Talk until the end of input; with `as_json` print the whole conversation at the end."""
    params = with_seed(talk.params)
    with engine.open() as live:
        conversation = _Conversation(live, talk)
        conversation.refuse_unusable()
        if not as_json:
            say(Ink.of(sys.stderr).dim(conversation.greeting))
        for turn, message in enumerate(_messages(is_silent=as_json)):
            # Every answer has its own noise, and the whole conversation one seed.
            own = replace(params, choice=turn % 2**16)
            try:
                pieces = conversation.answer(message, own)
            except CapacityError as error:
                say(f"forerun: {error}: the conversation ends here")
                break
            figures = Figures()
            told = figures.count(pieces)
            answer = _drain(told) if as_json else write_pieces(told, Ink.of(sys.stdout))
            if not as_json:
                write("\n")
            if why := cut_short(talk.pattern, figures.finish_reason, params):
                say(why)
            conversation.note(answer)
        if as_json:
            write_json({"messages": conversation.messages, "seed": params.seed})
    return 0


class _Conversation:
    """The messages so far, as the model is to see them."""

    def __init__(self, engine: Engine, talk: Talk) -> None:
        self._engine, self._talk = engine, talk
        self._has_template = engine.tokenizer.template is not None
        self.messages: list[dict[str, str]] = []
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
        """Begin the answer to a message."""
        self.messages.append({"role": "user", "content": message})
        prompt = self._templated() if self._has_template else plain_text(self.messages)
        return self._engine.stream(prompt, params, grammar=self._talk.pattern)

    def _templated(self) -> list[int]:
        """All that was written so far, as the model was made to read it."""
        tokenizer = self._engine.tokenizer
        return tokenizer.encode(tokenizer.render_chat(self.messages), add_special_tokens=False)

    def note(self, answer: str) -> None:
        """Keep what was answered."""
        self.messages.append({"role": "assistant", "content": answer})


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


def _drain(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
