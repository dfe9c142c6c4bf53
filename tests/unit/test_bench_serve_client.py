"""The load tool's client against a server that answers what a test says, hangs or hangs up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Script, Scripted, Talk, chunk, last, scripted

from forerun.errors import OptionError
from forerun.tools.bench_serve_client import Client, Outcome
from forerun.tools.bench_serve_drafts import Drafts
from forerun.tools.bench_serve_wire import Address, EventParser, Head, RequestFailed, request_bytes

DATA = ["one", '{"text": "größer 🌍"}', "two\nlines", "", "[DONE]"]


def stream_of(data: list[str], end: str) -> bytes:
    """Events with comments, other fields and an event without data between them."""
    lines = ["\ufeff: hello", "", "retry: 10", "event: ping", ""]
    for one in data:
        lines += [": keep alive", "id: 7", *(f"data: {line}" for line in one.split("\n")), ""]
    return (end.join(lines) + end).encode()


@given(
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    cuts=st.lists(st.integers(0, len(stream_of(DATA, "\r\n"))), max_size=40),
)
def test_given_bytes_cut_anywhere_then_the_same_events_come(end: str, cuts: list[int]) -> None:
    stream, parser = stream_of(DATA, end), EventParser()
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]

    found = [one for begin, stop in pairwise(edges) for one in parser.feed(stream[begin:stop])]

    assert found == [one for one in DATA if one]


def test_given_every_byte_alone_then_the_same_events_come() -> None:
    parser = EventParser()
    pieces = [bytes([byte]) for byte in stream_of(DATA, "\r\n")]
    assert [one for piece in pieces for one in parser.feed(piece)] == [one for one in DATA if one]


def test_given_an_event_without_its_empty_line_then_it_has_not_come() -> None:
    parser = EventParser()
    assert parser.feed(b"data: one\n") == []
    assert parser.feed(b"data:two\n\n") == ["one\ntwo"]


def test_given_a_line_without_end_then_it_is_refused() -> None:
    parser = EventParser()
    parser.feed(b"x" * (1 << 24))
    with pytest.raises(RequestFailed, match="exceeds"):
        parser.feed(b"x")


def test_given_heads_then_status_and_names_are_read_and_others_refused() -> None:
    head = Head.parse(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nX:a:b\r\n\r\n")
    assert (head.status, head.headers) == (503, {"retry-after": "2", "x": "a:b"})
    with pytest.raises(RequestFailed, match="no HTTP"):
        Head.parse(b"SSH-2.0-OpenSSH\r\n\r\n")


def test_given_urls_then_their_parts_are_found_or_the_form_is_said() -> None:
    address = Address.parse("https://host.example/deep/v1/")
    assert address == Address("host.example", 443, "/deep/v1", is_secure=True)
    assert address.root == "/deep"
    assert Address.parse("http://[::1]:8000").port == 8000
    for wrong in ("localhost:8000", "ftp://host/v1", "http://host:port/v1", "http:///v1"):
        with pytest.raises(OptionError, match="--url"):
            Address.parse(wrong)


def test_given_a_key_and_a_body_then_the_request_has_both() -> None:
    assert b"Host: [::1]:80\r\n" in request_bytes(Address.parse("http://[::1]/v1"), "/v1/x")
    address = Address.parse("http://host:80/v1")
    request = request_bytes(address, "/v1/x", "secret", b"{}")
    assert request.startswith(b"POST /v1/x HTTP/1.1\r\nHost: host:80\r\n")
    assert b"Authorization: Bearer secret\r\n" in request
    assert request.endswith(b"Content-Length: 2\r\n\r\n{}")
    assert b"Authorization" not in request_bytes(address, "/v1/models")


def asked(script: Script, **changes: Any) -> tuple[Outcome, Scripted]:
    """The outcome of one request to a server with this script."""

    async def ask() -> tuple[Outcome, Scripted]:
        async with scripted(script) as server:
            settings = {"endpoint": "completions", "fields": {"model": "m"}, "seed": 3, **changes}
            client = Client(Address.parse(server.url), **settings)
            return await client.ask(2, "Once"), server

    return asyncio.run(ask())


@dataclass
class Times:
    """The client's time: it goes by where a script says so."""

    now_s: float = 0.0
    num_asked: int = 0

    def __call__(self) -> float:
        self.num_asked += 1
        return self.now_s

    async def heard(self, sent: Awaitable[None]) -> None:
        """Send, and let the client hear of it."""
        before = self.num_asked
        await sent
        while self.num_asked == before:
            await asyncio.sleep(0.001)


