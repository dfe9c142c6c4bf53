"""The page: its files, which anybody who may connect may read, and what it must know of the server.

The files are read once; nothing a client sends becomes part of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from forerun.serve.body import Body
from forerun.serve.refusals import Refusal
from forerun.serve.wire import json_response

MAX_FAULTS = 3  # in a row they switch a drafter off
_TYPES = MappingProxyType(
    {
        "index.html": "text/html; charset=utf-8",
        "icon.svg": "image/svg+xml",
        "page.css": "text/css; charset=utf-8",
        "page.js": "text/javascript; charset=utf-8",
        "asking.js": "text/javascript; charset=utf-8",
        "drawing.js": "text/javascript; charset=utf-8",
        "state.js": "text/javascript; charset=utf-8",
        "traces.js": "text/javascript; charset=utf-8",
    }
)
# Of GET only; they hold nothing of anybody's, so a key is first needed for what the page asks.
PAGE_PATHS = frozenset({"/", *(f"/page/{name}" for name in _TYPES)})
_HEADERS = MappingProxyType(
    {
        "content-security-policy": "default-src 'self'; base-uri 'none'; object-src 'none';"
        " form-action 'none'; frame-ancestors 'none'",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
)


@dataclass(frozen=True, slots=True)
class PageFacts:
    """What the page is told; `fail` lets the drafter's next proposals fail, None where that is not
    allowed."""

    model: str
    version: str
    numerics: str
    drafter: str
    has_template: bool
    fail: Callable[[int], None] | None = None

    def about(self) -> dict[str, Any]:
        """Everything but the deed."""
        return {
            "model": self.model,
            "version": self.version,
            "numerics": self.numerics,
            "drafter": self.drafter,
            "has_chat_template": self.has_template,
            "can_fail": self.fail is not None,
        }


class FaultBody(Body):
    """`POST /page/drafter-failure`."""

    num: Annotated[int, Field(ge=1, le=MAX_FAULTS)] = 1


def add_page(app: FastAPI, facts: PageFacts) -> None:
    """Serve the page at `/`."""
    for name, data in page_files().items():
        _add_file(app, f"/page/{name}", data, _TYPES[name])
    _add_file(app, "/", page_files()["index.html"], _TYPES["index.html"])

    @app.get("/page/about.json", include_in_schema=False)
    async def about() -> Response:
        return json_response(facts.about())

    @app.post("/page/drafter-failure", include_in_schema=False)
    async def fail(body: FaultBody) -> Response:
        if facts.fail is None:
            raise Refusal(
                403, "this server does not let its drafter fail: start it with --allow-faults"
            )
        facts.fail(body.num)
        return json_response({"num": body.num})


def page_files() -> Mapping[str, bytes]:
    """The page as it was installed."""
    directory = files("forerun.serve") / "page"
    return {name: (directory / name).read_bytes() for name in _TYPES}


def _add_file(app: FastAPI, path: str, data: bytes, media_type: str) -> None:
    async def send() -> Response:
        return Response(data, headers=_HEADERS, media_type=media_type)

    app.add_api_route(path, send, methods=["GET"], include_in_schema=False)
