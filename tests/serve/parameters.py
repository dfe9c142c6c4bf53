"""Every field of every body, as a request that feels it: what the table of parameters is asked.

Letters are made likely, so that drafts are kept, stop strings come and penalties count. Token ids
are those of the tiny tokenizer: one a byte, in the alphabet's order, which begins with `!`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from serve.live import MODEL
from serve.structured_parts import CHAT, COMPLETIONS, RESPONSES, TOOLS

Body = Mapping[str, Any]

END = 256
ASKED_LANES = "speculation, its schedule"
NAMES, LANES = "its own names", "its names, with lanes"  # what only a composition knows
_SAID = "abcabcabcabcabc"
_USER = {"role": "user", "content": _SAID}
_CITY: Any = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
_LENIENT = {"name": "city", "schema": _CITY}
_TOOL = TOOLS[1:]  # without arguments: short calls
_RESPONSE_TOOL = [{"type": "function", "name": "stop_all"}]


def _likely(letters: str, *ids: int) -> dict[str, float]:
    return {str(token): 100.0 for token in (*(ord(one) - ord("!") for one in letters), *ids)}


_DRAWN = {"temperature": 1.2, "seed": 4}
_LETTERS = {"logit_bias": _likely("abcd")}
BASES: Mapping[str, Body] = MappingProxyType(
    {
        COMPLETIONS: {"prompt": _SAID, "max_tokens": 12, **_DRAWN, **_LETTERS},
        CHAT: {"messages": [_USER], "max_tokens": 12, **_DRAWN, **_LETTERS},
        RESPONSES: {"input": _SAID, "max_output_tokens": 12, **_DRAWN},
    }
)


@dataclass(frozen=True)
class Wish:
    """Fields of one row of the table, in one body.

    `asks`: what is sent for them. `beside`: what they need to be felt. `pinned`: sent instead where
    all of a law must be one text. `is_felt`: whether plain decoding answers otherwise without them.
    """

    fields: tuple[str, ...]
    path: str
    asks: Body
    beside: Body = field(default_factory=dict)
    pinned: Body = field(default_factory=dict)
    is_felt: bool = True

    @property
    def base(self) -> Body:
        """The request without them."""
        return {**BASES[self.path], **self.beside}

    @property
    def greedy(self) -> Body:
        """The request where its law is one text."""
        return {**self.base, **self.asks, **(self.pinned or {"temperature": 0})}


def _felt(path: str, name: str, value: Any, beside: Body | None = None, **pinned: Any) -> Wish:
    return Wish((name,), path, {name: value}, beside or {}, pinned)


def _silent(path: str, name: str, value: Any, beside: Body | None = None) -> Wish:
    return Wish((name,), path, {name: value}, beside or {}, is_felt=False)


UNHEARD = {
    "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto",
    "safety_identifier": "s", "prompt_cache_key": "k",
}  # fmt: skip


def _anywhere(path: str) -> list[Wish]:
    """Of all three bodies."""
    return [
        _silent(path, "model", MODEL),
        _felt(path, "temperature", 0),
        _felt(path, "top_p", 0.3, top_p=1e-6),
        _felt(path, "seed", 5),
        _silent(path, "stream", True),
        _silent(path, "stream_options", {"include_obfuscation": True}, {"stream": True}),
        _silent(path, "speculation", NAMES),
        Wish((ASKED_LANES,), path, {"speculation": LANES}, is_felt=False),
        Wish(tuple(UNHEARD), path, UNHEARD, is_felt=False),
    ]


_ENDS = {"logit_bias": _likely("ab", END)}
_LONG = {"max_tokens": 24}


def _generating(path: str) -> list[Wish]:
    """Of completions and chat."""
    return [
        *_anywhere(path),
        _felt(path, "max_tokens", 5),
        _felt(path, "n", 2),
        _felt(path, "top_k", 2, {"temperature": 2}, top_k=1),
        _felt(path, "min_p", 0.6, {"temperature": 2}, min_p=1),
        _felt(path, "stop", ["ab", "ba", "cd", "dc"], _LONG),
        _felt(path, "stop_token_ids", [ord("d") - ord("!"), ord("b") - ord("!")], _LONG),
        _felt(path, "ignore_eos", True, _ENDS),
        _felt(path, "logit_bias", _likely("bdeg")),
        _felt(path, "presence_penalty", 2),
        _felt(path, "frequency_penalty", 2),
        _felt(path, "repetition_penalty", 1.3, _LONG),
        _silent(path, "prediction", {"type": "content", "content": "abdcabca"}),
        _silent(path, "forerun", {"trace": True}),
        *_bound(path),
    ]


def _bound(path: str) -> list[Wish]:
    """Fields that ask for a grammar: few different ones, for each is tried in its own process."""
    schema = {"type": "json_schema", "json_schema": _LENIENT}
    lark = 'start: ("ab" | "ba" | "bd"){2,4}'
    return [
        _felt(path, "response_format", schema, _LONG),
        _felt(path, "structured_outputs", {"json": _CITY}, _LONG),
        _felt(path, "guided_json", _CITY, _LONG),
        _felt(path, "json_schema", _CITY, _LONG),
        _felt(path, "guided_regex", "(ab|dc){3}[ef]"),
        _felt(path, "guided_choice", ["abba", "dab", "cabbed"]),
        _felt(path, "guided_grammar", lark),
    ]


def _calling(path: str, tools: Any) -> list[Wish]:
    """Fields of tools, of chat and of responses."""
    most = "max_tokens" if path == CHAT else "max_output_tokens"
    told = {"tools": tools}
    forced = {**told, most: 75, "tool_choice": "required"}
    if path == CHAT:
        forced["logit_bias"] = _likely("", 198)  # a line's end, behind which calls go on
    return [
        _felt(path, "tools", tools),
        _felt(path, "tool_choice", "required", {**told, most: 70}),
        Wish(("parallel_tool_calls",), path, {"parallel_tool_calls": False}, forced),
    ]


_TALK = [{"role": "system", "content": "ab"}, _USER, {"role": "assistant", "content": "d"}, _USER]
WISHES: tuple[Wish, ...] = (
    *_generating(COMPLETIONS),
    _felt(COMPLETIONS, "prompt", [[64, 65, 66, 64, 65], [67, 66, 67, 66]]),
    _felt(COMPLETIONS, "logprobs", 3),
    _felt(COMPLETIONS, "echo", True, {"logprobs": 1}),
    *_generating(CHAT),
    *_calling(CHAT, _TOOL),
    _felt(CHAT, "messages", _TALK),
    _felt(CHAT, "max_completion_tokens", 5),
    _felt(CHAT, "logprobs", True),
    _felt(CHAT, "top_logprobs", 3, {"logprobs": True}),
    *_anywhere(RESPONSES),
    *_calling(RESPONSES, _RESPONSE_TOOL),
    _felt(RESPONSES, "input", [{**_USER, "content": "xyxy"}]),
    _felt(RESPONSES, "instructions", "ab"),
    _felt(RESPONSES, "max_output_tokens", 5),
    _felt(RESPONSES, "include", ["message.output_text.logprobs"]),
    _felt(RESPONSES, "top_logprobs", 3, {"include": ["message.output_text.logprobs"]}),
    _felt(RESPONSES, "text", {"format": {"type": "json_schema", **_LENIENT}}),
)
