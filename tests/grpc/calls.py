"""Helpers of the gRPC tests: calls, decoded errors and watches."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service, ServiceFilter
from tests.support.redis_process import RedisProcess
from tests.support.server import Server

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED
UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
UNSPECIFIED = HealthStatus.HEALTH_STATUS_UNSPECIFIED

REGISTERED = EventType.EVENT_TYPE_SERVICE_REGISTERED
UPDATED = EventType.EVENT_TYPE_SERVICE_UPDATED
UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UNREGISTERED
HEALTH_CHANGED = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
SNAPSHOT = EventType.EVENT_TYPE_SERVICE_SNAPSHOT
UNMATCHED = EventType.EVENT_TYPE_SERVICE_UNMATCHED

TIMEOUT = 20.0
"""Time limit of waits in seconds, long enough for a busy machine."""


# Calls.


async def register(server: Server, service: Service, *, create_only: bool = False) -> Service:
    request = pb.RegisterServiceRequest(service=service, create_only=create_only)
    return (await server.stub.RegisterService(request)).service


async def register_all(server: Server, services: Iterable[Service]) -> list[Service]:
    """Register any number of services in batches; fail unless all succeed."""
    registered: list[Service] = []
    waiting = list(services)
    while waiting:
        batch, waiting = waiting[:500], waiting[500:]
        answer = await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=batch))
        assert [result.status for result in answer.results if result.HasField("status")] == []
        registered += [result.service for result in answer.results]
    return registered


async def update(server: Server, service: Service, *paths: str, expected_revision: int = 0) -> Service:
    request = pb.UpdateServiceRequest(
        service=service, update_mask=FieldMask(paths=paths), expected_revision=expected_revision
    )
    return (await server.stub.UpdateService(request)).service


async def unregister(server: Server, name: str, *, expected_revision: int = 0) -> Service:
    request = pb.UnregisterServiceRequest(name=name, expected_revision=expected_revision)
    return (await server.stub.UnregisterService(request)).service


async def get(server: Server, name: str, *, min_revision: int = 0) -> Service:
    return (await server.stub.GetService(pb.GetServiceRequest(name=name, min_revision=min_revision))).service


async def discover(server: Server, **fields: Any) -> pb.DiscoverServicesResponse:
    return await server.stub.DiscoverServices(pb.DiscoverServicesRequest(**fields))


async def find_names(server: Server, filter_: ServiceFilter) -> list[str]:
    """Return the names of all matching services, read page by page."""
    names: list[str] = []
    token = ""
    while True:
        page = await discover(server, filter=filter_, page_size=1000, page_token=token)
        names += [service.name for service in page.services]
        token = page.next_page_token
        if not token:
            return names


async def report(server: Server, name: str, status: HealthStatus.ValueType, **fields: Any) -> Health:
    request = pb.ReportServiceHealthRequest(name=name, status=status, **fields)
    return (await server.stub.ReportServiceHealth(request)).health


async def health_of(server: Server, name: str) -> pb.GetServiceHealthResponse:
    return await server.stub.GetServiceHealth(pb.GetServiceHealthRequest(name=name))


async def heartbeat(server: Server, *names: str) -> pb.HeartbeatResponse:
    return await server.stub.Heartbeat(pb.HeartbeatRequest(names=names))


# Errors.


class Failure(NamedTuple):
    """A decoded error of a call."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    """Paths of the bad fields, from ``BadRequest``."""
    message: str


async def failure(call: Awaitable[object]) -> Failure:
    """Await a call, fail unless it fails, and return its error. Checks the format that all errors share."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return failure_of(raised.value)


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert status.code == error.code().value[0], "code and details disagree"
    assert status.message == error.details(), "message and details disagree"
    return failure_in(status)


def failure_in(status: Status) -> Failure:
    """Return the error in a status of a response."""
    info, bad = ErrorInfo(), BadRequest()
    assert status.details[0].Unpack(info), "ErrorInfo is missing"
    assert info.domain == "registry.ossa"
    for detail in status.details:
        detail.Unpack(bad)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        assert bad.field_violations, "no field is reported"
    fields = [violation.field for violation in bad.field_violations]
    return Failure(code, info.reason, dict(info.metadata), fields, status.message)


# Watches.


