"""A server of this process that answers what a test tells it to, byte for byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Script: TypeAlias = Callable[["Talk"], Awaitable[None]]


@dataclass(frozen=True)
class Talk:
    """One request and the way to answer it."""

    line: str
    headers: dict[str, str]
    body: Any
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self, status: str = "200 OK", kind: str = "text/event-stream") -> None:
        """The head of a response that ends when the connection does."""
        await self.send(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n".encode())

    async def event(self, value: Any) -> None:
        """One event, as most servers write it."""
        await self.send(f"data: {json.dumps(value)}\n\n".encode())


@dataclass
class Scripted:
    """Where the server listens, and what it was asked."""

    url: str
    talks: list[Talk] = field(default_factory=list)


def chunk(text: str, **more: Any) -> dict[str, Any]:
    """A chunk of a completion."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": None}], **more}


def last(**more: Any) -> dict[str, Any]:
    """The chunk with the reason."""
    return {"choices": [{"index": 0, "text": "", "finish_reason": "length"}], **more}


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    """Serve until the block ends; every connection is one request."""
    live: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            talk = Talk(line, headers, json.loads(body) if body else None, writer)
            found.talks.append(talk)
            await script(talk)
        except ConnectionError:
            pass  # the client left
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(answer(reader, writer))
        live.add(task)
        task.add_done_callback(live.discard)

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    found = Scripted(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    try:
        yield found
    finally:
        server.close()
        for task in list(live):
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)
