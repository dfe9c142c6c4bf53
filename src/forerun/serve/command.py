"""`forerun serve`: an engine behind HTTP until it is told to stop.

The first SIGTERM or Ctrl-C lets running requests end and refuses new ones, the second ends at once.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from forerun.engine.engine import Engine
from forerun.engine.service import Service, ServiceLimits
from forerun.errors import OptionError
from forerun.serve.app import build_app
from forerun.serve.gate import Life
from forerun.serve.settings import ServeSettings, authority_of

_BACKLOG = 512
_MAX_CONNECTIONS = 2048
_LAST_S = 5  # for connections to end once their requests have
# Of a connection at rest: longer than clients keep one, or a request may meet its end.
_AT_REST_S = 75


def run(
    open_engine: Callable[[], Engine],
    settings: ServeSettings,
    limits: ServiceLimits,
    announce: Callable[[str], None],
) -> int:
    """Serve until SIGTERM or Ctrl-C; `announce` is given the address when it is ready.

    Raises:
        ForerunError: an engine that cannot be built.
        OptionError: an address that cannot be listened on.
    """
    with _listen(settings) as listener, open_engine() as engine, Service(engine, limits) as service:
        life = Life()
        app = build_app(engine, service, settings, life)
        asyncio.run(_serve(app, listener, service, settings, life, announce))
    return 0


async def _serve(
    app: ASGIApp,
    listener: socket.socket,
    service: Service,
    settings: ServeSettings,
    life: Life,
    announce: Callable[[str], None],
) -> None:
    server = uvicorn.Server(configuration(app))
    ending = Ending(server, service, life, settings.drain_s)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    async with ending.on_signals(serving):
        announce(address_of(listener))
        await serving


def configuration(app: ASGIApp) -> uvicorn.Config:
    """How HTTP is spoken: plain, without websockets, proxies' headers and logs of requests."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_AT_REST_S,
        timeout_graceful_shutdown=_LAST_S,
        h11_max_incomplete_event_size=64 << 10,
    )


class Ending:
    """From the first signal to the end: refuse, drain, cancel what is left, stop."""

    def __init__(
        self, server: uvicorn.Server, service: Service, life: Life, drain_s: float
    ) -> None:
        self._server = server
        self._service = service
        self._life = life
        self._drain_s = drain_s
        self._tasks: list[asyncio.Future[None]] = []  # kept, or nobody would

    @asynccontextmanager
    async def on_signals(self, serving: asyncio.Future[None]) -> AsyncIterator[None]:
        """Take the signals from uvicorn, which has set its own by the time it has started."""
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.005)
        loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.hear)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def hear(self) -> None:
        """A signal came."""
        if self._life.is_draining:
            self._server.should_exit = self._server.force_exit = True
            self._tasks.append(asyncio.ensure_future(asyncio.to_thread(self._service.close)))
            return
        self._life.is_draining = True
        self._tasks.append(asyncio.ensure_future(self._drain()))

    async def _drain(self) -> None:
        await asyncio.to_thread(self._service.drain, self._drain_s)
        await asyncio.to_thread(self._service.close)
        self._server.should_exit = True


def _listen(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # Python appends the address once more, as a tuple.
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise OptionError(
            f"{authority_of(settings.host, settings.port)} cannot be listened on ({why}): choose"
            " another --port, 0 takes a free one, or a --host of this machine"
        ) from error


def address_of(listener: socket.socket) -> str:
    """The base of every address that is served."""
    host, port = listener.getsockname()[:2]
    return f"http://{authority_of(host, port)}"
