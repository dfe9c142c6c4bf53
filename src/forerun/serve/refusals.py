"""Errors as a client sees them: OpenAI's form, a sentence of ours, nothing from inside.

Errors that our callers cause say so in the engine's own words, which were written for them; all
others become one fixed sentence with the request's id, and the words go to the log.
"""

from __future__ import annotations

import math
from typing import Any

from forerun.errors import CapacityError, EngineClosed, IncompatibleSpeculation, OptionError

INVALID = "invalid_request_error"
_PARAMS = frozenset(
    {
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "max_tokens", "stop", "stop_token_ids", "seed",
        "logprobs", "prompt", "speculation", "prediction",
    }
)  # fmt: skip


class Refusal(Exception):
    """An answer that is an error: `status`, and the four keys of OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_s = retry_s

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        kind = _KINDS.get(self.status, INVALID if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """When to come again, if that can succeed."""
        if self.retry_s is None:
            return {"x-should-retry": "false"} if self.status >= 500 else {}
        return {
            "retry-after": str(max(1, math.ceil(self.retry_s))),
            "retry-after-ms": str(max(1, math.ceil(self.retry_s * 1000))),
        }


_KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "overloaded_error"}


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told about an error."""
    if isinstance(error, Refusal):
        return error
    retry_s = getattr(error, "retry_after_s", None)
    if isinstance(error, CapacityError) and retry_s is not None:
        return Refusal(503, "the server is full: try again later", code="queue_full",
                       retry_s=float(retry_s))  # fmt: skip
    if isinstance(error, CapacityError):
        return Refusal(400, str(error), param="max_tokens", code="context_length_exceeded")
    if isinstance(error, OptionError):
        return Refusal(400, str(error), param=_param_of(error))
    if isinstance(error, EngineClosed):
        return shutting_down()
    return internal()


def internal() -> Refusal:
    """A failure that is not the client's."""
    return Refusal(500, "the server failed on this request; its log says more under x-request-id")


def shutting_down(retry_s: float = 1.0) -> Refusal:
    """Told to everyone who comes after SIGTERM."""
    return Refusal(
        503,
        "the server is shutting down: try again later, or elsewhere",
        code="shutting_down",
        retry_s=retry_s,
    )


def expired(longest_s: float) -> Refusal:
    """A request that took too long."""
    return Refusal(
        504,
        f"the request took longer than {longest_s:g} s: send less, or ask for fewer tokens",
        code="timeout",
    )


def is_ours(error: BaseException) -> bool:
    """Whether an error is the server's fault and belongs into its log."""
    return not isinstance(error, Refusal | CapacityError | OptionError | EngineClosed)


def _param_of(error: OptionError) -> str | None:
    own = "speculation" if isinstance(error, IncompatibleSpeculation) else None
    word = str(error).split(" ", 1)[0].split("[", 1)[0].rstrip(":")
    return word if word in _PARAMS else own
