"""``UnaryCalls``: every unary RPC as a method."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, Unpack

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service, ServiceFilter
from ossa_common.json_values import struct_of
from registry_client import values
from registry_client.calls import Caller, Session
from registry_client.errors import DeadlineExceeded, RegistryError, RegistryUnavailable, error_from_status
from registry_client.explanations import ExplanationCalls

_REVISION_WAIT_SECONDS: Final = 1.0
"""How long a read waits for the session's revision before it checks whether the store was replaced."""
_MAX_PAGE_SIZE: Final = 1_000

_Response = TypeVar("_Response", bound=Message)
_Seen = TypeVar("_Seen", Service, pb.DiscoverServicesResponse)


class UnaryCalls(ExplanationCalls):
    """One method for each unary RPC; every ``timeout`` is in seconds, for a call with all its attempts."""

    def __init__(self, caller: Caller, session: Session) -> None:
        super().__init__(caller)
        self._timeout = caller.timeout
        self._session = session

    @property
    def revision(self) -> int:
        """Highest revision that this client has seen; 0 if none."""
        return self._session.revision

    # Writes.

    async def register_service(
        self, service: Service, *, create_only: bool = False, timeout: float | None = None
    ) -> Service:
        """Register a service, or replace the content of an existing one, and renew its lease.

        ``registration`` also keeps the lease alive.

        Returns:
            The service as it is registered now.

        Raises:
            InvalidRequest: The service violates the contract.
            ServiceExists: ``create_only`` is set and the name is registered already.
        """
        request = pb.RegisterServiceRequest(service=service, create_only=create_only)
        return self._observe((await self._call(request, pb.RegisterServiceResponse, timeout)).service)

    async def batch_register_services(
        self, services: Iterable[Service], *, timeout: float | None = None
    ) -> list[Service | RegistryError]:
        """Register 1 to 500 services, each independently of the others.

        Returns:
            One result for each service, in order: the service as it is registered now, or its error.
        """
        request = pb.BatchRegisterServicesRequest(services=services)
        response = await self._call(request, pb.BatchRegisterServicesResponse, timeout)
        return [
            self._observe(result.service) if result.HasField("service") else error_from_status(result.status)
            for result in response.results
        ]

    async def update_service(
        self,
        service: Service,
        update_mask: Sequence[str] = (),
        *,
        expected_revision: int = 0,
        timeout: float | None = None,
    ) -> Service:
        """Change some fields of a service.

        Args:
            service: The ``name`` of the service to change, and the new values.
            update_mask: Paths to change, such as ``metadata.tags``; ``*`` = all, empty = the fields that are set.
            expected_revision: Change the service only at this revision; 0 = any.
            timeout: Seconds for the call.

        Raises:
            InvalidRequest: The mask or the resulting service violates the contract.
            ServiceNotFound: The service is not registered.
            RevisionMismatch: The service is at another revision.
        """
        request = pb.UpdateServiceRequest(
            service=service, update_mask=FieldMask(paths=update_mask), expected_revision=expected_revision
        )
        return self._observe((await self._call(request, pb.UpdateServiceResponse, timeout)).service)

    async def unregister_service(
        self, name: str, *, expected_revision: int = 0, instance_id: str = "", timeout: float | None = None
    ) -> Service:
        """Unregister a service.

        Args:
            name: Name of the service.
            expected_revision: Remove the service only at this revision; 0 = any.
            instance_id: Remove the service only if this is its ``instance_id``; empty = any.
            timeout: Seconds for the call.

        Returns:
            The last state of the service.

        Raises:
            ServiceNotFound: The service is not registered; also if the response to a successful first attempt was lost.
            RevisionMismatch: The service is not at ``expected_revision``.
            InstanceSuperseded: The service belongs to another instance.
        """
        request = pb.UnregisterServiceRequest(name=name, expected_revision=expected_revision, instance_id=instance_id)
        return self._observe((await self._call(request, pb.UnregisterServiceResponse, timeout)).service)

    async def heartbeat(
        self, names: Iterable[str] = (), *, leases: Iterable[pb.Lease] = (), timeout: float | None = None
    ) -> pb.HeartbeatResponse:
        """Renew the leases of 1 to 10,000 services, by name or on behalf of an instance.

        Returns:
            The number of renewed leases; ``unknown_names``: services that must be registered again; and
            ``superseded_names``: services that belong to another instance than the one in ``leases``.
        """
        return await self._call(pb.HeartbeatRequest(names=names, leases=leases), pb.HeartbeatResponse, timeout)

    async def cleanup(self, *, timeout: float | None = None) -> list[str]:
        """Remove services with an expired lease now, instead of at the next sweep; return their names."""
        return list((await self._call(pb.CleanupRequest(), pb.CleanupResponse, timeout)).names)

    # Health.

    async def get_service_health(self, name: str, *, timeout: float | None = None) -> tuple[Health, Timestamp | None]:
        """Read the current health of a service.

        Returns:
            The health, and the expiry time of the lease. The time is ``None`` for a permanent service, and while the
            store is unavailable.

        Raises:
            ServiceNotFound: The service is not registered.
        """
        response = await self.get_service_health_details(name, timeout=timeout)
        return response.health, response.lease_expires_at if response.HasField("lease_expires_at") else None

    async def get_service_health_details(
        self, name: str, *, timeout: float | None = None
    ) -> pb.GetServiceHealthResponse:
        """Read the current health of a service with the observed health during maintenance, and with the owner.

        Raises:
            ServiceNotFound: The service is not registered.
        """
        return await self._call(pb.GetServiceHealthRequest(name=name), pb.GetServiceHealthResponse, timeout)

    async def report_service_health(
        self,
        name: str,
        status: HealthStatus.ValueType | str = HealthStatus.HEALTH_STATUS_UNSPECIFIED,
        *,
        error: str = "",
        details: Mapping[str, Any] | None = None,
        draining: bool | None = None,
        instance_id: str = "",
        timeout: float | None = None,
    ) -> Health:
        """Report the status of a service, such as ``"degraded"``; return its recorded health.

        Args:
            name: Name of the service.
            status: New status. ``maintenance`` remains until another status is reported. May be omitted if
                ``draining`` is set.
            error: Why the service is not healthy.
            details: Additional information; values must be representable in JSON, integers also as 64-bit floats.
            draining: Whether the agent finishes its work and will leave; unset = as before.
            instance_id: Record the report only if this is the ``instance_id`` of the service; empty = any.
            timeout: Seconds for the call.

        Raises:
            InvalidRequest: The report violates the contract.
            ServiceNotFound: The service is not registered.
            InstanceSuperseded: The service belongs to another instance.
            ValueError: A value of ``details`` cannot be represented.
        """
        request = pb.ReportServiceHealthRequest(
            name=name,
            status=values.enum_value(HealthStatus, status, "status"),
            error=error,
            draining=draining,
            instance_id=instance_id,
        )
        if details is not None:
            request.details.CopyFrom(struct_of(dict(details), "details"))
        return (await self._call(request, pb.ReportServiceHealthResponse, timeout)).health

    async def check_service_health(self, name: str, *, timeout: float | None = None) -> Health:
        """Probe a service now; return its health after the probe.

        Raises:
            ServiceNotFound: The service is not registered.
            ProbingDisabled: This server does not probe services.
        """
        request = pb.CheckServiceHealthRequest(name=name)
        return (await self._call(request, pb.CheckServiceHealthResponse, timeout)).health

    async def set_maintenance(
        self, name: str, *, enabled: bool, reason: str = "", timeout: float | None = None
    ) -> Service:
        """Start or end the maintenance of a service; return the service afterwards. Only operators may do so.

        Args:
            name: Name of the service.
            enabled: True starts the maintenance, or changes its reason; false ends it.
            reason: Reason for other operators and for agents.
            timeout: Seconds for the call.

        Raises:
            InvalidRequest: The reason is too long, or set although the maintenance ends.
            ServiceNotFound: The service is not registered.
            PermissionDenied: The caller is not an operator.
        """
        request = pb.SetMaintenanceRequest(name=name, enabled=enabled, reason=reason)
        return self._observe((await self._call(request, pb.SetMaintenanceResponse, timeout)).service)

    # Reads.

    async def get_service(self, name: str, *, min_revision: int | None = None, timeout: float | None = None) -> Service:
        """Read one service.

        Args:
            name: Name of the service.
            min_revision: Wait until the registry process holds this revision; unset = the revision of the session.
            timeout: Seconds for the call.

        Raises:
            ServiceNotFound: The service is not registered.
            DeadlineExceeded: The revision was not reached, or no response arrived, in time.
        """
        request = pb.GetServiceRequest(name=name)
        response = await self._read_at_revision(request, pb.GetServiceResponse, min_revision, timeout)
        return self._observe(response.service)

    async def discover_services(
        self,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        page_size: int = 0,
        page_token: str = "",
        min_revision: int | None = None,
        consistency: pb.Consistency.ValueType | str = pb.Consistency.CONSISTENCY_UNSPECIFIED,
        timeout: float | None = None,
        **fields: Unpack[values.FilterFields],
    ) -> pb.DiscoverServicesResponse:
        """Return one page of the matching services, ordered by name; ``find_services`` returns all.

        Args:
            filter: The services to return; unset = all.
            page_size: Maximum number of services, up to 1,000; 0 = 100.
            page_token: ``next_page_token`` of the previous page, with the same filter.
            min_revision: Wait until the registry process holds this revision; unset = the revision of the session.
            consistency: ``"strong"`` waits until all writes are visible that were committed before the call arrived.
            timeout: Seconds for the call.
            **fields: Fields of the filter, such as ``capability="summarize"``.

        Raises:
            InvalidRequest: The filter, page size or token violates the contract.
            DeadlineExceeded: The revision was not reached, or no response arrived, in time.
        """
        request = pb.DiscoverServicesRequest(
            filter=values.make_filter(filter, fields),
            page_size=page_size,
            page_token=page_token,
            consistency=values.enum_value(pb.Consistency, consistency, "consistency"),
        )
        return self._observe(await self._read_at_revision(request, pb.DiscoverServicesResponse, min_revision, timeout))

    async def find_services(
        self,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        consistency: pb.Consistency.ValueType | str = pb.Consistency.CONSISTENCY_UNSPECIFIED,
        timeout: float | None = None,
        **fields: Unpack[values.FilterFields],
    ) -> list[Service]:
        """Return all matching services, ordered by name, from as many pages as needed.

        The arguments are those of ``discover_services``; ``timeout`` applies to each page.
        """
        merged_filter = values.make_filter(filter, fields)
        found: list[Service] = []
        token = ""
        while True:
            page = await self.discover_services(
                merged_filter, page_size=_MAX_PAGE_SIZE, page_token=token, consistency=consistency, timeout=timeout
            )
            found += page.services
            token = page.next_page_token
            if not token:
                return found

    async def list_capabilities(self, *, timeout: float | None = None) -> list[pb.CapabilitySummary]:
        """List the distinct capabilities of all services, ordered by name; ``timeout`` applies to each page."""
        found: list[pb.CapabilitySummary] = []
        request = pb.ListCapabilitiesRequest(page_size=_MAX_PAGE_SIZE)
        while True:
            page = await self._call(request, pb.ListCapabilitiesResponse, timeout)
            found += page.capabilities
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def get_stats(self, *, timeout: float | None = None) -> pb.RegistryStats:
        """Return counts of services, capabilities, versions and tags."""
        return (await self._call(pb.GetStatsRequest(), pb.GetStatsResponse, timeout)).stats

    async def get_registry_health(self, *, timeout: float | None = None) -> pb.GetRegistryHealthResponse:
        """Return the health of the registry itself."""
        return await self._call(pb.GetRegistryHealthRequest(), pb.GetRegistryHealthResponse, timeout)

    def _observe(self, seen: _Seen) -> _Seen:
        """Record the revision of a service or of a page in the session."""
        self._session.observe_revision(seen.revision)
        return seen

    async def _read_at_revision(
        self,
        request: pb.GetServiceRequest | pb.DiscoverServicesRequest,
        response: type[_Response],
        min_revision: int | None,
        timeout: float | None,
    ) -> _Response:
        """Read at ``min_revision`` or, if it is unset, at the revision of the session."""
        if min_revision is not None or not self._session.revision:
            request.min_revision = min_revision or 0
            return await self._call(request, response, timeout)
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while True:
            remaining = deadline - time.monotonic()
            request.min_revision = self._session.revision
            try:
                return await self._call(request, response, min(_REVISION_WAIT_SECONDS, remaining))
            except RegistryUnavailable:
                if remaining <= _REVISION_WAIT_SECONDS:
                    raise
            except DeadlineExceeded:
                if remaining <= _REVISION_WAIT_SECONDS:
                    raise
                await self._reset_replaced_session()

    async def _reset_replaced_session(self) -> None:
        """Lower the session's revision if the registry can never reach it.

        A process that is connected to its store, has no replication lag and is still below the revision follows a
        store that was replaced.
        """
        with suppress(RegistryError):  # the next read of the caller raises the same error
            health = await self.get_registry_health(timeout=_REVISION_WAIT_SECONDS)
            if health.store_connected and not health.replication_lag.ToNanoseconds():
                self._session.reset_revision(health.revision)
