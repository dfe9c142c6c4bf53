"""A chat template rendered where it can do no harm.

Templates come with a model, so they are foreign code: sandboxed, immutable, and bounded in what
they may read and write. Must not know tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forerun.errors import ModelError

MAX_TEMPLATE_CHARS = 1_000_000
MAX_RENDERED_CHARS = 4_000_000
_MAX_REPEATED = 10_000


class _Generation(Extension):
    """`{% generation %}` marks answers for training; for rendering it is its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with repetition and powers bounded too."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if any(isinstance(side, int) and abs(side) > _MAX_REPEATED for side in (left, right)):
            raise TemplateError(f"a factor above {_MAX_REPEATED} is not allowed")
        return super().call_binop(context, operator, left, right)


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    specials: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The prompt for the assistant's next answer, who is told of `tools` if there are some.

    Raises:
        ModelError: a template that is too large, fails, or writes too much.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ModelError(
            f"the chat template has {len(template)} characters, at most {MAX_TEMPLATE_CHARS} are"
            " read"
        )
    values = {"messages": messages, "add_generation_prompt": True, **specials}
    if tools:
        values["tools"] = tools
    pieces: list[str] = []
    num_chars = 0
    try:
        for piece in _environment().from_string(template).generate(values):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_RENDERED_CHARS:
                raise TemplateError(f"it wrote more than {MAX_RENDERED_CHARS} characters")
    # Inside the sandbox a template fails like any Python code: type, value, key errors and more.
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ModelError(f"the model's chat template failed: {error}") from error
    return "".join(pieces)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda text: datetime.now().strftime(text)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
