"""``Runner``: aiohttp's server with limits for what a connection holds and for how long.

aiohttp waits for the first request, and for the headers of each, as long as for the next request (75 s here), and
without limit for a client to read its answer. It collects 1.6 MB of headers for each request that never ends.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from aiohttp import StreamReader, web
from aiohttp.http import StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, RequestHandler, _ErrInfo

from registry_server.gateway.connections import Place
from registry_server.instrumentation.request_context import REQUEST_CONTEXT, RequestContext
from registry_server.instrumentation.tracing import TRACE_ID
from registry_server.security.identity import CALLER_KEY, NO_KEY, UNCHECKED, current_identity

SMALL_HEADERS_BYTES: Final = 4 << 10
"""Size up to which the headers of a connection are not counted. Data is parsed in pieces of this size."""
UNREAD_BYTES: Final = 16 << 10
"""Bytes of answers that may wait for a client; beyond it they are counted, and it must read them in time."""
_CHECK_CONNECTION_SECONDS: Final = 1.0
"""How often the connection of a stream is checked in the server of another program."""


class ConnectionLimits(NamedTuple):
    """Limits of each connection."""

    header_timeout: float
    """Seconds for the headers of a request; on a new connection also for its first byte."""
    write_timeout: float
    """Seconds for a client to read what waits for it."""
    max_headers_bytes: int
    """Size of all headers of a request with the request line."""
    admit_malformed: Callable[[str], bool]
    """Charges a request that is not HTTP to its address; returns whether to answer it."""


class Runner(web.BaseRunner):
    """Runs a server; ``make_protocol`` makes the protocols of its connections."""

    def __init__(
        self, handle: Callable[[web.BaseRequest], Awaitable[Any]], limits: ConnectionLimits, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._handle, self._limits = handle, limits

    async def shutdown(self) -> None:
        """Do nothing: streams end with their watches."""

    async def _make_server(self) -> web.Server:
        return web.Server(self._handle, **self._kwargs)

    async def _cleanup_server(self) -> None:
        pass

    def make_protocol(self, place: Place) -> "ServerProtocol":
        """Return the protocol of a connection."""
        assert self.server is not None  # noqa: S101 - since setup()
        return ServerProtocol(self.server, place, self._limits, loop=self.server._loop, **self._kwargs)  # noqa: SLF001


class ServerProtocol(RequestHandler):
    """One connection."""

    __slots__ = (
        "_address",
        "_body",
        "_body_bytes",
        "_headers_bytes",
        "_headers_timer",
        "_limits",
        "_malformed",
        "_place",
        "_started",
        "_stream",
        "_unread_bytes",
        "_write_timer",
        "pending_bytes",
        "stream_task",
    )

    def __init__(self, manager: web.Server, place: Place, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._place, self._limits = place, limits
        self._started = False
        self._malformed = False
        self._address = ""
        self._stream: asyncio.Transport | None = None
        """The transport, also while it closes."""
        self.stream_task: asyncio.Task[Any] | None = None
        """Sends an answer without an end; cancelled when the client leaves."""
        self._headers_timer: asyncio.TimerHandle | None = None
        """Runs while the headers of a request are expected."""
        self._headers_bytes = 0
        """Bytes of headers that were received since the connection was idle."""
        self._body: StreamReader = EMPTY_PAYLOAD
        """Body of the newest request."""
        self._body_bytes = 0
        """Bytes of that body on the wire."""
        self._write_timer: asyncio.TimerHandle | None = None
        """Runs while answers wait for the client."""
        self._unread_bytes = 0
        self.pending_bytes = 0
        """Bytes that the handler of a stream holds until the client has read what is before them."""

    @property
    def idle(self) -> bool:
        """Whether no request is handled or received."""
        waiting = self._headers_timer is None or not self._headers_bytes
        return waiting and not (self._busy or self._force_close or self._write_timer)

    @property
    def _busy(self) -> bool:
        """Whether a request waits or is handled; aiohttp then does not wait for the next one."""
        return bool(self._messages) or (self._started and self._waiter is None)

    def connection_made(self, transport: "asyncio.BaseTransport") -> None:
        """Expect the first request."""
        super().connection_made(transport)
        self._stream = self.transport
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if peer else ""
        if self._stream is not None:
            self._stream.set_write_buffer_limits(UNREAD_BYTES)
        self._place.occupy(self)
        self._start_headers_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release everything."""
        self._stream = None
        if self.stream_task is not None:
            self.stream_task.cancel()
        super().connection_lost(exc)
        self._stop_headers_timer()
        self._stop_write_timer()
        self._place.release(self)

    def data_received(self, data: bytes) -> None:
        """Parse data in pieces, and limit what it adds to the connection."""
        if (
            self._waiter is not None
            and self._headers_timer is None
            and len(data) <= SMALL_HEADERS_BYTES
            and not (self._messages or self._malformed or self._close or self._upgraded)
        ):
            self._receive_first(data)
            return
        for start in range(0, len(data), SMALL_HEADERS_BYTES) or (0,):
            self._receive(data[start : start + SMALL_HEADERS_BYTES])

    def _receive_first(self, data: bytes) -> None:
        """Receive the first data since the connection was idle: almost always a whole request without a body."""
        if self._headers_bytes > SMALL_HEADERS_BYTES:
            self._headers_bytes = 0
            self._hold_bytes()
        super().data_received(data)
        self._headers_bytes = len(data)
        if not self._messages:
            self._start_headers_timer()
            return
        message, body = self._messages[-1]
        if body is not self._body or isinstance(message, _ErrInfo):
            self._note_newest(message, body)

    def _receive(self, data: bytes) -> None:
        if self._upgraded and len(self._message_tail) >= SMALL_HEADERS_BYTES:
            self._close = True  # after the answer: data of a protocol that was requested but not confirmed
        if self._malformed or self._close:
            return
        in_body = not self._body.is_eof()
        if not in_body and self._headers_timer is None and not self._busy:
            self._headers_bytes = 0  # the previous request has ended
        super().data_received(data)
        if self._messages:
            self._note_newest(*self._messages[-1])
        if in_body:
            self._body_bytes += len(data)
            # Chunks of one byte take six. Anything beyond that is chunk extensions or trailers.
            if self._body_bytes > 8 * self._body.total_bytes + self._limits.max_headers_bytes:
                self._refuse("400 Bad Request")
            return
        if self._busy:
            self._stop_headers_timer()
        else:
            self._start_headers_timer()
        # Counted until the connection is idle: also requests that a client sends without waiting for answers.
        self._headers_bytes += len(data)
        if self._headers_timer is not None and self._headers_bytes > self._limits.max_headers_bytes:
            self._refuse("431 Request Header Fields Too Large")
        elif not self._hold_bytes():
            self._refuse("503 Service Unavailable")

    def _note_newest(self, message: object, body: StreamReader) -> None:
        if body is not self._body:
            self._body, self._body_bytes = body, 0
        if isinstance(message, _ErrInfo):
            self._malformed = True  # otherwise aiohttp reports the same error for each further piece
            message.exc.__traceback__ = None  # its frames refer to this connection, which refers to the error

    def pause_writing(self) -> None:
        """Require that the client reads its answers."""
        super().pause_writing()
        if self._stream is not None and self._write_timer is None:
            self._unread_bytes = self._stream.get_write_buffer_size() + self.pending_bytes
            self._start_write_timer()
            if not self._hold_bytes():
                self._loop.call_soon(self._disconnect, REQUEST_CONTEXT.get())  # not within a write

    def resume_writing(self) -> None:
        """Note that the client has read its answers."""
        self._stop_write_timer()
        super().resume_writing()

    async def _drain_helper(self) -> None:
        try:
            await super()._drain_helper()
        except ConnectionError as error:
            # Of a frame in it, a local variable is the future that it was set on: a cycle with this connection.
            error.__traceback__ = None
            raise ConnectionResetError("the client left") from None

    def force_close(self) -> None:
        """Close the connection; the client has the write timeout to read what was sent."""
        super().force_close()
        if self._stream is not None and self._stream.get_write_buffer_size() and self._write_timer is None:
            self._start_write_timer()

    async def start(self) -> None:
        """Handle requests, and then close the connection as ``force_close`` does.

        aiohttp handles each request in a task of its own, which takes 10 µs and another turn of the event loop.
        """
        self._started = True
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                if not await self._handle_next():
                    break
        except ConnectionError:
            pass  # the client left
        except Exception:  # noqa: BLE001 - the connection ends, the server continues
            self.log_exception("HTTP connection failed")
        finally:
            self.force_close()

    async def _handle_next(self) -> bool:
        """Handle a request that was received; return whether the connection stays open."""
        message, body = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        assert self._manager is not None and self._request_factory is not None  # noqa: S101, PT018 - while connected
        handler: Any = self._request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        self._manager.requests_count += 1
        task: Any = self._task_handler or asyncio.current_task()
        request = self._request_factory(message, body, self, StreamWriter(self, self._loop), task)
        try:
            response, client_left = await self._handle_request(request, None, handler)
        finally:
            request._task = None  # type: ignore[assignment]  # noqa: SLF001 - a cycle
            leave_request()
        if client_left:
            return False
        self._keepalive = bool(response.keep_alive)
        if not body.is_eof():
            await self._read_rest(body)
        body.set_exception(_PAYLOAD_ACCESS_ERROR)
        if not self._keepalive or self._close or self._force_close:
            return False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        return True

    async def _read_rest(self, body: StreamReader) -> None:
        """Read what the handler left of a body, so that its sender receives the answer; then close the connection."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._lingering_time):
                while not (body.is_eof() or self._force_close):
                    await body.readany()
        if not body.is_eof():
            self.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is not HTTP, if its address has not sent too many."""
        if status == HTTPStatus.BAD_REQUEST and not self._limits.admit_malformed(self._address):
            status, message = HTTPStatus.TOO_MANY_REQUESTS, "too many calls; try again later"
        return super().handle_error(request, status, exc, message)

    def _hold_bytes(self) -> bool:
        """Count what the connection holds; return whether the limits allow it."""
        return self._place.hold(max(0, self._headers_bytes - SMALL_HEADERS_BYTES) + self._unread_bytes)

    def _refuse(self, status: str) -> None:
        """Answer what cannot be parsed further, and close the connection."""
        self._place.log("HTTP connection closed", limit=status, peer=self._address)
        self._body.set_exception(ConnectionResetError(status))
        if self.transport is not None and not self._busy:
            self.transport.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        self.force_close()

    def _disconnect(self, context: RequestContext | None) -> None:
        """Disconnect a client that does not read the answer to this request."""
        if self._stream is not None:
            fields = context.log_fields() if context else {"peer": self._address}
            self._place.log("slow reader disconnected", **fields)
            self._stream.abort()

    def _start_headers_timer(self) -> None:
        # Started once, not restarted with each byte.
        if self._headers_timer is None and not self._force_close:
            self._headers_timer = self._loop.call_later(self._limits.header_timeout, self._end_headers)

    def _end_headers(self) -> None:
        self._headers_timer = None
        if not self._busy:
            self.force_close()

    def _stop_headers_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _start_write_timer(self) -> None:
        # asyncio keeps the context of a cancelled timer until its time: it must not refer to the request.
        request, nothing = REQUEST_CONTEXT.get(), Context()
        self._write_timer = self._loop.call_later(
            self._limits.write_timeout, self._disconnect, request, context=nothing
        )

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._unread_bytes = 0
        self._hold_bytes()


