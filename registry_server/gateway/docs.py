"""``/openapi.yaml``, and ``/docs``, which shows it in a browser without external resources."""

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Final

from aiohttp import web

_ASSETS: Final = {
    "/openapi.yaml": ("openapi.yaml", "application/yaml"),
    "/docs": ("assets/index.html", "text/html"),
    "/docs/start.js": ("assets/start.js", "text/javascript"),
    "/docs/swagger-ui.css": ("assets/swagger-ui.css", "text/css"),
    "/docs/swagger-ui-bundle.js": ("assets/swagger-ui-bundle.js", "text/javascript"),
}
"""Path to file and media type."""
_HEADERS: Final = {
    "Cache-Control": "max-age=300",
    # Swagger UI sets inline styles from its scripts and uses data: URLs for images; everything else is same-origin.
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; "
        "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def docs_routes() -> Sequence[web.RouteDef]:
    """Return the route table."""
    return [web.get(path, _serve_asset(file, media_type)) for path, (file, media_type) in _ASSETS.items()]


def _serve_asset(file: str, media_type: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=_content(file), content_type=media_type, charset="utf-8", headers=_HEADERS)

    return serve


@cache
def _content(file: str) -> bytes:
    return files("registry_server.gateway").joinpath(file).read_bytes()
