"""``RpcCall``: one RPC, read from its gRPC context."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Self
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import Message

from ossa_common.violations import Violation
from registry_server.admission import Admission, CallScope, Endpoint
from registry_server.errors import (
    InvalidRequest,
    RegistryError,
    ShuttingDown,
    Unauthenticated,
    WatcherTooSlow,
)
from registry_server.instrumentation.request_context import REQUEST_CONTEXT, REQUEST_ID_HEADER
from registry_server.instrumentation.tracing import Attributes
from registry_server.rpc.codec import Context, parse, require_size, serialized
from registry_server.rpc.idle import IdleStreams
from registry_server.rpc.readers import SlowReaders
from registry_server.rpc.requests import AwaitedRequests
from registry_server.rpc.status import code_of, status_of, trailers_of
from registry_server.security.authenticator import CertificateNames, Credentials
from registry_server.security.identity import current_identity
from registry_server.security.limits import SMALL_REQUEST_BYTES, CallSlot

MAX_WAIT_SECONDS: Final = 30.0
"""How long a call without a deadline waits for a revision."""

_CANCELLATION_SECONDS: Final = 0.05
"""Time for gRPC to cancel a call whose client has left; until then it looks as if the request had ended early."""
_MAX_UNCOUNTED_ANSWER_BYTES: Final = 64 << 10
"""Larger answers are counted until the client has read them; smaller ones fit in the network buffers."""
_MAX_CACHED_ADDRESSES: Final = 4_096
"""Peers whose parsed address is cached, so that it is not parsed again for each call."""
_CERTIFICATE_NAMES: Final = {"peer_uri": "uri", "peer_dns": "dns", "x509_common_name": "common_name"}
"""Keys of the auth context for the names in a client certificate (grpc/grpc_security_constants.h)."""
_NO_ERROR: Final = frozenset({"OK", "CANCELLED"})
_SERVER_ERRORS: Final = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN"})
"""Codes caused by this server rather than by its client; logged as warnings."""
_FAILED_SPANS: Final = _SERVER_ERRORS | {"DEADLINE_EXCEEDED", "UNIMPLEMENTED", "DATA_LOSS"}
"""Codes that OpenTelemetry's conventions for gRPC classify as errors of the server."""


@dataclass(frozen=True, slots=True)
class RpcTransport:
    """What all calls of the gRPC server share."""

    admission: Admission
    requests: AwaitedRequests
    idle: IdleStreams
    readers: SlowReaders
    verifies_clients: bool
    """Whether connections carry client certificates."""


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """One RPC of a service."""

    service: str
    name: str
    request: type[Message]
    max_bytes: int | None
    """Maximum size of a request; ``None`` = the handler receives bytes."""
    handle: Callable[[Any, Any], Awaitable[Any]]
    """Called with the request, or an iterator of requests, and the ``RpcCall``."""
    cached: Callable[[bytes], bytes | None] | None
    """Returns the cached answer to a serialised request, if there is one."""
    endpoint: Endpoint
    transport: RpcTransport
    client_streaming: bool
    may_idle: bool
    """Whether a client that streams may send nothing for long."""

    def decode(self, wire: bytes) -> Any:
        """Return what the handler receives for the bytes of a request.

        Raises:
            InvalidRequest: The bytes are too many, or not a message of the method's type.
        """
        if self.max_bytes is None:
            return wire
        require_size(wire, "(request)", self.max_bytes)
        return parse(self.request, wire)


