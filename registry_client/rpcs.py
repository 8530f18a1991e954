"""The unary RPCs as methods."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, Unpack

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import values
from registry_client.calls import Caller, Session
from registry_client.errors import DeadlineExceeded, RegistryError, RegistryUnavailable, error_of_status
from registry_client.messages import (
    CapabilitySummary,
    Consistency,
    DiscoverServicesResponse,
    GetRegistryHealthResponse,
    Health,
    HealthStatus,
    HeartbeatResponse,
    RegistryStats,
    Service,
    ServiceFilter,
)

_PATIENCE: Final = 1.0
"""Seconds to wait for a remembered revision before asking whether the registry has begun to count anew."""
_LARGEST_PAGE: Final = 1_000

_Response = TypeVar("_Response")


class UnaryCalls:
    """One method for each unary RPC; ``timeout`` is always in seconds, for a call with all its tries."""

    def __init__(self, caller: Caller, session: Session, timeout: float) -> None:
        self._call = caller.call
        self._session = session
        self._timeout = timeout

    @property
    def revision(self) -> int:
        """Highest revision that this client has seen; 0 if none."""
        return self._session.revision

    # Writing.

    async def register_service(
        self, service: Service, *, create_only: bool = False, timeout: float | None = None
    ) -> Service:
        """Registers a service, or takes the new content of one that exists, and renews its lease.

        ``registration`` does this and keeps the lease alive.

        Returns:
            The service as it is registered now.

        Raises:
            InvalidRequest: The service breaks the contract.
            ServiceExists: The name is taken, with ``create_only``.
        """
        request = pb.RegisterServiceRequest(service=service, create_only=create_only)
        answer = await self._call(
            lambda stub: stub.RegisterService, request, timeout=timeout, repeatable=not create_only
        )
        return self._written(answer.service)

    async def batch_register_services(
        self, services: Iterable[Service], *, timeout: float | None = None
    ) -> list[Service | RegistryError]:
        """Registers 1 to 500 services; each stands alone.

        Returns:
            For each service, in order, the service as it is registered now or why it is not.
        """
        request = pb.BatchRegisterServicesRequest(services=services)
        answer = await self._call(lambda stub: stub.BatchRegisterServices, request, timeout=timeout)
        return [
            self._written(result.service) if result.HasField("service") else error_of_status(result.status)
            for result in answer.results
        ]

    async def update_service(
        self,
        service: Service,
        update_mask: Sequence[str] = (),
        *,
        expected_revision: int = 0,
        timeout: float | None = None,
    ) -> Service:
        """Changes some fields of a service.

        Args:
            service: ``name`` says which; the new values are taken from here.
            update_mask: Paths to change, such as ``metadata.tags``; ``*`` = all, none = those that are set.
            expected_revision: Change only if the service is at this revision; 0 = any.
            timeout: Seconds for the call.

        Raises:
            InvalidRequest: The mask, or what would come of it, breaks the contract.
            ServiceNotFound: No such service.
            RevisionMismatch: It is at another revision.
        """
        request = pb.UpdateServiceRequest(
            service=service, update_mask=FieldMask(paths=update_mask), expected_revision=expected_revision
        )
        answer = await self._call(
            lambda stub: stub.UpdateService, request, timeout=timeout, repeatable=not expected_revision
        )
        return self._written(answer.service)

    async def unregister_service(
        self, name: str, *, expected_revision: int = 0, timeout: float | None = None
    ) -> Service:
        """Removes a service.

        Returns:
            Its last state.

        Raises:
            ServiceNotFound: No such service; also if a first try removed it and its answer was lost.
            RevisionMismatch: It is at another revision than ``expected_revision``.
        """
        request = pb.UnregisterServiceRequest(name=name, expected_revision=expected_revision)
        answer = await self._call(
            lambda stub: stub.UnregisterService, request, timeout=timeout, repeatable=not expected_revision
        )
        return self._written(answer.service)

    async def heartbeat(self, names: Iterable[str], *, timeout: float | None = None) -> HeartbeatResponse:
        """Renews the leases of 1 to 10,000 services.

        Returns:
            How many there are, and ``unknown_names``: those that have to be registered again.
        """
        request = pb.HeartbeatRequest(names=names)
        return await self._call(lambda stub: stub.Heartbeat, request, timeout=timeout)

    async def cleanup(self, *, timeout: float | None = None) -> list[str]:
        """Removes services whose lease has ended, now instead of at the next sweep; gives their names."""
        answer = await self._call(lambda stub: stub.Cleanup, pb.CleanupRequest(), timeout=timeout)
        return list(answer.names)

    # Health.

    async def get_service_health(self, name: str, *, timeout: float | None = None) -> tuple[Health, Timestamp | None]:
        """Reads the newest health of a service.

        Returns:
            The health, and the end of its lease (``None``: permanent, or the store is away).

        Raises:
            ServiceNotFound: No such service.
        """
        request = pb.GetServiceHealthRequest(name=name)
        answer = await self._call(lambda stub: stub.GetServiceHealth, request, timeout=timeout)
        return answer.health, answer.lease_expires_at if answer.HasField("lease_expires_at") else None

    async def report_service_health(
        self,
        name: str,
        status: HealthStatus.ValueType | str,
        *,
        error: str = "",
        details: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Health:
        """Reports the status of a service, such as ``"degraded"``; gives its health as it is recorded now.

        Args:
            name: The service.
            status: Its status. ``maintenance`` stays until another one is reported.
            error: Why it is not healthy.
            details: Anything worth telling, as JSON would have it.
            timeout: Seconds for the call.

        Raises:
            InvalidRequest: The report breaks the contract.
            ServiceNotFound: No such service.
        """
        request = pb.ReportServiceHealthRequest(name=name, status=values.status(status), error=error)
        if details is not None:
            request.details.update(details)
        return (await self._call(lambda stub: stub.ReportServiceHealth, request, timeout=timeout)).health

    async def check_service_health(self, name: str, *, timeout: float | None = None) -> Health:
        """Lets the registry probe a service now; gives its health after that.

        Raises:
            ServiceNotFound: No such service.
            ProbingDisabled: This server does not probe.
        """
        request = pb.CheckServiceHealthRequest(name=name)
        return (await self._call(lambda stub: stub.CheckServiceHealth, request, timeout=timeout)).health

    # Reading.

    async def get_service(self, name: str, *, min_revision: int | None = None, timeout: float | None = None) -> Service:
        """Reads one service.

        Args:
            name: The service.
            min_revision: Wait until the process that is asked holds this revision; unset = that of the session.
            timeout: Seconds for the call.

        Raises:
            ServiceNotFound: No such service.
            DeadlineExceeded: The revision did not come in time, or no answer.
        """

        async def read(revision: int, within: float) -> pb.GetServiceResponse:
            request = pb.GetServiceRequest(name=name, min_revision=revision)
            return await self._call(lambda stub: stub.GetService, request, timeout=within)

        service = (await self._read(read, min_revision, timeout)).service
        self._session.saw(service.revision)
        return service

    async def discover_services(
        self,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        page_size: int = 0,
        page_token: str = "",
        min_revision: int | None = None,
        consistency: Consistency.ValueType | str = Consistency.CONSISTENCY_UNSPECIFIED,
        timeout: float | None = None,
        **fields: Unpack[values.FilterFields],
    ) -> DiscoverServicesResponse:
        """Finds services, one page of them, ordered by name; ``find_services`` gives all.

        Args:
            filter: Which services; unset = all.
            page_size: Longest page, up to 1,000; 0 = 100.
            page_token: ``next_page_token`` of the page before, with the same filter.
            min_revision: Wait until the process that is asked holds this revision; unset = that of the session.
            consistency: ``"strong"`` waits for all that was committed when the call arrived.
            timeout: Seconds for the call.
            **fields: Fields of the filter, such as ``capability="summarize"``.

        Raises:
            InvalidRequest: The filter, page size or token breaks the contract.
            DeadlineExceeded: The revision did not come in time, or no answer.
        """
        wanted = values.make_filter(filter, fields)

        async def read(revision: int, within: float) -> DiscoverServicesResponse:
            request = pb.DiscoverServicesRequest(
                filter=wanted,
                page_size=page_size,
                page_token=page_token,
                min_revision=revision,
                consistency=values.consistency(consistency),
            )
            return await self._call(lambda stub: stub.DiscoverServices, request, timeout=within)

        answer = await self._read(read, min_revision, timeout)
        self._session.saw(answer.revision)
        return answer

    async def find_services(
        self,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        consistency: Consistency.ValueType | str = Consistency.CONSISTENCY_UNSPECIFIED,
        timeout: float | None = None,
        **fields: Unpack[values.FilterFields],
    ) -> list[Service]:
        """Finds all services that match, ordered by name, page after page.

        The arguments are those of ``discover_services``; ``timeout`` is for each page.
        """
        wanted = values.make_filter(filter, fields)
        found: list[Service] = []
        token = ""
        while True:
            page = await self.discover_services(
                wanted, page_size=_LARGEST_PAGE, page_token=token, consistency=consistency, timeout=timeout
            )
            found += page.services
            token = page.next_page_token
            if not token:
                return found

    async def list_capabilities(self, *, timeout: float | None = None) -> list[CapabilitySummary]:
        """Lists the distinct capabilities of all services, ordered by name; ``timeout`` is for each page."""
        found: list[CapabilitySummary] = []
        request = pb.ListCapabilitiesRequest(page_size=_LARGEST_PAGE)
        while True:
            page = await self._call(lambda stub: stub.ListCapabilities, request, timeout=timeout)
            found += page.capabilities
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def get_stats(self, *, timeout: float | None = None) -> RegistryStats:
        """Counts what is registered."""
        return (await self._call(lambda stub: stub.GetStats, pb.GetStatsRequest(), timeout=timeout)).stats

    async def get_registry_health(self, *, timeout: float | None = None) -> GetRegistryHealthResponse:
        """Tells how the registry itself is."""
        request = pb.GetRegistryHealthRequest()
        return await self._call(lambda stub: stub.GetRegistryHealth, request, timeout=timeout)

    def _written(self, service: Service) -> Service:
        self._session.saw(service.revision)
        return service

    async def _read(
        self,
        read: Callable[[int, float], Awaitable[_Response]],
        min_revision: int | None,
        timeout: float | None,
    ) -> _Response:
        """Reads at a revision: the one that is asked for, else that of the session."""
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        if min_revision is not None or not self._session.revision:
            return await read(min_revision or 0, deadline - time.monotonic())
        while True:
            left = deadline - time.monotonic()
            try:
                return await read(self._session.revision, min(_PATIENCE, left))
            except RegistryUnavailable:
                if left <= _PATIENCE:
                    raise
            except DeadlineExceeded:
                if left <= _PATIENCE:
                    raise
                await self._check_history()

    async def _check_history(self) -> None:
        """Begins the session anew if the revision that it waits for may never come.

        That is so if the process follows its store and is below it all the same: the store was replaced.
        """
        with suppress(RegistryError):  # who waits for the revision will meet it too
            health = await self.get_registry_health(timeout=_PATIENCE)
            if health.store_connected and not health.replication_lag.ToNanoseconds():
                self._session.restart(health.revision)
