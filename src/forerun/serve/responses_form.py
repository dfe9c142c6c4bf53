"""How `/v1/responses` writes an answer: a message, and calls of tools. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from forerun.engine.sequence import TokenLogprobs
from forerun.models.tokenizer import Tokenizer
from forerun.serve.answers import Call, Choice, figures_of, usage_of
from forerun.serve.forms import scores_of
from forerun.serve.responses_fields import LOGPROBS, ResponsesBody


@dataclass(frozen=True, slots=True)
class ResponsesForm:
    """How a response is written; pure."""

    body: ResponsesBody
    model_name: str
    created: int
    tokenizer: Tokenizer
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    item_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(16)}")

    def response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole object, in any status."""
        body = self.body
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": why,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self.model_name,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True, exclude_defaults=False),
            "tool_choice": _told(body.tool_choice),
            "tools": [_told(tool) for tool in body.tools],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
            "metadata": body.metadata,
            "user": body.user,
            "usage": None,
        }

    def ended(self, choice: Choice, num_prompt_tokens: int) -> dict[str, Any]:
        """The whole object of an answer that has ended."""
        usage = usage_of([choice], num_prompt_tokens)
        return (
            self.response(status_of(choice), self.items(choice))
            | figures_of([choice], num_prompt_tokens)
            | {
                "usage": {
                    "input_tokens": usage["prompt_tokens"],
                    "input_tokens_details": usage["prompt_tokens_details"],
                    "output_tokens": usage["completion_tokens"],
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": usage["total_tokens"],
                }
            }
        )

    def items(self, choice: Choice) -> list[dict[str, Any]]:
        """The message, unless only calls were made, then the calls."""
        message = [] if choice.calls and not choice.text else [self.item(choice)]
        last = len(choice.calls) - 1
        calls = [
            self.call_item(one, status_of(choice) if at == last else "completed")
            for at, one in enumerate(choice.calls)
        ]
        return message + calls

    def call_item(self, call: Call, status: str) -> dict[str, Any]:
        """A call; `id` names the item, `call_id` the call."""
        return {
            "id": call.id.replace("call_", "fc_", 1),
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }

    def item(self, choice: Choice | None) -> dict[str, Any]:
        """The message; without a choice as it is before its first word."""
        status = "in_progress" if choice is None else status_of(choice)
        content = [] if choice is None else [self.part(choice.text, choice.logprobs)]
        return {
            "id": self.item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, text: str, rows: list[TokenLogprobs]) -> dict[str, Any]:
        """The text of the message."""
        logprobs = self.logprobs(rows)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def logprobs(self, rows: Sequence[TokenLogprobs]) -> list[Any]:
        """Scores of tokens, none where they were not asked for."""
        if LOGPROBS not in self.body.include:
            return []
        return scores_of(self.tokenizer, rows)


def status_of(choice: Choice) -> str:
    """A response that met its limit is not complete."""
    return "incomplete" if choice.finish_reason == "length" else "completed"


def _told(value: str | BaseModel) -> Any:
    return value if isinstance(value, str) else value.model_dump(by_alias=True, exclude_none=True)