class RpcCall(CallScope):
    """A unary call.

    It reads its request itself, after it was admitted: gRPC would hold the calls of clients that never send one, and
    what has arrived of their requests, before this process learns of them.
    """

    transport = "grpc"
    log: ClassVar[Any] = structlog.get_logger("registry_server.rpc")
    result = "OK"
    cancelled_result = "CANCELLED"  # the client left, or its deadline passed

    request: bytes = b""
    """The serialised request of a unary call."""
    ended_by_drain = False
    """Whether it ended because the server drains, which is no failure of the call."""

    def __init__(self, method: RpcMethod, requests: Any, context: Context) -> None:
        """Create the scope of a call; ``requests`` is an iterator of serialised messages."""
        super().__init__(method.transport.admission, method.endpoint)
        self.method, self.requests, self.context = method, requests, context

    # Reading the call.

    def header(self, name: str) -> str | None:
        """Return the first text value of a metadata key."""
        metadata: Any = self.context.invocation_metadata()
        value = next((value for key, value in metadata or () if key == name), None)
        return value if isinstance(value, str) else None

    @property
    def peer(self) -> str:
        """Address of the client in gRPC's form."""
        return self.context.peer()

    def address(self) -> str:
        """Return the address of the client without its port."""
        return _address(self.context.peer())

    def credentials(self) -> Credentials:
        """Return the credentials in the metadata and on the connection."""
        values = {"authorization": "", "x-api-key": ""}
        for key, value in self.context.invocation_metadata() or ():
            if key in values:
                if values[key]:
                    raise Unauthenticated("send one credential, not two")
                values[key] = value if isinstance(value, str) else value.decode("ascii", "replace")
        certificate = _certificate_names(self.context) if self.method.transport.verifies_clients else ()
        return Credentials(values["authorization"], values["x-api-key"], certificate)

    def wait_seconds(self) -> float:
        """Return the time left until the deadline of the call."""
        remaining: float | None = self.context.time_remaining()  # None without a deadline, which the stubs omit
        return MAX_WAIT_SECONDS if remaining is None else remaining

    # Handling the call.

    def _request_bytes(self) -> int:
        return 0  # counted when it has arrived

    def _begin(self) -> None:
        if self.admission.logs_all:
            self.context.set_trailing_metadata(((REQUEST_ID_HEADER, self.request_id),))

    async def _receive(self) -> bytes:
        """Read the request.

        Raises:
            InvalidRequest: The client ended the call without one.
            Overloaded: Too many bytes are in flight.
        """
        awaited = self.method.transport.requests
        self.waiting = asyncio.current_task()
        awaited.started(self)
        try:
            wire: Any = await self.context.read()
            if wire is grpc.aio.EOF:
                await asyncio.sleep(_CANCELLATION_SECONDS)
        finally:
            awaited.finished(self)
            self.waiting = None
        if wire is grpc.aio.EOF:
            raise InvalidRequest([Violation("(request)", "is missing: the call ended without a message")])
        if self.slot is not None and len(wire) > SMALL_REQUEST_BYTES:
            self.slot.hold_bytes(len(wire))
        received: bytes = wire
        return received

    async def _handle(self) -> bytes:
        method, wire = self.method, await self._receive()
        self.request = wire
        answer = method.cached(wire) if method.cached is not None else None
        if answer is None:
            REQUEST_CONTEXT.set(self)  # each call runs in its own task, so the variable needs no reset
            answer = serialized(await method.handle(method.decode(wire), self))
        self._release_after_read(answer)
        return answer

    def _release_after_read(self, answer: bytes) -> None:
        """Keep the place of the call until its client has read the answer or left.

        gRPC holds an answer for that long, even if the call is cancelled.

        Raises:
            Overloaded: A limit is reached.
        """
        if (slot := self.slot) is None:
            places = self.admission.guard.places(self.caller_key, self.endpoint.permission)
            slot = self.slot = CallSlot(places.in_flight, self.caller_key)
        if len(answer) > _MAX_UNCOUNTED_ANSWER_BYTES:
            slot.hold_bytes(len(answer))
        self.slot = None
        current_call().add_done_callback(lambda _: slot.release())

    async def _fail(self, error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):  # the handler has ended it
            raise error
        REQUEST_CONTEXT.set(self)
        status = status_of(error)
        self.result = code_of(status).name
        if isinstance(error, ShuttingDown):
            self.ended_by_drain = True
            self.admission.counters.ended_by_drain[self.method.name] += 1
        request_id = (REQUEST_ID_HEADER, self.request_id)
        trailers: tuple[tuple[str, str | bytes], ...] = (*trailers_of(status), request_id)
        # ``abort`` sends the status alone. Otherwise gRPC sends an empty message first, which waits until the client
        # allows it, and so would the call.
        try:
            await self.context.abort(code_of(status), status.message, trailers)
        except grpc.aio.AbortError as aborted:
            # gRPC keeps this exception, and raises it again. Its frames refer to this call and its request: only the
            # garbage collector would free such a cycle, after thousands of calls.
            aborted.__traceback__ = aborted.__context__ = None

    # Reporting the call.

    def _failure_level(self) -> int:
        if self.result in _NO_ERROR or self.ended_by_drain:
            return 0
        return logging.WARNING if self.result in _SERVER_ERRORS else logging.INFO

    def _result_fields(self) -> dict[str, Any]:
        return {"method": self.method.name, "code": self.result}

    def _span_start(self) -> tuple[str, Attributes]:
        service, name = self.method.service, self.method.name
        return f"{service}/{name}", {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

    def _span_end(self) -> tuple[Attributes, bool]:
        return {"rpc.grpc.status_code": grpc.StatusCode[self.result].value[0]}, self.result in _FAILED_SPANS


def current_call() -> "asyncio.Task[Any]":
    """Return the task of the current call, which runs the handler and sends its answer."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("not inside a call")
    return task


class RpcStream(RpcCall):
    """A streaming call. Its handler writes the messages: generators would add several hops to each message."""

    timed = False
    has_received = False
    """Whether a client that streams has sent a message."""
    waited_seconds = 0.0
    """How long it waited for the newest of them."""
    _end_unread: Callable[[RegistryError], object] | None = None

    async def _handle(self) -> None:  # type: ignore[override]  # the handler has sent the answers
        if not self.method.client_streaming:
            await self.method.handle(self.method.decode(await self._receive()), self)
            return
        self.on_revoked(super().refuse)
        await self.method.handle(self, self)

    def __aiter__(self) -> Self:
        """Iterate over the messages that the client streams."""
        return self

    async def __anext__(self) -> Message:
        """Return the next message.

        Raises:
            ShuttingDown: The server is shutting down and no message is pending.
            LimitExceeded: No message has arrived in time.
            RateLimited: The caller sent too many messages.
            RegistryError: The session has ended.
        """
        session, guard, transport = self.session, self.admission.guard, self.method.transport
        if session is None:
            raise RuntimeError("the endpoint declares no kind of stream")
        if session.ended.done():
            raise session.ended.result()
        awaited: IdleStreams | AwaitedRequests = transport.idle if self.method.may_idle else transport.requests
        self.waiting = asyncio.current_task()
        started = time.monotonic()
        awaited.started(self)
        try:
            # In the task of the call: another one for each message, and a timer, would take 50 µs. Not by gRPC's
            # iterator: it is in a reference cycle with the last message, of up to 4 MiB.
            wire: Any = await self.context.read()
        finally:
            awaited.finished(self)
            self.waiting = None
        self.waited_seconds = time.monotonic() - started
        if wire is grpc.aio.EOF:
            raise StopAsyncIteration
        self.has_received = True
        request: Message = self.method.decode(wire)
        if session.ended.done():
            raise session.ended.result()
        current_identity.set(session.identity)  # a reloaded policy may have changed its patterns
        guard.charge(session.identity, self.caller_key)
        return request

    async def run_until_revoked(self, work: Awaitable[None]) -> None:
        """Run work that only waits, and cancel it when the caller is no longer authorised."""
        self.waiting = current_call()
        self.on_revoked(self.refuse)
        try:
            await work
        finally:
            self.waiting = None

    def refuse(self, reason: RegistryError) -> None:
        """End the stream with an error."""
        if self.session is not None and self.method.client_streaming:
            self.session.end(reason)
        else:
            super().refuse(reason)

    def on_unread(self, end: Callable[[RegistryError], object]) -> None:
        """Call a function with the reason if the client does not read a message within the write timeout.

        It releases what waits to be sent. The client receives the reason if it reads on.
        """
        self._end_unread = end

    async def write(self, message: Message | bytes) -> None:
        """Send a message once the client has read those before it.

        Raises:
            CancelledError: The client has left.
        """
        context: Any = self.context  # whose responses are serialised by gRPC
        readers = None if self._end_unread is None else self.method.transport.readers
        if readers is not None:
            readers.write_started(self)
        try:
            await context.write(message)
        except grpc.aio.InternalError as error:
            # A write may fail just before gRPC reports that the connection is lost, and cancels the call.
            raise asyncio.CancelledError from error
        finally:
            if readers is not None:
                readers.write_finished(self)

    def end_unread(self, seconds: float) -> None:
        """Release what waits to be sent: the client has not read a message within this time."""
        if self._end_unread is not None:
            self._end_unread(WatcherTooSlow(f"a message was not read within {seconds:g} s (grpc.write_timeout_ms)"))


@lru_cache(_MAX_CACHED_ADDRESSES)
def _address(peer: str) -> str:
    """Return the address in ``ipv4:1.2.3.4:5`` or ``ipv6:%5B::1%5D:5`` without its port, in the same form as for HTTP.

    All clients of a unix socket have the same address.
    """
    kind, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]).strip("[]") if kind in {"ipv4", "ipv6"} else kind


def _certificate_names(context: Context) -> CertificateNames:
    """Return the names in the connection's certificate, which gRPC has verified."""
    properties = context.auth_context()
    return tuple(
        (kind, name.decode("utf-8", "replace"))
        for key, kind in _CERTIFICATE_NAMES.items()
        for name in properties.get(key, ())
    )
