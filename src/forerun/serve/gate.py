"""What every request passes before any route sees it: key, host, size, and an id of its own.

Decides by the path that was sent, not by one rebuilt from headers; a path that is not named here
needs a key. Errors that reach it become one fixed sentence.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.serve.keys import partition_of
from forerun.serve.page_routes import PAGE_PATHS
from forerun.serve.refusals import Refusal, internal, shutting_down
from forerun.serve.settings import ServeSettings, is_loopback
from forerun.serve.wire import refusal_response

PARTITION = "forerun.partition"  # in a request's scope: whose caches it may use
REQUEST_ID = "forerun.request_id"  # in a request's scope: what the log calls it
ARRIVED_S = "forerun.arrived_s"  # in a request's scope: when it came, by the server's clock
_OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
_WHILE_DRAINING = _OPEN_PATHS | {"/metrics"}
_HEARD_S, _HEARD_BODIES = 10.0, 4  # of a body that is too large: for so long, and so many limits
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")


@dataclass(slots=True, eq=False)
class Life:
    """Whether the server still takes requests."""

    is_draining: bool = False


class Gate:
    """The outermost ASGI application."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        life: Life,
        note: Callable[[BaseException, str], None],
        now_s: Callable[[], float],
    ) -> None:
        self._app = app
        self._settings = settings
        self._life = life
        self._note = note
        self._now_s = now_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        passage = _Passage(_headers(scope), send)
        scope[PARTITION], scope[REQUEST_ID] = "", passage.request_id
        scope[ARRIVED_S] = self._now_s()
        try:
            self._admit(scope, passage.headers)
            if scope["method"] not in ("GET", "HEAD"):
                receive = await self._with_body(passage.headers, receive)
            await self._app(scope, receive, passage.send)
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, passage.send)
        # Also what Starlette raises again after it has answered: the client must not see it.
        except Exception as error:  # noqa: BLE001
            self._note(error, passage.request_id)
            if not passage.has_begun:
                await refusal_response(internal())(scope, receive, passage.send)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        path, settings = scope["path"], self._settings
        if self._life.is_draining and path not in _WHILE_DRAINING:
            raise shutting_down(settings.retry_s)
        if path in _OPEN_PATHS:
            return
        if settings.key_hashes and path in PAGE_PATHS and scope["method"] == "GET":
            return
        if settings.key_hashes:
            scope[PARTITION] = self._partition(headers)
        elif not _names_this_machine(headers.get(b"host", b"")):
            # Without a key, a web page that rebinds its own name to 127.0.0.1 would get in.
            raise Refusal(
                403,
                "without API keys only this machine's own names are served: ask for 127.0.0.1, or"
                " start the server with --api-key-file",
                code="unknown_host",
            )

    def _partition(self, headers: dict[bytes, bytes]) -> str:
        kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        known = self._settings.key_hashes
        partition = partition_of(key.strip(), known)
        if kind.lower() != "bearer" or partition is None:
            raise Refusal(
                401, "an API key is needed: Authorization: Bearer KEY", code="invalid_api_key"
            )
        return partition

    async def _with_body(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the body here, within its limits; the application receives it in one message."""
        most = self._settings.max_body_bytes
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            await _hear_out(receive, most)
            raise _too_large(most)
        body, has_more = bytearray(), True
        try:
            async with asyncio.timeout(self._settings.body_s):
                while has_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _replay(message, receive)
                    body += message.get("body", b"")
                    has_more = message.get("more_body", False)
                    if len(body) > most:
                        break
        except TimeoutError:
            raise Refusal(
                408, f"the body did not arrive within {self._settings.body_s:g} s: send it at once"
            ) from None
        if len(body) > most:
            if has_more:
                await _hear_out(receive, most)
            raise _too_large(most)
        return _replay({"type": "http.request", "body": bytes(body), "more_body": False}, receive)


class _Passage:
    """One request on its way: its headers, its id, and whether an answer has begun."""

    def __init__(self, headers: dict[bytes, bytes], send: Send) -> None:
        self.headers = headers
        given = headers.get(b"x-request-id", b"")
        is_fit = _REQUEST_ID.fullmatch(given) is not None
        self.request_id = given.decode() if is_fit else secrets.token_hex(16)
        self.has_begun = False
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass on a message, with the headers that all responses have."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self._send(message)


def _headers(scope: Scope) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _replay(message: Message, receive: Receive) -> Receive:
    waiting = [message]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def _hear_out(receive: Receive, most: int) -> None:
    """Read on for a moment where a body is refused: a connection that is closed with bytes unread
    is reset, and its client does not hear why."""
    num_bytes, has_more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_HEARD_S):
            while has_more and num_bytes < _HEARD_BODIES * most:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                has_more = message.get("more_body", False)


def _names_this_machine(host: bytes) -> bool:
    """What a server without keys listens on is always a name of this machine, too."""
    name = host.decode("latin-1")
    name = name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]
    return is_loopback(name)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is larger than {most} bytes: send less", code="body_too_large")
