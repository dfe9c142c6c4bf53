"""How a model writes calls of tools, as a grammar, and how they are read out of its text.

Pure. A call is `{"name": …, "arguments": …}`; models whose chat template speaks of `<tool_call>`
put it between such marks, others are made to write it alone, one a line.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from forerun.engine.patterns import JSON_STYLE, Pattern
from forerun.serve.fields import ChatBody
from forerun.serve.tool_fields import Function, NamedTool

MOST_CALLS = 16  # in one answer
TextPlace = Literal["nowhere", "before", "instead"]  # of calls
_HEAD = re.compile(r'(?:<tool_call>)?\s*\{"name": "([a-zA-Z0-9_-]{1,64})", "arguments": ')


@dataclass(frozen=True, slots=True)
class CallForm:
    """What stands before and behind a call in a model's text."""

    opening: str = ""
    closing: str = ""

    @property
    def is_marked(self) -> bool:
        """Whether a call can be told from text around it."""
        return bool(self.opening)


MARKED = CallForm("<tool_call>\n", "\n</tool_call>")
BARE = CallForm()


def form_of(template: str | None) -> CallForm:
    """How the model that has this chat template writes calls."""
    return MARKED if template is not None and MARKED.opening.strip() in template else BARE


def knows_tools(template: str | None) -> bool:
    """Whether a chat template tells its model of tools."""
    return template is not None and re.search(r"\btools\b", template) is not None


def forced_calls(functions: Sequence[Function], form: CallForm, most: int) -> Pattern:
    """One to `most` calls of these functions, and nothing else."""
    call = f"{_literal(form.opening)} any".strip()
    more = f' ("\\n" {call}){{0,{most - 1}}}' if most > 1 else ""
    return _pattern([f"start: {call}{more}"], functions, form)


def free_calls(functions: Sequence[Function], form: CallForm, most: int) -> Pattern:
    """Any text, but what begins like a marked call is one, and none but calls follow it."""
    mark = form.opening.partition("\n")[0]
    rest = form.opening.removeprefix(mark)
    more = f' ("\\n" {_literal(form.opening)} any){{0,{most - 1}}}' if most > 1 else ""
    lines = [
        f"start: TEXT | said {_literal(rest)} any{more}",
        f"said[lazy]: TEXT {_literal(mark)}",
        r"TEXT: /(.|\n)*/",
    ]
    return _pattern(lines, functions, form)


def calls_or(text: Pattern, functions: Sequence[Function], form: CallForm, most: int) -> Pattern:
    """One to `most` marked calls, or a text of a pattern: all of the answer is one of the two."""
    calls = forced_calls(functions, form, most)
    start, rest = calls.text.split("\n", 1)
    return Pattern("lark", f"{start} | @text\n{rest}", named=(("text", text),))


def _pattern(lines: list[str], functions: Sequence[Function], form: CallForm) -> Pattern:
    names = [f"f{at}" for at in range(len(functions))]
    lines = [*lines, f"any: {' | '.join(names)}"]
    for name, function in zip(names, functions, strict=True):
        head = _literal(f'{{"name": "{function.name}", "arguments": ')
        options = {**JSON_STYLE, "lenient": not function.strict}
        schema = json.dumps({**function.parameters, "x-guidance": options})
        lines += [
            f"{name}: {head} {name}_arguments {_literal('}' + form.closing)}",
            f"{name}_arguments: %json {schema}",
        ]
    return Pattern("lark", "\n".join(lines))


def _literal(text: str) -> str:
    return json.dumps(text) if text else ""


@dataclass(frozen=True, slots=True)
class CallPlan:
    """How an answer may call: what binds it, how calls are written, where text may stand."""

    pattern: Pattern
    form: CallForm
    text: TextPlace

    def reader(self) -> CallReader:
        """Who reads such an answer."""
        return CallReader(self.form, self.text)


