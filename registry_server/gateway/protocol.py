"""``Runner``: aiohttp's server with a timeout for request headers.

aiohttp waits for the headers of a request as long as for the next request (75 s here). A client that sends them one
byte at a time on many connections ("slowloris") would hold each connection for that long.
"""

from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

if TYPE_CHECKING:
    import asyncio


class Runner(web.AppRunner):
    """Runs an application; closes connections whose request headers take longer than ``header_timeout`` seconds.

    aiohttp passes its keyword arguments, and with them the timeout, on to the server and its protocols.
    """

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(server.request_handler, request_factory=server.request_factory, **self._kwargs)


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(RequestHandler):
    __slots__ = ("_header_timeout", "_header_timer")

    def __init__(self, manager: web.Server, *, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._header_timeout = header_timeout
        self._header_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Start the header timer at the first byte of a request; stop it once the headers are complete."""
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._stop_header_timer()
        elif self._header_timer is None and not self._force_close:
            # Started once, not restarted with each byte.
            self._header_timer = self._loop.call_later(self._header_timeout, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the header timer."""
        self._stop_header_timer()
        super().connection_lost(exc)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
