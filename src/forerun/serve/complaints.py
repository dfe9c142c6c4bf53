"""What is wrong with a body, as one sentence and the name of the field.

Never repeats what the client sent, but for the field's name, shortened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forerun.serve.refusals import Refusal

_LONGEST_NAME = 64
_LONGEST_MESSAGE = 300


def complaint(errors: Sequence[Any]) -> Refusal:
    """A refusal for the first of pydantic's errors."""
    if not errors:
        return Refusal(400, "the request cannot be understood")
    error = errors[0]
    kind, message = str(error["type"]), str(error["msg"])[:_LONGEST_MESSAGE]
    if kind == "json_invalid":
        return Refusal(400, "the body is not JSON; send Content-Type: application/json")
    param = param_of(error["loc"])
    if kind == "refused":
        field = str(error["ctx"]["field"])
        param = f"{param}.{field}" if param else field
        return Refusal(400, message, param=param, code="unsupported_parameter")
    if kind == "extra_forbidden":
        message = f"{param} is not a known field: /openapi.json lists those that are"
        return Refusal(400, message, param=param, code="unknown_parameter")
    if param is None:
        return Refusal(400, "the body must be a JSON object; send Content-Type: application/json")
    return Refusal(400, f"{param}: {message}", param=param)


def param_of(loc: Sequence[str | int]) -> str | None:
    """`messages[0].role` from where pydantic found it; what a union tried is left out."""
    name = ""
    for part in loc[1:] if loc and loc[0] == "body" else loc:
        if isinstance(part, int):
            name += f"[{part}]"
        elif name and (part in ("str", "int", "float", "bool") or "[" in part or "-" in part):
            break
        else:
            name += f".{part[:_LONGEST_NAME]}" if name else part[:_LONGEST_NAME]
    return name or None
