"""``GET /events``: a watch as Server-Sent Events."""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Final

from aiohttp import web

from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest
from ossa_common.violations import Violation
from registry_server.errors import CursorExpired, RegistryError, ShuttingDown, StoreUnavailable
from registry_server.gateway import sse
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import failure_of
from registry_server.gateway.middleware import HttpCall
from registry_server.gateway.names import rest_names
from registry_server.gateway.parameters import EVENTS, FILTERS, Query
from registry_server.gateway.protocol import ending_with_client
from registry_server.registry import ServiceRegistry
from registry_server.watch import EventBatch, Watcher

_RETRY_MS: Final = (1_000, 3_000)
"""Reconnect delay sent to clients, randomised so that they do not all reconnect at once after a restart."""
_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # otherwise nginx delays events until its buffer is full
}


class EventStream:
    """Serves event streams."""

    def __init__(self, registry: ServiceRegistry, documents: Documents, *, keep_alive: float) -> None:
        """Create the handler.

        Args:
            registry: The use cases.
            documents: JSON of services.
            keep_alive: Seconds without events after which a comment is sent.
        """
        self._registry = registry
        self._documents = documents
        self._keep_alive = keep_alive
        self._watchers: set[Watcher] = set()

    def end_streams(self) -> None:
        """End the open streams once what they hold was sent."""
        for watcher in list(self._watchers):
            watcher.end(ShuttingDown())

    async def stream(self, call: HttpCall) -> web.StreamResponse:
        """Stream events until the client leaves or the watch ends.

        Raises:
            InvalidRequest: A parameter or the cursor is not valid.
            CursorExpired: Some changes after the cursor are no longer available, and no snapshot was requested.
        """
        watch = self._watch_request(call.request)
        response = web.StreamResponse(headers=_HEADERS)
        call.middleware.add_headers(call, response.headers)
        with ExitStack() as stack:
            try:
                watcher, snapshot = await self._open_watch(watch)
                batches: AsyncIterator[EventBatch] = stack.enter_context(watcher)
                call.on_revoked(partial(watcher.end, immediately=True))
                self._watchers.add(watcher)
                stack.callback(self._watchers.discard, watcher)
            except (StoreUnavailable, ShuttingDown) as error:
                # A browser's EventSource never reconnects after a status other than 200, and this error is temporary.
                if "text/event-stream" not in call.request.headers.get("Accept", ""):
                    raise
                batches, snapshot = _failed_watch(error), False
            if call.request.method != "HEAD":
                # The client may leave, or is disconnected if it does not read.
                with suppress(ConnectionError), ending_with_client(call.request):
                    await self._send_events(batches, call, response, snapshot=snapshot)
        return response

    def _watch_request(self, request: web.BaseRequest) -> WatchEventsRequest:
        query = Query(request.query, (*FILTERS, *EVENTS), labels=True)
        watch = WatchEventsRequest(filter=query.filter(), include_snapshot=query.flag("snapshot"))
        # A reconnecting browser repeats the URL and sends its newest cursor in the header.
        cursor = request.headers.get("Last-Event-ID", "") or query.text("lastEventId")
        if cursor.isascii():
            watch.cursor = cursor
        else:
            query.violations.append(Violation("Last-Event-ID", "is not a cursor of this registry"))
        watch.bookmark_interval.FromMilliseconds(round(self._keep_alive * 1000))
        query.check()
        return watch

    async def _open_watch(self, watch: WatchEventsRequest) -> tuple[Watcher, bool]:
        """Open a watch; also return whether it starts with a snapshot."""
        with rest_names():
            try:
                return await self._registry.watch(watch), watch.include_snapshot and not watch.cursor
            except CursorExpired:
                if not watch.include_snapshot:
                    raise
        watch.cursor = ""
        return await self._registry.watch(watch), True

    async def _send_events(
        self, batches: AsyncIterator[EventBatch], call: HttpCall, response: web.StreamResponse, *, snapshot: bool
    ) -> None:
        """Send the events of a watch, then the error that ended it."""
        write = partial(call.middleware.write, call, response)
        await response.prepare(call.request)
        retry = random.randint(*_RETRY_MS)  # noqa: S311 - jitter, not a secret
        await write(sse.encode_opening(retry, snapshot=snapshot))
        try:
            async for batch in batches:
                if not batch.sse:  # fills the cache, so that the next line takes little time
                    await self._documents.encode_all([event.record for event in batch.events if event.record])
                text = sse.encode_batch(batch, self._documents)
                await write(text, 0 if batch.shared else len(text))
                del batch, text  # a quiet stream would hold them until its next event
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the status was sent: the error can only be reported in the stream
            await write(sse.encode_ending(failure_of(error)))
        await response.write_eof()


async def _failed_watch(error: RegistryError) -> AsyncGenerator[EventBatch, None]:
    """Return a watch that fails immediately."""
    nothing: tuple[EventBatch, ...] = ()
    for batch in nothing:
        yield batch  # makes this function a generator
    raise error
