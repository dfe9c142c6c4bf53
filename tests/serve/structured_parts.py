"""What tests of structured answers ask for: a schema, tools, and a template that knows of tools."""

from __future__ import annotations

from typing import Any

ASK: list[Any] = [{"role": "user", "content": "abcabcabcabcabc"}]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop_all"}},
]
# Calls as Qwen's templates teach them: between marks.
TEMPLATE = (
    "{% if tools %}[tools] {% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    "as <tool_call>\n{% endif %}{% for one in messages %}[{{ one.role }}] {{ one.content }}"
    "{% for call in one.tool_calls or [] %}<tool_call>{{ call.function.name }}"
    " {{ call.function.arguments.city }}</tool_call>{% endfor %}{{ '\n' }}{% endfor %}[assistant] "
)
MARK = "<tool_call>"
NUM_TOLD = len("[tools] get_weather stop_all as \n") + 1  # tokens that tell the model of tools
