"""``Runner``: aiohttp's server with an end to its patience for headers.

aiohttp waits for the headers of a request as long as for the request itself (75 s here). Whoever sends them one byte at
a time on many connections ("slowloris") would hold each of those for that long.
"""

from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

if TYPE_CHECKING:
    import asyncio


class Runner(web.AppRunner):
    """Runs an application; cuts clients that take more than ``header_timeout`` seconds for the headers of a request."""

    __slots__ = ("_header_timeout",)

    def __init__(self, app: web.Application, *, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._header_timeout = header_timeout

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            header_timeout=self._header_timeout,
            **self._kwargs,
        )


class _Server(web.Server):
    def __init__(self, handler: Any, *, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self._header_timeout = header_timeout

    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, header_timeout=self._header_timeout, **self._kwargs)


class _Protocol(RequestHandler):
    __slots__ = ("_header_timeout", "_headers_due")

    def __init__(self, manager: web.Server, *, header_timeout: float, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._header_timeout = header_timeout
        self._headers_due: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Looks whether what came so far is a request, or only the beginning of one."""
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._headers_are_there()
        elif self._headers_due is None and not self._force_close:
            # From the first byte on, and not anew with each of them.
            self._headers_due = self._loop.call_later(self._header_timeout, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forgets the timer."""
        self._headers_are_there()
        super().connection_lost(exc)

    def _headers_are_there(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None
