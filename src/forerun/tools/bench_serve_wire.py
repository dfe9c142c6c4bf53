"""HTTP/1.1 and server-sent events as a client reads them: heads, bodies in chunks, events.

On streams of asyncio, so that a measurement needs no library. Must not know what events mean.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from forerun.errors import ForerunError, OptionError

_LINE_END = re.compile(rb"\r\n|\n|\r")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: .*)?")
_MAX_HEAD_BYTES, _MAX_LINE_BYTES, _PIECE_BYTES = 1 << 16, 1 << 24, 1 << 16
_PORTS = {"http": 80, "https": 443}


class RequestFailed(ForerunError):
    """One request brought no whole answer; `kind` is the word it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class EventParser:
    """Events out of a stream's bytes, however they were cut: lines may end in CR, LF or both."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._skips_newline = False  # the last piece ended in the first half of a CRLF

    def feed(self, piece: bytes) -> list[str]:
        """The `data` of every event that is complete now; comments and other fields are dropped.

        Raises:
            RequestFailed: a line without an end.
        """
        if not piece:
            return []
        if self._skips_newline:
            piece = piece.removeprefix(b"\n")
        self._skips_newline = piece.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        if len(self._rest) > _MAX_LINE_BYTES:
            raise RequestFailed("malformed", f"a line of events exceeds {_MAX_LINE_BYTES} bytes")
        return [data for line in lines if (data := self._take(line)) is not None]

    def _take(self, line: bytes) -> str | None:
        if not line:
            data, self._data = self._data, []
            return "\n".join(data) or None  # an event without data is none
        name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" ").decode("utf-8", errors="replace"))
        return None


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is; `path` is what its routes begin with, without a slash at the end."""

    host: str
    port: int
    path: str
    is_secure: bool

    @staticmethod
    def parse(url: str) -> Address:
        """The parts of a URL.

        Raises:
            OptionError: no URL of http or https with a host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise OptionError(f"--url {url!r} cannot be read: {error}") from error
        if parts.scheme not in _PORTS or not parts.hostname or parts.query:
            raise OptionError(f"--url {url!r} must be like http://127.0.0.1:8000/v1")
        return Address(parts.hostname, port, parts.path.rstrip("/"), parts.scheme == "https")

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def root(self) -> str:
        """The path above the API's version, where servers have their metrics."""
        return re.sub(r"/v\d+$", "", self.path)


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of a response, names in lower case."""

    status: int
    headers: Mapping[str, str]

    @staticmethod
    def parse(data: bytes) -> Head:
        """The head of a response, as it came.

        Raises:
            RequestFailed: it is none.
        """
        first, *lines = data.strip(b"\r\n").split(b"\r\n")
        match = _STATUS.fullmatch(first)
        if match is None:
            raise RequestFailed("malformed", f"this is no HTTP response: {first[:60]!r}")
        pairs = (line.decode("latin-1").partition(":") for line in lines)
        return Head(
            int(match[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}
        )


def request_bytes(
    address: Address, path: str, key: str | None = None, body: bytes | None = None
) -> bytes:
    """A request as it is sent: GET without a body, else POST of JSON. One request a connection."""
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        f"Host: {address.authority}",
        "Connection: close",
        "Accept: text/event-stream, application/json, text/plain",
    ]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@asynccontextmanager
async def exchange(
    address: Address, request: bytes
) -> AsyncIterator[tuple[Head, AsyncIterator[bytes]]]:
    """Send a request; give the response's head and its body in pieces, as they come.

    Raises:
        RequestFailed: kind `connect`, `disconnected` or `malformed`.
    """
    context = ssl.create_default_context() if address.is_secure else None
    try:
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=context, limit=_MAX_HEAD_BYTES
        )
    except (OSError, UnicodeError) as error:  # the second for a name that cannot be looked up
        raise RequestFailed("connect", str(error)) from error
    try:
        writer.write(request)
        head = await _read_head(reader)
        async with aclosing(_body(reader, head)) as pieces:
            yield head, pieces
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise RequestFailed("disconnected", f"the server hung up: {error}") from error
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise RequestFailed("malformed", f"the response is no HTTP: {error}") from error
    finally:
        writer.transport.abort()  # never waits for a server that does not read
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> Head:
    while (head := Head.parse(await reader.readuntil(b"\r\n\r\n"))).status < 200:
        pass
    return head


async def _body(reader: asyncio.StreamReader, head: Head) -> AsyncGenerator[bytes, None]:
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        return
    left = int(head.headers.get("content-length", 1 << 62))
    while left > 0 and (piece := await reader.read(min(left, _PIECE_BYTES))):
        left -= len(piece)
        yield piece


async def read_whole(address: Address, path: str, key: str | None = None) -> tuple[int, bytes]:
    """Status and body of a GET.

    Raises:
        RequestFailed: as of `exchange`.
    """
    async with exchange(address, request_bytes(address, path, key)) as (head, pieces):
        return head.status, b"".join([piece async for piece in pieces])