def leave_request() -> None:
    """Reset the context variables of a request, which the next one on its connection would otherwise start with."""
    REQUEST_CONTEXT.set(None)
    current_identity.set(UNCHECKED)
    CALLER_KEY.set(NO_KEY)
    TRACE_ID.set("")


@contextmanager
def ending_with_client(request: web.BaseRequest) -> Iterator[None]:
    """End the block as soon as the client leaves; aiohttp would report that to the next write.

    Raises:
        ConnectionError: The client left.
    """
    task, protocol = asyncio.current_task(), request.protocol
    assert task is not None  # noqa: S101 - within a coroutine
    if request.transport is None:
        raise ConnectionResetError("the client left")
    watching: asyncio.Task[None] | None = None
    if isinstance(protocol, ServerProtocol):
        protocol.stream_task = task
    else:
        watching = asyncio.create_task(_cancel_when_closed(request, task), name="event-stream-connection")
    try:
        yield
    except asyncio.CancelledError:
        if request.transport is not None or task.uncancel():  # the server stops
            raise
        raise ConnectionResetError("the client left") from None
    finally:
        if isinstance(protocol, ServerProtocol):
            protocol.stream_task = None
        if watching is not None:
            watching.cancel()


async def _cancel_when_closed(request: web.BaseRequest, task: "asyncio.Task[Any]") -> None:
    while request.transport is not None:  # noqa: ASYNC110 - aiohttp reports nothing
        await asyncio.sleep(_CHECK_CONNECTION_SECONDS)
    task.cancel()
