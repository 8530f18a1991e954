"""The RPCs of ``RegistryService``: decode, call, encode."""

# ruff: noqa: D102 - the proto documents each RPC

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Service
from registry_server.catalog import Hit
from registry_server.errors import InvalidRequest, RegistryError
from registry_server.model.requests import MAX_BATCH_SIZE
from registry_server.model.wire import bytes_field, split_repeated
from registry_server.registry import ServiceRegistry
from registry_server.rpc.calls import RpcCall, RpcStream
from registry_server.rpc.codec import MAX_REQUEST_BYTES, not_a_message, parse, require_size
from registry_server.rpc.methods import Declaration, declarations, rpc
from registry_server.rpc.status import status_of
from registry_server.security.identity import Identity, current_identity
from registry_server.security.permissions import OPERATE, READ, WRITE_OWN

SERVICE: Final = pb.DESCRIPTOR.services_by_name["RegistryService"]
_MAX_NAMES_BYTES: Final = 2 << 20
"""Limit of a request of 10,000 leases, each with a name of 128 and an instance id of 64 characters."""
_QUIET_SECONDS: Final = 0.5
"""Without a message for this long, a client does not wait for an answer in order to send the next message."""
_SERVICES: Final = pb.BatchRegisterServicesRequest.DESCRIPTOR.fields_by_name["services"].number
_RESULTS: Final = pb.BatchRegisterServicesResponse.DESCRIPTOR.fields_by_name["results"].number
_SEARCH_RESULTS: Final = pb.SearchServicesResponse.DESCRIPTOR.fields_by_name["results"].number


class _Services(Sequence[Service | RegistryError]):
    """The services of a ``BatchRegisterServicesRequest``; each is parsed when it is read."""

    def __init__(self, wire: bytes) -> None:
        try:
            self._wires = split_repeated(wire, _SERVICES, MAX_BATCH_SIZE)
        except ValueError:
            raise not_a_message(pb.BatchRegisterServicesRequest) from None

    def __len__(self) -> int:
        return len(self._wires)

    def __getitem__(self, index: int) -> Service | RegistryError:  # type: ignore[override]  # no slices
        wire = self._wires[index]
        try:
            require_size(wire, f"services[{index}]", MAX_REQUEST_BYTES)
        except InvalidRequest as error:
            return error
        return parse(Service, wire)


