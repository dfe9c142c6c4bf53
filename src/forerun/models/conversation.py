"""A conversation as one text, for models that were not made for chat: both go on writing it.

Pure. Models with a template of their own are `chat_template.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def plain_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What was written so far; what was asked begins and ends its own lines, and so does each call
    of a tool, as such a model is made to write it.

    Each message has a `role` and a `content`, one of the assistant perhaps `tool_calls`.
    """
    text = ""
    for one in messages:
        line_end = "" if text.endswith("\n") or not text else "\n"
        is_own = one["role"] == "assistant"
        text += one["content"] if is_own else f"{line_end}{one['content']}\n"
        for call in one.get("tool_calls", ()):
            text += f"{json.dumps(call['function'], ensure_ascii=False)}\n"
    return text
