"""Requests that nobody should send, each a function of a seed: what is asked, and how it is sent.

Bodies are bytes, so that they can be what no JSON library would write.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType
from typing import Any

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LONG = 4000  # tokens of an answer that nobody waits for
NUMBERS = (
    0, -1, 1, 2, 17, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-320,
    1e308, 2.000001, float("nan"), float("inf"),
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "\0", "\ud800", "\udfff\ud800", "\ufeff\ufffe\uffff", "\u202e\u2066abc",
    "e" + "\u0301" * 300, "\U0001f469\u200d\U0001f467" * 20, "\U0010ffff" * 9, "<|end|>" * 40,
    "{{ 7 * 7 }}{% for a in b %}", "]]>\r\n\r\nHTTP/1.1 200", "data: [DONE]\n\n",
    "\u0130\u0131\u017f\u212a" * 30, "\x1b[2J\x07", "\U0001d56c" * 40, "a" * 5000,
)  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "input", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "n", "logit_bias",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs", "top_logprobs",
    "echo", "stream", "stream_options", "speculation", "forerun", "user", "metadata", "tools",
    "tool_choice", "response_format", "structured_outputs", "guided_regex", "guided_json",
    "guided_grammar", "prediction", "suffix", "best_of", "instructions", "max_output_tokens",
    "text", "include", "temprature", "__proto__", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `manner` says how it is sent and read: `whole` to its end; `aborted` after
    `share` of a few answers' bytes; `half` sends only that share of the body; `slow` reads so
    slowly; `raw` sends `body` as the whole of what a connection says."""

    kind: str
    path: str
    body: bytes
    manner: str = "whole"
    share: float = 1.0


def case_of(seed: int, at: int) -> Case:
    """The request of that number, whatever was asked before."""
    rng = Random(f"{seed}:{at}")
    kind = rng.choice(tuple(KINDS))
    return replace(KINDS[kind](rng), kind=kind)


def base_of(rng: Random, num_tokens: int = 2) -> tuple[str, dict[str, Any]]:
    """An address and a body that it would take."""
    word = "".join(rng.choice("abcdef(): ") for _ in range(rng.randrange(1, 30)))
    path = rng.choice((CHAT, TEXT, RESPONSES))
    if path == CHAT:
        return path, {"messages": [{"role": "user", "content": word}], "max_tokens": num_tokens}
    if path == TEXT:
        return path, {"prompt": word, "max_tokens": num_tokens}
    return path, {"input": word, "max_output_tokens": num_tokens}


def json_of(value: Any) -> bytes:
    """JSON with all that Python writes of it: NaN, infinities, lone surrogates as escapes."""
    return json.dumps(value).encode()


def with_fields(rng: Random, fields: Mapping[str, Any], **manner: Any) -> Case:
    """A good request with some fields more."""
    path, body = base_of(rng)
    return Case("", path, json_of({**body, **fields}), **manner)