def test_given_a_stream_then_text_times_usage_and_drafts_are_heard() -> None:
    # Given
    times = Times()
    told = {"speculative_decoding": {"num_spec_steps": 2, "num_draft_tokens": 6,
                                     "num_accepted_draft_tokens": 3}}  # fmt: skip

    async def script(talk: Talk) -> None:
        await talk.begin()
        times.now_s = 1.0
        await times.heard(talk.event(chunk("")))
        times.now_s = 2.0
        await times.heard(talk.event(chunk("a b")))
        times.now_s = 3.0
        await times.heard(talk.event(chunk(" c", usage=None)))
        await talk.event(last(metrics=told))
        await talk.event({"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 9}})
        await talk.send(b"data: [DONE]\n\n")

    # When
    outcome, server = asked(script, now_s=times)
    # Then
    assert outcome.is_ok, outcome.detail
    assert (outcome.text, outcome.num_tokens, outcome.num_prompt_tokens) == ("a b c", 5, 9)
    assert outcome.drafts == Drafts(2, 6, 3)
    assert (outcome.left_s, outcome.arrivals_s, outcome.ended_s) == (0.0, (2.0, 3.0), 3.0)
    body = server.talks[0].body
    assert body["seed"] == 5  # the run's seed and the prompt's number
    assert body["stream"] is True
    assert body["prompt"] == "Once"
    assert body["model"] == "m"


def test_given_chat_in_chunked_encoding_then_it_is_heard() -> None:
    async def script(talk: Talk) -> None:
        await talk.send(
            b"HTTP/1.1 100 Continue\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        deltas: list[dict[str, Any]] = [
            {"delta": {"role": "assistant", "content": ""}, "finish_reason": None},
            {"delta": {"content": "größer"}, "finish_reason": None},
            {"delta": {}, "finish_reason": "stop"},
        ]
        for delta in deltas:
            value = json.dumps({"choices": [delta]}, ensure_ascii=False)
            for half in (f"data: {value}".encode(), b"\r\n\r\n"):
                await talk.send(f"{len(half):x};x=y\r\n".encode() + half + b"\r\n")
        await talk.send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    outcome, server = asked(script, endpoint="chat")

    assert outcome.is_ok, outcome.detail
    assert (outcome.text, outcome.num_tokens) == ("größer", 1)
    assert server.talks[0].line == "POST /v1/chat/completions HTTP/1.1"
    assert server.talks[0].body["messages"] == [{"role": "user", "content": "Once"}]


async def full(talk: Talk) -> None:
    await talk.begin("503 Service Unavailable", "application/json")
    await talk.send(b'{"error": {"message": "too many wait"}}')


async def unstreamed(talk: Talk) -> None:
    await talk.begin(kind="application/json")
    await talk.send(json.dumps(last()).encode())


async def hanging(talk: Talk) -> None:
    await talk.begin()
    await talk.event(chunk("a"))
    await asyncio.Event().wait()


async def leaving(talk: Talk) -> None:
    await talk.begin()
    await talk.event(chunk("a"))


async def resetting(talk: Talk) -> None:
    await talk.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n5\r\nda")  # fmt: skip
    talk.writer.transport.abort()


async def failing(talk: Talk) -> None:
    await talk.begin()
    await talk.event(chunk("a"))
    await talk.event({"error": {"message": "a bug"}})


async def babbling(talk: Talk) -> None:
    await talk.begin()
    await talk.send(b"data: hello\n\n")


async def foreign(talk: Talk) -> None:
    await talk.send(b"220 mail ready\r\n\r\n")


async def silent(talk: Talk) -> None:
    pass


@pytest.mark.parametrize(
    ("script", "kind", "word"),
    [
        (full, "http_503", "too many wait"),
        (unstreamed, "malformed", "application/json"),
        (hanging, "timeout", "0.2"),
        (leaving, "disconnected", "ended before"),
        (resetting, "disconnected", "hung up"),
        (failing, "stream_error", "a bug"),
        (babbling, "malformed", "hello"),
        (foreign, "malformed", "no HTTP"),
        (silent, "disconnected", "hung up"),
    ],
)
def test_given_a_server_that_fails_then_the_outcome_says_how(
    script: Script, kind: str, word: str
) -> None:
    outcome, _ = asked(script, timeout_s=0.2 if kind == "timeout" else 300.0)
    assert (outcome.error, outcome.is_ok) == (kind, False)
    assert word in outcome.detail


def test_given_no_server_then_the_outcome_says_so() -> None:
    # A port that was free a moment ago.
    async def ask() -> Outcome:
        async with scripted(silent) as server:
            pass
        return await Client(Address.parse(server.url), "chat", {}, 0).ask(0, "x")

    assert asyncio.run(ask()).error == "connect"


def test_given_text_before_a_failure_then_it_is_kept_in_the_outcome() -> None:
    outcome, _ = asked(failing)
    assert (outcome.text, outcome.num_tokens) == ("a", 1)


def test_given_a_server_that_stays_after_done_then_the_answer_is_whole_and_on_time() -> None:
    times = Times()

    async def script(talk: Talk) -> None:
        await talk.begin()
        await times.heard(talk.event(chunk("a")))
        times.now_s = 1.0
        await times.heard(talk.send(b"data: [DONE]\n\n"))
        times.now_s = 100.0
        await asyncio.Event().wait()

    outcome, _ = asked(script, now_s=times)

    assert outcome.is_ok
    assert outcome.ended_s == 1.0


def test_given_a_reason_but_no_done_then_the_answer_is_whole() -> None:
    async def script(talk: Talk) -> None:
        await talk.begin()
        await talk.event(chunk("a"))
        await talk.event(last())

    assert asked(script)[0].is_ok


@pytest.mark.parametrize("value", [
    {"choices": ["x", {"text": 5, "delta": "y"}], "usage": 3, "metrics": [], "timings": "z"},
    {"choices": None, "error": None}, {},
])  # fmt: skip
def test_given_strange_chunks_then_nothing_breaks(value: dict[str, Any]) -> None:
    async def script(talk: Talk) -> None:
        await talk.begin()
        await talk.event(value)
        await talk.event(last())

    outcome, _ = asked(script)
    assert outcome.is_ok
    assert outcome.text == ""
