"""``Registration``: keeps a service registered for the duration of an ``async with`` block."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

from ossa.registry.v1.service_pb2 import HealthStatus, Service
from registry_client.errors import RegistryError, ServiceNotFound
from registry_client.leases import Lease, LeaseKeeper, RegistrationState
from registry_client.rpcs import UnaryCalls
from registry_client.signals import sigterm_blocks
from registry_client.values import status_after_maintenance

_LEAVE_TIMEOUT_SECONDS: Final = 5.0
"""Limit for maintenance and unregistration together. If the registry is unavailable for longer, the lease expires."""
_LEAVING_REASON: Final = "the agent is leaving"
"""Reason of the maintenance status that a leaving agent reports. It distinguishes it from an operator's maintenance."""
_MAX_NAME_LENGTH: Final = 128
_NAME_SUFFIX_BYTES: Final = 6

log = logging.getLogger(__name__)


class Registration:
    """Keeps a service registered for the duration of ``async with``. Create it with ``RegistryClient.registration``."""

    def __init__(
        self,
        client: UnaryCalls,
        leases: LeaseKeeper,
        service: Service,
        *,
        replicas: bool,
        wait: bool,
        drain: float,
        sigterm: bool,
    ) -> None:
        if replicas:
            service.group = service.group or service.name
            service.name = _unique_name(service.name)
        self._client = client
        self._leases = leases
        self._lease = Lease(service)
        self._wait = wait
        self._drain = drain
        self._sigterm = sigterm
        self._terminated = False
        self._removed = False

    async def __aenter__(self) -> Self:
        """Register the service.

        Raises:
            RegistryError: The registration failed, unless ``wait`` is false.
            ValueError: This client already keeps a service of that name registered.
        """
        if self._wait:
            self._leases.mark_registered(self._lease, await self._client.register_service(self._lease.service))
            await self._clear_own_maintenance()
        self._leases.add_lease(self._lease)
        if self._sigterm:
            sigterm_blocks().enter_block(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._sigterm:
            self._terminated = sigterm_blocks().was_terminated(self)
        cancelled = await self._leave_uninterrupted()
        if self._sigterm and sigterm_blocks().exit_block(self):
            return kind is None or kind is asyncio.CancelledError
        if cancelled and kind is not asyncio.CancelledError:
            raise asyncio.CancelledError
        return False

    @property
    def name(self) -> str:
        """Name under which the service is registered; unique if ``replicas`` is set."""
        return self._lease.name

    @property
    def service(self) -> Service:
        """The service as the registry last returned it; before the first response, the content to register."""
        return self._lease.registered or self._lease.service

    @property
    def state(self) -> RegistrationState:
        """State of the registration."""
        return self._lease.state

    @property
    def error(self) -> RegistryError | None:
        """The last error of the registration; None while it is healthy."""
        return self._lease.error

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM ended the block."""
        return self._terminated

    @property
    def removed(self) -> bool:
        """Whether the registry has confirmed, after the block, that it no longer holds this service under the name.

        If false, the registry did not respond, and the service remains registered until its lease expires.
        """
        return self._removed

    def on_change(self, listener: Callable[[RegistrationState], object]) -> Callable[[], None]:
        """Call a function with each new state, in the event loop. Exceptions of the function are logged.

        Returns:
            A function that removes the listener.
        """
        return self._lease.listeners.subscribe(listener)

    async def report(
        self, status: HealthStatus.ValueType | str, *, error: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        """Report the status of the service, as ``RegistryClient.report_service_health`` does.

        The status is part of later registrations, if the registry loses the service.

        Raises:
            RegistryError: The registry did not accept the report.
        """
        health = await self._client.report_service_health(self.name, status, error=error, details=details)
        self._lease.service.health.Clear()
        self._lease.service.health.status = health.status
        self._lease.service.health.error = health.error

    async def update(self, service: Service) -> Service:
        """Register new content under the same name; ``service.name`` is ignored, an empty group keeps the current one.

        Returns:
            The service as it is registered now.

        Raises:
            RegistryError: The registry did not accept the content; the previous content remains registered.
        """
        updated = Service()
        updated.CopyFrom(service)
        updated.name = self.name
        updated.group = updated.group or self._lease.service.group
        if not updated.HasField("ttl"):
            updated.ttl.CopyFrom(self._lease.service.ttl)
        async with self._leases.registration_lock:
            registered = await self._client.register_service(updated)
            self._lease.service = updated
            self._leases.mark_registered(self._lease, registered)
        return registered

    async def _clear_own_maintenance(self) -> None:
        """End the maintenance that a previous process of this name reported while leaving, if it did not unregister.

        A registration keeps the maintenance status, because it may be an operator's decision. Only maintenance with the
        reason of a leaving agent is ended.
        """
        health = self.service.health
        if health.status != HealthStatus.HEALTH_STATUS_MAINTENANCE or health.error != _LEAVING_REASON:
            return
        await self._client.report_service_health(self.name, status_after_maintenance(self._lease.service))
        self._leases.mark_registered(self._lease, await self._client.get_service(self.name))

    async def _is_own_service(self) -> bool:
        """Return whether the registered service is this one: a rolling restart may have replaced it."""
        return (await self._client.get_service(self.name)).endpoint == self._lease.service.endpoint

    async def _leave_uninterrupted(self) -> bool:
        """Leave within a bounded time, even if the task is cancelled meanwhile.

        A task group cancels its tasks a second time after SIGTERM has cancelled them.

        Returns:
            Whether the task was cancelled meanwhile.
        """
        leaving = asyncio.create_task(self._leave(), name=f"unregistering {self.name}")
        cancelled = False
        while not leaving.done():
            try:
                await asyncio.shield(leaving)
            except asyncio.CancelledError:
                cancelled = True
        leaving.result()
        return cancelled

    async def _leave(self) -> None:
        known = self._lease.known
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_SECONDS + self._drain):
                if known and await self._is_own_service():
                    maintenance = HealthStatus.HEALTH_STATUS_MAINTENANCE
                    await self._client.report_service_health(self.name, maintenance, error=_LEAVING_REASON)
                    await asyncio.sleep(self._drain)
                await self._leases.remove_lease(self._lease)
                if known and await self._is_own_service():
                    await self._client.unregister_service(self.name)
                self._removed = known
        except ServiceNotFound:
            self._removed = True
            log.info("%s was already unregistered", self.name)
        except (RegistryError, TimeoutError) as error:
            log.warning("cannot unregister %s, it remains until its lease expires: %s", self.name, error)
        finally:
            await self._leases.remove_lease(self._lease)
            self._lease.set_state(RegistrationState.ENDED)


def _unique_name(name: str) -> str:
    """Return the name with a random suffix of 48 bits, which makes it unique without a call to the registry."""
    suffix = secrets.token_hex(_NAME_SUFFIX_BYTES)
    return f"{name[: _MAX_NAME_LENGTH - len(suffix) - 1]}-{suffix}"
