"""A real server on a free port, in a thread of this process: uvicorn, engine and all."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import uvicorn

from forerun import Engine
from forerun.engine.service import Service, ServiceLimits
from forerun.serve.app import build_app
from forerun.serve.command import address_of, configuration
from forerun.serve.gate import Life
from forerun.serve.settings import ServeSettings

MODEL = "tiny"


@dataclass(frozen=True)
class Live:
    """What tests talk to, and what is behind it."""

    address: str
    engine: Engine
    service: Service
    life: Life

    def client(self, key: str = "none") -> openai.OpenAI:
        """The client that users have."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)

    def http(self, **headers: str) -> httpx2.Client:
        """A client that sends what it is told."""
        return httpx2.Client(base_url=self.address, headers=headers, timeout=120)


@contextmanager
def serving(engine: Engine, limits: ServiceLimits | None = None, **changes: Any) -> Iterator[Live]:
    """Serve an engine until the block ends."""
    settings = ServeSettings(**{"name": MODEL, "port": 0, **changes})
    life = Life()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Service(engine, limits or ServiceLimits()) as service:
            app = build_app(engine, service, settings, life)
            server = uvicorn.Server(configuration(app))
            thread = threading.Thread(
                target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
            )
            thread.start()
            try:
                yield Live(address_of(listener), engine, service, life)
            finally:
                server.should_exit = True
                thread.join(120)
        assert not thread.is_alive()