class Watch:
    """One stream of ``WatchEvents``. Reading checks that every message has a cursor and that revisions increase.

    Revisions may decrease only with a resync, which starts another epoch.
    """

    def __init__(self, call: "grpc.aio.UnaryStreamCall[pb.WatchEventsRequest, pb.WatchEventsResponse]") -> None:
        self.call = call
        self.messages: list[pb.WatchEventsResponse] = []

    @property
    def cursor(self) -> str:
        """Return the cursor of the newest message."""
        return self.messages[-1].cursor

    async def message(self) -> pb.WatchEventsResponse:
        """Read the next message; fail if none arrives."""
        async with asyncio.timeout(TIMEOUT):
            message = await self.call.read()
        assert isinstance(message, pb.WatchEventsResponse), "the stream ended without an error"
        assert message.cursor
        resync = any(event.reason == EventReason.EVENT_REASON_RESYNC for event in message.events)
        previous = self.messages[-1].revision if self.messages and not resync else 0
        assert message.revision >= previous
        for event in message.events:
            assert event.revision <= message.revision
            assert resync or event.type == SNAPSHOT or event.revision > previous, (
                "the previous cursor is past this event"
            )
        self.messages.append(message)
        return message

    async def events(self, count: int = 1) -> list[Event]:
        """Read ``count`` events; fail if the last message contains more."""
        events: list[Event] = []
        while len(events) < count:
            events += (await self.message()).events
        assert len(events) == count
        return events

    async def event(self) -> Event:
        """Read the next event, which must be the only one of its message."""
        return (await self.events())[0]

    async def until(self, revision: int) -> list[Event]:
        """Read until the stream has reached a revision and return the events."""
        events: list[Event] = []
        while not self.messages or self.messages[-1].revision < revision:
            events += (await self.message()).events
        return events

    async def snapshot(self) -> list[Event]:
        """Read until the snapshot is complete and return its events."""
        events: list[Event] = []
        while True:
            message = await self.message()
            events += message.events
            if message.snapshot_complete:
                assert not message.events
                return events

    async def failure(self) -> Failure:
        """Read until the stream fails and return the error; earlier messages are in ``messages``."""
        while True:
            try:
                await self.message()
            except grpc.aio.AioRpcError as error:
                return failure_of(error)


@asynccontextmanager
async def watching(server: Server, **fields: Any) -> AsyncIterator[Watch]:
    """Open a watch and read its first message, unless it contains a snapshot or missed events."""
    async with open_watch(server.stub, **fields) as watch:
        if not fields.get("include_snapshot") and not fields.get("cursor"):
            assert not (await watch.message()).events
        yield watch


@asynccontextmanager
async def open_watch(stub: "RegistryServiceAsyncStub", **fields: Any) -> AsyncIterator[Watch]:
    """Open a watch without reading from it."""
    call = stub.WatchEvents(pb.WatchEventsRequest(**fields))
    try:
        yield Watch(call)
    finally:
        call.cancel()


def kind_and_name(event: Event) -> tuple[str, str]:
    """Return the type and service name of an event."""
    return EventType.Name(event.type).removeprefix("EVENT_TYPE_SERVICE_"), event.service.name


# Redis and time.


@asynccontextmanager
async def redis_client(redis: RedisProcess) -> AsyncIterator["Redis"]:
    """Open a client of the store, to inspect data and to shorten leases."""
    client = Redis.from_url(redis.url)
    try:
        yield client
    finally:
        await client.aclose()


async def set_remaining_lease(client: Redis, name: str, seconds_left: float) -> None:
    """Set the end of a lease to ``seconds_left`` seconds from now; a negative number expires it."""
    seconds, microseconds = await client.time()
    deadline = seconds * 1000 + microseconds // 1000 + round(seconds_left * 1000)
    await client.zadd("ossa:registry:leases", {name: deadline}, xx=True)
    await client.pexpireat(f"ossa:services:{name}", deadline)


@asynccontextmanager
async def disconnectable_followers(redis: RedisProcess) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Yield a function that makes all servers but the first fall behind, by about 30 ms for each call.

    It closes the connections over which the servers read events.
    """
    async with redis_client(redis) as client:

        async def followers() -> set[str]:
            return {str(each["id"]) for each in await client.client_list() if each["cmd"] == "xread"}

        first = min(await followers(), key=int)  # ids increase

        async def disconnect() -> None:
            for connection in await followers() - {first}:
                await client.client_kill_filter(_id=connection)

        yield disconnect


async def eventually(holds: Callable[[], Awaitable[bool]], condition: str) -> None:
    """Wait until an asynchronous condition holds."""
    try:
        async with asyncio.timeout(TIMEOUT):
            while not await holds():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"condition not met within {TIMEOUT} s: {condition}")
