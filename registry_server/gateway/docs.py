"""``/openapi.yaml``, and ``/docs``, which shows it in a browser without external resources."""

from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from typing import Final

from aiohttp import web

from registry_server.gateway.middleware import HttpCall

_HEADERS: Final = {
    "Cache-Control": "max-age=300",
    # Swagger UI sets inline styles from its scripts and uses data: URLs for images; everything else is same-origin.
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; "
        "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def asset(file: str, media_type: str) -> Callable[[object, HttpCall], Awaitable[web.Response]]:
    """Return the handler that serves a file of this package."""

    async def serve(_: object, __: HttpCall) -> web.Response:
        return web.Response(body=_content(file), content_type=media_type, charset="utf-8", headers=_HEADERS)

    return serve


@cache
def _content(file: str) -> bytes:
    return files("registry_server.gateway").joinpath(file).read_bytes()
