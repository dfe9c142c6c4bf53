"""A chat template rendered where it can do no harm.

Templates come with a model, so they are foreign code: sandboxed, immutable, and bounded in what
they may read, write and take. Must not know tokenizers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from forerun.errors import ModelError
from forerun.models.template_budget import Budget, TemplateLimits
from forerun.models.template_sandbox import Sandbox

MAX_TEMPLATE_CHARS = 250_000
MAX_RENDERED_CHARS = 4_000_000
# Inside the sandbox a template fails like any Python code, and so does one that cannot be compiled.
_FAILURES = (
    TemplateError, ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    limits: TemplateLimits | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> str:
    """The prompt for the assistant's next answer, who is told of `tools` if there are some.
    `values` are what else the template may know, by name: special tokens, switches.

    Raises:
        TemplateExceeded: a template that takes more than `limits`; seconds are those of `now_s`.
        ModelError: one that is too large, fails, or writes too much.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise ModelError(
            f"the chat template has {len(template)} characters, at most {MAX_TEMPLATE_CHARS} are"
            " read"
        )
    said = {"messages": messages, "add_generation_prompt": True, **values}
    if tools:
        said["tools"] = tools
    budget = Budget(limits or TemplateLimits(), now_s)
    pieces: list[str] = []
    num_chars = 0
    try:
        for piece in Sandbox(budget).template(template).generate(said):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_RENDERED_CHARS:
                raise TemplateError(f"it wrote more than {MAX_RENDERED_CHARS} characters")
    except _FAILURES as error:
        raise ModelError(f"the model's chat template failed: {error}") from error
    return "".join(pieces)