class RegistryRpc:
    """One method for each RPC, with the same name in snake case.

    A method receives the request, or an iterator of requests, and the call. The most frequent RPCs return bytes, and
    run only if there is no cached answer for the request's bytes.
    """

    def __init__(self, registry: ServiceRegistry) -> None:
        self._registry = registry

    @rpc(WRITE_OWN)
    async def register_service(self, request: pb.RegisterServiceRequest, _: RpcCall) -> bytes:
        service = await self._registry.register(request.service, create_only=request.create_only)
        return self._registry.frame_service(service)

    @rpc(WRITE_OWN, max_bytes=None)
    async def batch_register_services(self, wire: bytes, _: RpcCall) -> bytes:
        frames: list[bytes] = []

        def encode_all(results: Sequence[Service | RegistryError]) -> Iterator[None]:
            for result in results:
                if isinstance(result, RegistryError):
                    encoded = pb.BatchRegisterResult(status=status_of(result)).SerializeToString()
                else:
                    encoded = self._registry.frame_service(result)
                frames.append(bytes_field(_RESULTS, encoded))
                yield

        await self._registry.slices.run(encode_all(await self._registry.register_batch(_Services(wire))))
        return b"".join(frames)

    def _cached_service(self, wire: bytes) -> bytes | None:
        record = self._registry.cached_service(wire)
        return None if record is None else record.framed

    @rpc(READ, cached=_cached_service)
    async def get_service(self, request: pb.GetServiceRequest, call: RpcCall) -> bytes:
        wait = call.wait_seconds() if request.min_revision else 0
        record = await self._registry.get(request.name, min_revision=request.min_revision, wait_seconds=wait)
        return record.framed

    def _cached_page(self, wire: bytes) -> bytes | None:
        page = self._registry.cached_page(wire)
        return None if page is None else page.wire()

    @rpc(READ, cached=_cached_page)
    async def discover_services(self, request: pb.DiscoverServicesRequest, call: RpcCall) -> bytes:
        page = await self._registry.find_page(request, wire=call.request, wait_seconds=call.wait_seconds())
        return page.wire()

    @rpc(READ)
    async def search_services(self, request: pb.SearchServicesRequest, _: RpcCall) -> bytes:
        found = await self._registry.search(request.query, request.filter, request.limit)
        rest = pb.SearchServicesResponse(total_size=found.total, revision=found.revision, stale=found.stale)
        return b"".join((*map(_search_result, found.hits), rest.SerializeToString()))

    @rpc(READ)
    async def explain_discovery(self, request: pb.ExplainDiscoveryRequest, _: RpcCall) -> pb.ExplainDiscoveryResponse:
        return await self._registry.explain(request.filter, request.name)

    @rpc(READ)
    async def list_events(self, request: pb.ListEventsRequest, _: RpcCall) -> bytes:
        return (await self._registry.list_events(request)).wire()

    @rpc(WRITE_OWN)
    async def update_service(self, request: pb.UpdateServiceRequest, _: RpcCall) -> pb.UpdateServiceResponse:
        service = await self._registry.update_service(
            request.service, request.update_mask, expected_revision=request.expected_revision
        )
        return pb.UpdateServiceResponse(service=service)

    @rpc(WRITE_OWN)
    async def unregister_service(
        self, request: pb.UnregisterServiceRequest, _: RpcCall
    ) -> pb.UnregisterServiceResponse:
        service = await self._registry.unregister(
            request.name, expected_revision=request.expected_revision, instance_id=request.instance_id
        )
        return pb.UnregisterServiceResponse(service=service)

    @rpc(READ)
    async def get_service_health(self, request: pb.GetServiceHealthRequest, _: RpcCall) -> pb.GetServiceHealthResponse:
        health, lease_ends, observed = await self._registry.newest_health(request.name)
        return pb.GetServiceHealthResponse(
            health=health,
            lease_expires_at=lease_ends,
            load=await self._registry.load(request.name),
            observed=observed,
            owner=self._registry.visible_owner(request.name),
        )

    @rpc(WRITE_OWN)
    async def report_service_health(
        self, request: pb.ReportServiceHealthRequest, _: RpcCall
    ) -> pb.ReportServiceHealthResponse:
        health = await self._registry.report_health(
            request.name,
            request.status,
            request.details if request.HasField("details") else None,
            request.error,
            draining=request.draining if request.HasField("draining") else None,
            instance_id=request.instance_id,
        )
        return pb.ReportServiceHealthResponse(health=health)

    @rpc(WRITE_OWN)
    async def check_service_health(
        self, request: pb.CheckServiceHealthRequest, _: RpcCall
    ) -> pb.CheckServiceHealthResponse:
        return pb.CheckServiceHealthResponse(health=await self._registry.check_health(request.name))

    @rpc(OPERATE)
    async def set_maintenance(self, request: pb.SetMaintenanceRequest, _: RpcCall) -> pb.SetMaintenanceResponse:
        service = await self._registry.set_maintenance(request.name, enabled=request.enabled, reason=request.reason)
        return pb.SetMaintenanceResponse(service=service)

    @rpc(WRITE_OWN, max_bytes=_MAX_NAMES_BYTES)
    async def heartbeat(self, request: pb.HeartbeatRequest, _: RpcCall) -> pb.HeartbeatResponse:
        renewed, unknown, superseded = await self._registry.heartbeat(request.names, request.leases)
        return pb.HeartbeatResponse(renewed_count=renewed, unknown_names=unknown, superseded_names=superseded)

    @rpc(WRITE_OWN, streams="keep-alive-streams", max_bytes=_MAX_NAMES_BYTES)
    async def keep_alive(self, requests: AsyncIterator[pb.KeepAliveRequest], call: RpcStream) -> None:
        async for request in requests:
            renewed, unknown, superseded = await self._registry.heartbeat(
                request.names, request.leases, may_wait=call.waited_seconds > _QUIET_SECONDS
            )
            await call.write(
                pb.KeepAliveResponse(renewed_count=renewed, unknown_names=unknown, superseded_names=superseded)
            )

    @rpc(READ, streams="watches")
    async def watch_events(self, request: pb.WatchEventsRequest, call: RpcStream) -> None:
        with await self._registry.watch(request) as watcher:
            end = partial(watcher.end, immediately=True)
            call.on_revoked(end)
            call.on_unread(end)
            async for batch in watcher:
                await call.write(batch.wire)
                del batch  # a quiet stream would hold it until its next event

    @rpc(READ)
    async def list_capabilities(self, request: pb.ListCapabilitiesRequest, _: RpcCall) -> pb.ListCapabilitiesResponse:
        return await self._registry.list_capabilities(request.page_size, request.page_token)

    @rpc(READ)
    async def get_stats(self, _: pb.GetStatsRequest, __: RpcCall) -> pb.GetStatsResponse:
        return pb.GetStatsResponse(stats=await self._registry.visible_stats())

    @rpc(READ)
    async def get_registry_health(self, _: pb.GetRegistryHealthRequest, __: RpcCall) -> pb.GetRegistryHealthResponse:
        health = await self._registry.visible_health()
        health.caller.CopyFrom(_caller(current_identity.get()))
        return health

    @rpc(OPERATE)
    async def cleanup(self, _: pb.CleanupRequest, __: RpcCall) -> pb.CleanupResponse:
        names = await self._registry.cleanup()
        return pb.CleanupResponse(services_removed=len(names), names=names)


def _search_result(hit: Hit) -> bytes:
    """Encode a hit as field ``results`` of ``SearchServicesResponse``; ``SearchResult.service`` is field 1."""
    rest = pb.SearchResult(score=hit.score, load=hit.load, matched_capabilities=hit.capabilities)
    return bytes_field(_SEARCH_RESULTS, hit.record.framed + rest.SerializeToString())


def _caller(identity: Identity) -> pb.Caller:
    caller = pb.Caller(
        identity=identity.name, role=identity.role.word, method=identity.method, patterns=identity.patterns
    )
    if identity.expires is not None:
        caller.expires_at.FromSeconds(int(identity.expires))
    return caller


RPCS: Final[Mapping[str, Declaration]] = declarations(SERVICE, RegistryRpc)
"""RPCs by name; importing this module fails if one is not implemented or requires no permission."""
