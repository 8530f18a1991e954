"""``GET /events``: a watch as Server-Sent Events."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from registry_server.errors import CursorExpired, RegistryError, ShuttingDown, StoreUnavailable, Violation
from registry_server.gateway import sse
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import failure_of
from registry_server.gateway.middleware import CHUNK_BYTES, IDENTITY, REQUEST_ID, Middleware, peer_of
from registry_server.gateway.names import rest_names
from registry_server.gateway.parameters import EVENTS, FILTERS, Query
from registry_server.registry import ServiceRegistry
from registry_server.security.guard import Guard
from registry_server.security.permissions import API, ROUTES
from registry_server.watch import Watcher

_RETRY_MS: Final = (1_000, 3_000)
"""After how long a client comes back: spread out, so that not all come at the same moment after a restart."""
_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events back until its buffer is full
}

log = structlog.get_logger(__name__)


class EventStream:
    """Serves event streams."""

    def __init__(
        self,
        registry: ServiceRegistry,
        documents: Documents,
        middleware: Middleware,
        guard: Guard,
        *,
        keep_alive: float,
        write_timeout: float,
    ) -> None:
        """Puts the parts together.

        Args:
            registry: What is watched.
            documents: JSON of services.
            middleware: Knows the headers of every answer.
            guard: Looks after streams that are open.
            keep_alive: Seconds after which a quiet stream gets a comment.
            write_timeout: Seconds within which a client must take 64 KiB.
        """
        self._registry = registry
        self._documents = documents
        self._middleware = middleware
        self._guard = guard
        self._keep_alive = keep_alive
        self._write_timeout = write_timeout

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Streams events until the client leaves or the watch ends.

        Raises:
            InvalidRequest: Parameters or cursor are bad.
            CursorExpired: What came after the cursor is no longer all at hand, and no snapshot is wanted.
        """
        watch = self._request(request)
        presented = self._middleware.presented(request)
        permission = ROUTES["GET", f"{API}/events"]
        response = web.StreamResponse(headers=_HEADERS)
        self._middleware.add_headers(request, response.headers)
        with (
            ExitStack() as stack,
            self._guard.session(request[IDENTITY], presented, permission, peer_of(request), watches=True) as session,
        ):
            try:
                watcher, snapshot = await self._begin(watch)
                messages: AsyncIterator[bytes] = stack.enter_context(watcher)
                session.on_end(partial(watcher.end, immediately=True))
            except (StoreUnavailable, ShuttingDown) as error:
                # Told any other status than 200, a browser's EventSource gives up for ever. This is over in a moment.
                if "text/event-stream" not in request.headers.get("Accept", ""):
                    raise
                messages, snapshot = _failing(error), False
            if request.method != "HEAD":
                await self._follow(messages, request, response, snapshot=snapshot)
        return response

    def _request(self, request: web.Request) -> WatchEventsRequest:
        query = Query(request.query, (*FILTERS, *EVENTS), labels=True)
        watch = WatchEventsRequest(filter=query.filter(), include_snapshot=query.flag("snapshot"))
        # A browser repeats the URL when it comes back, and tells in the header how far it is by then.
        cursor = request.headers.get("Last-Event-ID", "") or query.text("lastEventId")
        if cursor.isascii():
            watch.cursor = cursor
        else:
            query.violations.append(Violation("Last-Event-ID", "is not a cursor of this registry"))
        watch.bookmark_interval.FromMilliseconds(round(self._keep_alive * 1000))
        query.check()
        return watch

    async def _begin(self, watch: WatchEventsRequest) -> tuple[Watcher, bool]:
        """Begins the watch; tells whether it begins with a snapshot."""
        with rest_names():
            try:
                return await self._registry.watch(watch), watch.include_snapshot and not watch.cursor
            except CursorExpired:
                if not watch.include_snapshot:
                    raise
        watch.cursor = ""
        return await self._registry.watch(watch), True

    async def _follow(
        self, messages: AsyncIterator[bytes], request: web.Request, response: web.StreamResponse, *, snapshot: bool
    ) -> None:
        """Passes on the messages of a watch, and why it ended."""
        await response.prepare(request)
        try:
            retry = random.randint(*_RETRY_MS)  # noqa: S311 - spreads load, keeps no secret
            await self._write(response, sse.opening(retry, snapshot=snapshot))
            try:
                async for message in messages:
                    await self._write(response, sse.text_of(WatchEventsResponse.FromString(message), self._documents))
            except (TimeoutError, ConnectionError):
                raise
            except Exception as error:  # noqa: BLE001 - the stream has begun: here alone it can be told, in the stream
                await self._write(response, sse.ending(failure_of(error, request[REQUEST_ID])))
            await response.write_eof()
        except TimeoutError:
            log.info("event stream cut: its client does not read", request_id=request[REQUEST_ID])
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has left

    async def _write(self, response: web.StreamResponse, text: bytes) -> None:
        """Writes in pieces, each within the time that a client has for it.

        Raises:
            TimeoutError: The client did not read.
            ConnectionError: It has left.
        """
        for start in range(0, len(text), CHUNK_BYTES):
            async with asyncio.timeout(self._write_timeout):
                await response.write(text[start : start + CHUNK_BYTES])


async def _failing(error: RegistryError) -> AsyncGenerator[bytes, None]:
    """A watch that ends as it begins."""
    raise error
    yield b""
