"""The RPCs of ``RegistryService``: decode, call, encode."""

# ruff: noqa: D102 - the proto documents each RPC

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.errors import RegistryError
from registry_server.registry import ServiceRegistry
from registry_server.rpc.codec import Context, parse
from registry_server.rpc.drain import Drain
from registry_server.rpc.readers import SlowReaders
from registry_server.rpc.status import status_of
from registry_server.security.guard import Guard, Session
from registry_server.security.identity import current_identity

MAX_WAIT_SECONDS = 30.0
"""How long a call without a deadline waits for a revision."""


class RegistryRpc:
    """One method for each RPC, with the same name.

    The most frequent RPCs take and return bytes, and run only if there is no cached answer for the request's bytes.
    Streaming RPCs write their messages themselves: nested generators would add several hops to each message.
    """

    def __init__(self, registry: ServiceRegistry, drain: Drain, guard: Guard, readers: SlowReaders) -> None:
        self._registry = registry
        self._drain = drain
        self._guard = guard
        self._readers = readers

    async def register_service(self, request: pb.RegisterServiceRequest, _: Context) -> pb.RegisterServiceResponse:
        service = await self._registry.register(request.service, create_only=request.create_only)
        return pb.RegisterServiceResponse(service=service)

    async def batch_register_services(
        self, request: pb.BatchRegisterServicesRequest, _: Context
    ) -> pb.BatchRegisterServicesResponse:
        response = pb.BatchRegisterServicesResponse()
        for result in await self._registry.register_batch(request.services):
            if isinstance(result, RegistryError):
                response.results.add(status=status_of(result))
            else:
                response.results.add(service=result)
        return response

    async def get_service(self, wire: bytes, context: Context) -> bytes:
        request = parse(pb.GetServiceRequest, wire)
        wait = _wait_seconds(context) if request.min_revision else 0
        record = await self._registry.get(request.name, min_revision=request.min_revision, wait_seconds=wait)
        return record.framed

    def cached_service(self, wire: bytes) -> bytes | None:
        record = self._registry.cached_service(wire)
        return None if record is None else record.framed

    async def discover_services(self, wire: bytes, context: Context) -> bytes:
        request = parse(pb.DiscoverServicesRequest, wire)
        page = await self._registry.find_page(request, wire=wire, wait_seconds=_wait_seconds(context))
        return page.wire()

    def cached_page(self, wire: bytes) -> bytes | None:
        page = self._registry.cached_page(wire)
        return None if page is None else page.wire()

    async def update_service(self, request: pb.UpdateServiceRequest, _: Context) -> pb.UpdateServiceResponse:
        service = await self._registry.update_service(
            request.service, request.update_mask, expected_revision=request.expected_revision
        )
        return pb.UpdateServiceResponse(service=service)

    async def unregister_service(
        self, request: pb.UnregisterServiceRequest, _: Context
    ) -> pb.UnregisterServiceResponse:
        service = await self._registry.unregister(request.name, expected_revision=request.expected_revision)
        return pb.UnregisterServiceResponse(service=service)

    async def get_service_health(self, request: pb.GetServiceHealthRequest, _: Context) -> pb.GetServiceHealthResponse:
        health, lease_ends = await self._registry.health(request.name)
        return pb.GetServiceHealthResponse(health=health, lease_expires_at=lease_ends)

    async def report_service_health(
        self, request: pb.ReportServiceHealthRequest, _: Context
    ) -> pb.ReportServiceHealthResponse:
        details = request.details if request.HasField("details") else None
        health = await self._registry.report_health(request.name, request.status, details, request.error)
        return pb.ReportServiceHealthResponse(health=health)

    async def check_service_health(
        self, request: pb.CheckServiceHealthRequest, _: Context
    ) -> pb.CheckServiceHealthResponse:
        return pb.CheckServiceHealthResponse(health=await self._registry.check_health(request.name))

    async def heartbeat(self, request: pb.HeartbeatRequest, _: Context) -> pb.HeartbeatResponse:
        renewed, unknown = await self._registry.heartbeat(request.names)
        return pb.HeartbeatResponse(renewed_count=renewed, unknown_names=unknown)

    async def keep_alive(self, wires: AsyncIterator[bytes], context: Context, session: Session) -> None:
        async with aclosing(
            self._drain.requests_until_drained(wires, session, idle_seconds=self._guard.stream_idle_seconds)
        ) as requests:
            async for wire in requests:
                request = parse(pb.KeepAliveRequest, wire)
                current_identity.set(session.identity)  # a reloaded policy may have changed its patterns
                self._guard.charge(session.identity, session.peer)
                renewed, unknown = await self._registry.heartbeat(request.names)
                answer = pb.KeepAliveResponse(renewed_count=renewed, unknown_names=unknown)
                await self._readers.write_message(answer.SerializeToString(), context)

    async def watch_events(self, wire: bytes, context: Context, session: Session) -> None:
        with await self._registry.watch(parse(pb.WatchEventsRequest, wire)) as watcher:
            session.on_end(partial(watcher.end, immediately=True))
            async for batch in watcher:
                await self._readers.write_message(batch.wire, context)

    async def list_capabilities(self, request: pb.ListCapabilitiesRequest, _: Context) -> pb.ListCapabilitiesResponse:
        return self._registry.list_capabilities(request.page_size, request.page_token)

    async def get_stats(self, _: pb.GetStatsRequest, __: Context) -> pb.GetStatsResponse:
        return pb.GetStatsResponse(stats=self._registry.get_stats())

    async def get_registry_health(self, _: pb.GetRegistryHealthRequest, __: Context) -> pb.GetRegistryHealthResponse:
        return self._registry.registry_health()

    async def cleanup(self, _: pb.CleanupRequest, __: Context) -> pb.CleanupResponse:
        names = await self._registry.cleanup()
        return pb.CleanupResponse(services_removed=len(names), names=names)


def _wait_seconds(context: Context) -> float:
    """Return the time left until the deadline of a call."""
    remaining: float | None = context.time_remaining()  # None without a deadline, which the stubs omit
    return MAX_WAIT_SECONDS if remaining is None else remaining
