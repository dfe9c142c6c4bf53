"""Bytes on the wire: JSON, server-sent events, and responses that notice when their client leaves.

Our own listener for disconnects: what a server promises about them differs by its ASGI version.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from forerun.serve.refusals import Refusal

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_GONE = 499  # nobody reads it
_PAD_CHARS = 64
_EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def json_response(
    value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """JSON in ASCII: whatever strange characters a client put into a name can be written."""
    data = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return Response(data, status, headers, "application/json")


def refusal_response(refusal: Refusal) -> Response:
    """An error as a response."""
    return json_response(refusal.body(), refusal.status, refusal.headers())


def event(value: Mapping[str, Any], *, name: str | None = None) -> bytes:
    """One server-sent event."""
    data = f"data: {json.dumps(value, separators=(',', ':'), allow_nan=False)}\n\n"
    return (data if name is None else f"event: {name}\n{data}").encode()


def padding(num_chars: int) -> str:
    """What makes the sizes of chunks say little about the text in them."""
    num = -num_chars % _PAD_CHARS + secrets.randbelow(_PAD_CHARS)
    return secrets.token_urlsafe(num)[:num]


class EventStream(Response):
    """Sends a generator's bytes; ends the generator when the client leaves, whatever it waits for.

    `close` is called in any case, also if the response is never sent.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        super().__init__(None, headers=_EVENT_HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send until the end or until nobody listens."""
        try:
            await _unless_gone(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def whole_or_gone(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """An answer, or an empty response if the client left before it was there."""
    found: list[Response] = []

    async def keep() -> None:
        found.append(await answer)

    await _unless_gone(request.receive, keep())
    return found[0] if found else Response(status_code=_GONE)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, and cancel it if the client leaves first; its errors are raised."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
    if working.done() and not working.cancelled():
        working.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
