"""``/openapi.yaml``, and ``/docs``, which shows it in a browser without external resources."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import Any, Final

from registry_server.gateway.answers import Answer
from registry_server.gateway.compression import accepts_gzip
from registry_server.gateway.middleware import HttpCall

_HEADERS: Final = {
    "Cache-Control": "max-age=300",
    # Swagger UI sets inline styles from its scripts and uses data: URLs for images; everything else is same-origin.
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; "
        "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Assets:
    """The files of this package that are served, each compressed once."""

    def __init__(self) -> None:
        self._compressed: dict[str, asyncio.Task[bytes]] = {}

    async def gzipped(self, file: str) -> bytes:
        """Return a file as gzip."""
        if file not in self._compressed:  # the first request of each file starts the task, and all wait for it
            compressing = asyncio.to_thread(gzip.compress, _content(file))
            self._compressed[file] = asyncio.create_task(compressing, name="compress-asset")
        return await asyncio.shield(self._compressed[file])


def asset(file: str, media_type: str) -> Callable[[Any, HttpCall], Awaitable[Answer]]:
    """Return the handler that serves a file of this package."""

    async def serve(api: Any, call: HttpCall) -> Answer:
        call.shares_answer = True
        assets: Assets = api.assets
        compressed = accepts_gzip(call.request)
        body = await assets.gzipped(file) if compressed else _content(file)
        headers = _HEADERS | {"Content-Encoding": "gzip"} if compressed else _HEADERS
        return Answer(body, headers=headers, content_type=f"{media_type}; charset=utf-8")

    return serve


@cache
def _content(file: str) -> bytes:
    return files("registry_server.gateway").joinpath(file).read_bytes()