def anything(rng: Random, depth: int = 3) -> Any:
    """Any JSON value."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice(ODD_TEXTS),
        lambda: rng.choice(("auto", "off", "user", "text", "json_object", "7", "function")),
        lambda: [anything(rng, depth - 1) for _ in range(rng.randrange(4))],
        lambda: {
            rng.choice((*FIELDS, "type", "role", "content", "7")): anything(rng, depth - 1)
            for _ in range(rng.randrange(4))
        },
    )
    return rng.choice(kinds if depth else kinds[:5])()


# --- bodies --------------------------------------------------------------------------------------


def many_choices(rng: Random) -> Case:
    """More answers than anybody needs; sometimes as many as are allowed."""
    prompts = {"prompt": ["ab"] * rng.choice((1, 2, 16, 17, 1000)), "max_tokens": 2}
    n = rng.choice((1, 8, 16, 17, 10**4, 10**18, 10**400, -1))
    return Case("", TEXT, json_of({**prompts, "n": n, "best_of": rng.choice((None, n))}))


def huge_numbers(rng: Random) -> Case:
    """A number where one belongs, but not this one."""
    names = rng.sample(FIELDS[4:19], rng.randrange(1, 4))
    return with_fields(rng, {name: rng.choice(NUMBERS) for name in names if name != "ignore_eos"})


def wrong_types(rng: Random) -> Case:
    """Any value in any field."""
    names = rng.sample(FIELDS, rng.randrange(1, 4))
    return with_fields(rng, {name: anything(rng) for name in names})


def odd_unicode(rng: Random) -> Case:
    """Text that breaks what handles text, in prompts, stops, names and keys."""
    text, path = rng.choice(ODD_TEXTS), rng.choice((CHAT, TEXT, RESPONSES, "/tokenize"))
    # Few tokens: an answer as long as a context is a fair wish that takes minutes when busy.
    content: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
    if path == RESPONSES:
        content = {"input": text, "max_output_tokens": 2}
    elif path != CHAT:
        content = {"prompt": text}
    extra: list[dict[str, Any]] = [{}, {text: 1}, {"model": text}, {"user": text}]
    extra += [{"stop": [text, "x"]}, {"echo": True}, {"stream": True}]
    value, is_escaped = content | rng.choice(extra), rng.random() < 0.5
    data = json.dumps(value, ensure_ascii=is_escaped).encode("utf-8", "surrogatepass")
    return Case("", path, data)


def deep_json(rng: Random) -> Case:
    """Nesting that a recursive reader does not survive."""
    path, body = base_of(rng)
    depth = rng.choice((50, 990, 5000, 200_000))
    opening, ending = rng.choice((("[", "]"), ('{"a":', "}")))
    deep = opening * depth + "1" + ending * rng.choice((0, depth))
    name = rng.choice(("metadata", "logit_bias", "stop", "prompt", "messages", "response_format"))
    return Case("", path, json_of(body)[:-1] + f', "{name}": {deep}}}'.encode())


def duplicated_keys(rng: Random) -> Case:
    """The same field more than once."""
    path, body = base_of(rng)
    name = rng.choice(("max_tokens", "n", "temperature", "stream", "seed", "messages", "prompt"))
    twice = "".join(f', "{name}": {json.dumps(anything(rng, 1))}' for _ in range(rng.randrange(9)))
    return Case("", path, json_of(body)[:-1] + twice.encode() + b"}")


def nested_grammar(rng: Random) -> Case:
    """Schemas, expressions and grammars made to explode when they are compiled."""
    return with_fields(rng, rng.choice(grammars(rng))(), **rng.choice(({}, {"manner": "aborted"})))


def many_parts(rng: Random) -> Case:
    """Long lists of everything that may be a list."""
    num = rng.choice((4, 64, 1024, 1025, 20_000))
    lists: tuple[dict[str, Any], ...] = (
        {"logit_bias": {str(at): 1 for at in range(num)}},
        {"stop": [f"s{at}" for at in range(num)]},
        {"stop_token_ids": list(range(num))},
        {"messages": [{"role": "user", "content": "a"}] * num},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * num}]},
        {"metadata": {f"k{at}": "v" for at in range(num)}},
        {"prompt": [rng.randrange(-2, 300) for _ in range(num)]},
        {f"field{at}": 1 for at in range(num)},
    )
    return with_fields(rng, rng.choice(lists))


def long_prompt(rng: Random) -> Case:
    """More text than fits, up to more than a body may hold."""
    num = rng.choice((600, 30_000, 300_000, 5_000_000))
    return Case("", TEXT, json_of({"prompt": "ab " * (num // 3), "max_tokens": 1}))


def odd_tokens(rng: Random) -> Case:
    """Ids that are none, to be decoded or continued."""
    ids = [rng.choice((0, 5, 255, 256, 271, 10**6, -1, 2**70)) for _ in range(rng.randrange(9))]
    path, name = rng.choice((("/detokenize", "tokens"), (TEXT, "prompt")))
    return Case("", path, json_of({name: ids}))


def not_json(rng: Random) -> Case:
    """Bytes."""
    path, body = base_of(rng)
    data = bytearray(json_of(body))
    for _ in range(rng.randrange(1, 9)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return Case("", path, bytes(data[: rng.randrange(len(data) + 1)]))


def odd_address(rng: Random) -> Case:
    """Addresses that are not there, or look like others."""
    paths = ("/", "//", "/v1/models/../../etc/passwd", "/v1/models/%00", "/page/%2e%2e/app.py")
    more = ("/v1/chat/completions/", "/metrics?x=" + "y" * 3000, "/health/../metrics", "/%ff%fe")
    return Case("", rng.choice(paths + more), json_of(anything(rng)))


# --- manners -------------------------------------------------------------------------------------


def aborted_stream(rng: Random) -> Case:
    """A long answer whose client goes away somewhere in it, or before it."""
    path, body = base_of(rng, LONG)
    body |= {"stream": rng.random() < 0.7, "temperature": 1.3}
    if path != RESPONSES:
        body |= {"ignore_eos": True, "n": rng.choice((1, 1, 2, 5))}
    return Case("", path, json_of(body), "aborted", rng.random() ** 2)


def slow_reader(rng: Random) -> Case:
    """A stream that is hardly read, and then left."""
    path, body = base_of(rng, LONG)
    return Case("", path, json_of(body | {"stream": True}), "slow", rng.random())


def half_sent(rng: Random) -> Case:
    """A body that ends too early, with the connection."""
    path, body = base_of(rng)
    return Case("", path, json_of(body), "half", rng.random())


def broken_http(rng: Random) -> Case:
    """What is hardly HTTP."""
    path, body = base_of(rng)
    data = json_of(body)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    told = head + b"Content-Length: "
    return Case("", path, rng.choice((
        rng.randbytes(rng.randrange(1, 400)),
        b"GET / HTTP/9.9\r\n\r\n",
        head + b"X-A: " + b"a" * rng.choice((5000, 70_000)) + b"\r\n\r\n",
        head + b"X-A: b\r\n" * 3000 + b"\r\n",
        chunked + b"zz\r\n" + data,
        chunked + b"ffffffffffffffffff\r\n" + data,
        chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data),
        told + b"-1\r\n\r\n" + data,
        told + b"9" * 30 + b"\r\n\r\n" + data,
        told + b"1\r\nContent-Length: 2\r\n\r\n" + data,
        (told + b"%d\r\n\r\n" % len(data) + data) * 3,
        told + b"%d\r\nExpect: 100-continue\r\n\r\n" % len(data) + data,
        told + b"%d\r\nContent-Encoding: gzip\r\n\r\n" % len(data) + data,
        b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    )), "raw")  # fmt: skip


def grammars(rng: Random) -> tuple[Callable[[], dict[str, Any]], ...]:
    """Schemas, expressions, grammars and tools that are large once compiled, or never end."""
    depth = rng.choice((3, 4000))
    return (
        lambda: {"response_format": schema_of(nested_schema(rng.choice((3, 60, 200))))},
        lambda: {"response_format": schema_of({"$ref": "#"})},
        lambda: {"response_format": schema_of({"enum": [f"v{at}" for at in range(30_000)]})},
        lambda: {"response_format": schema_of({"type": "string", "pattern": "(a+)+(b*)*$" * 9})},
        lambda: {"response_format": schema_of({"minItems": 10**9, "type": "array"})},
        lambda: {"response_format": anything(rng)},
        lambda: {"guided_regex": "(" * depth + "a" + ")*" * depth},
        lambda: {"guided_regex": "(((a{1,999}){1,999}){1,999}){1,999}"},
        lambda: {"guided_grammar": "start: " + "(" * 9000 + '"a"' + ")" * 9000},
        lambda: {"guided_grammar": "start: start start | start"},
        lambda: {"guided_choice": ["x" * at for at in range(1000)]},
        lambda: {"structured_outputs": {"regex": "\\p{L}{0,99999}(?=a)"}},
        lambda: {"tools": [tool_of(f"t{at}") for at in range(rng.choice((1, 300)))]},
        lambda: {"tools": [tool_of("t")], "tool_choice": rng.choice(("required", anything(rng)))},
    )


def schema_of(schema: Any) -> dict[str, Any]:
    """A schema as the API takes one."""
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}


def nested_schema(depth: int) -> dict[str, Any]:
    """Objects in objects."""
    schema: dict[str, Any] = {"type": "string"}
    for at in range(depth):
        schema = {"type": "object", "properties": {f"p{at}": schema}, "required": [f"p{at}"]}
    return schema


def tool_of(name: str) -> dict[str, Any]:
    """A tool whose arguments are nested."""
    return {"type": "function", "function": {"name": name, "parameters": nested_schema(40)}}


KINDS: Mapping[str, Callable[[Random], Case]] = MappingProxyType(
    {
        one.__name__: one
        for one in (
            many_choices, huge_numbers, wrong_types, odd_unicode, deep_json, duplicated_keys,
            nested_grammar, many_parts, long_prompt, odd_tokens, not_json, odd_address,
            aborted_stream, slow_reader, half_sent, broken_http,
        )
    }
)  # fmt: skip