def plan_of(body: ChatBody, template: str | None, wish: Pattern | None) -> CallPlan | None:
    """What `tools` and `tool_choice` ask of an answer; None where nothing can be called.

    A model that is left to choose can call only in a form that its template has taught it. `wish`:
    what its text must be where it calls nothing; where it is made to call, there is no text.
    """
    tools, choice, form = body.tools or [], body.tool_choice, form_of(template)
    functions = [tool.function for tool in tools]
    most = MOST_CALLS if body.parallel_tool_calls else 1
    if not functions or choice == "none":
        return None
    if choice == "required":
        return CallPlan(forced_calls(functions, form, most), form, "nowhere")
    if isinstance(choice, NamedTool):
        named = [one for one in functions if one.name == choice.function.name]
        return CallPlan(forced_calls(named, form, 1), form, "nowhere")
    if not form.is_marked or not knows_tools(template):
        return None
    if wish is not None:
        return CallPlan(calls_or(wish, functions, form, most), form, "instead")
    return CallPlan(free_calls(functions, form, most), form, "before")


@dataclass(frozen=True, slots=True)
class CallPart:
    """What was added to the `index`-th call; its first part has its id and name."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What a piece of text says: text for people, and parts of calls."""

    text: str = ""
    calls: tuple[CallPart, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.calls)


class CallReader:
    """Reads calls out of an answer as it comes, in which text stands where it may."""

    def __init__(self, form: CallForm, text: TextPlace) -> None:
        self.has_text = text != "nowhere"
        self._mark = form.opening.strip()
        self._tail = "}" + form.closing
        self._held = ""
        begin = {"nowhere": self._read_head, "before": self._read_text, "instead": self._read_start}
        self._state = begin[text]
        self._scan = _Scan()
        self._num_calls = 0
        self._parts: dict[int, CallPart] = {}

    def push(self, text: str) -> Said:
        """The next piece of the text; what may be a mark is held back."""
        self._held += text
        self._parts = {}
        said = ""
        while True:
            before = self._state
            said += self._state()
            if self._state == before:
                return Said(said, tuple(self._parts.values()))

    def finish(self) -> Said:
        """The text has ended: what was held back is text, unless a call was cut."""
        held, self._held = self._held, ""
        may_be_text = self._state in (self._read_text, self._read_start, self._read_all)
        return Said(held) if may_be_text else Said()

    def _read_start(self) -> str:
        if self._held.startswith(self._mark):
            self._state = self._read_head
        elif not self._mark.startswith(self._held):
            self._state = self._read_all
        return ""

    def _read_all(self) -> str:
        held, self._held = self._held, ""
        return held

    def _read_text(self) -> str:
        held, at = self._held, self._held.find(self._mark)
        if at >= 0:
            self._held, self._state = held[at:], self._read_head
            return held[:at]
        longest = min(len(held), len(self._mark) - 1)
        kept = next((n for n in range(longest, 0, -1) if self._mark.startswith(held[-n:])), 0)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept]

    def _read_head(self) -> str:
        found = _HEAD.match(self._held.lstrip())
        if found is not None:
            self._held = self._held.lstrip()[found.end() :]
            self._parts[self._num_calls] = CallPart(
                self._num_calls, "", f"call_{secrets.token_hex(12)}", found[1]
            )
            self._scan = _Scan()
            self._state = self._read_arguments
        return ""

    def _read_arguments(self) -> str:
        end = self._scan.end_of(self._held)
        added = self._held if end is None else self._held[:end]
        self._held = self._held[len(added) :]
        if added:
            old = self._parts.get(self._num_calls, CallPart(self._num_calls, ""))
            self._parts[old.index] = CallPart(old.index, old.arguments + added, old.id, old.name)
        if end is not None:
            self._num_calls += 1
            self._state = self._read_tail
        return ""

    def _read_tail(self) -> str:
        if self._held.startswith(self._tail):
            self._held = self._held[len(self._tail) :]
            self._state = self._read_head
        return ""


class _Scan:
    """Where a JSON object that comes in pieces ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False

    def end_of(self, text: str) -> int | None:
        """How much of this piece belongs to it; None for all, and it goes on."""
        for at, char in enumerate(text):
            if self._in_string:
                self._in_string = self._is_escaped or char != '"'
                self._is_escaped = char == "\\" and not self._is_escaped
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None
