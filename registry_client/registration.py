"""``Registration``: keeps a service registered for the duration of an ``async with`` block."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

from ossa.registry.v1.service_pb2 import Health, HealthStatus, Load, Service
from registry_client.errors import InstanceSuperseded, InvalidRequest, RegistryError, ServiceNotFound
from registry_client.leases import Lease, LeaseKeeper, RegistrationState
from registry_client.rpcs import UnaryCalls
from registry_client.signals import sigterm_blocks
from registry_client.values import enum_value

_LEAVE_TIMEOUT_SECONDS: Final = 5.0
"""Limit for both calls of a leaving agent together. If the registry is unavailable for longer, the lease expires."""
_MAX_NAME_LENGTH: Final = 128
_NAME_SUFFIX_BYTES: Final = 6
_INSTANCE_ID_BYTES: Final = 12

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
        finish: float,
        capacity: int,
        sigterm: bool,
    ) -> None:
        if replicas:
            service.group = service.group or service.name
            service.name = _unique_name(service.name)
        service.instance_id = service.instance_id or secrets.token_hex(_INSTANCE_ID_BYTES)
        self._client = client
        self._leases = leases
        self._lease = Lease(service)
        self._wait = wait
        self._drain = drain
        self._finish = finish
        self._idle = asyncio.Event()
        self._idle.set()
        if capacity:
            self._lease.load = Load(capacity=capacity)
        self._sigterm = sigterm
        self._terminated = False
        self._removed = False

    async def __aenter__(self) -> Self:
        """Register the service.

        Raises:
            RegistryError: The registration failed, unless ``wait`` is false.
            ValueError: This client already keeps a service of that name registered.
        """
        self._leases.require_free(self.name)
        if self._wait:
            self._leases.mark_registered(self._lease, await self._client.register_service(self._lease.service))
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
            InstanceSuperseded: Another process has registered the name.
            RegistryError: The registry did not accept the report.
        """
        try:
            await self._client.report_service_health(
                self.name, status, error=error, details=details, instance_id=self._instance_id
            )
        except InstanceSuperseded:
            self._leases.mark_superseded(self._lease)
            raise
        # Not the health in the response, which reads MAINTENANCE while an operator keeps the service in maintenance.
        self._lease.service.health.CopyFrom(Health(status=enum_value(HealthStatus, status, "status"), error=error))

    @property
    def in_flight(self) -> int:
        """Number of ``work`` blocks that run now."""
        return self._lease.load.in_flight if self._lease.load else 0

    @asynccontextmanager
    async def work(self) -> AsyncIterator[None]:
        """Count a call or task of the agent while the block runs: ``async with registration.work():``.

        Heartbeats report the number to the registry, and the end of the registration waits for the blocks.
        """
        load = self._lease.load = self._lease.load or Load()
        load.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            load.in_flight -= 1
            if not load.in_flight:
                self._idle.set()

    async def start_draining(self) -> None:
        """Mark the service as draining before the block ends, so that no new calls reach it while the agent finishes.

        The lease is still renewed, but a service that the registry loses is not registered again. Idempotent. A failure
        is only logged, because it must not keep an agent from leaving.
        """
        already, self._lease.draining = self._lease.draining, True
        if not self._lease.known:
            self._leases.mark_lost(self._lease)
        if already or not self._lease.known:
            return
        try:
            await self._client.report_service_health(self.name, draining=True, instance_id=self._instance_id)
        except InstanceSuperseded:
            self._leases.mark_superseded(self._lease)
        except ServiceNotFound:
            self._leases.mark_lost(self._lease)
        except RegistryError as error:
            log.info("cannot mark %s as draining: %s", self.name, error)

    async def update(self, service: Service) -> Service:
        """Register new content under the same name; ``service.name`` is ignored, an empty group keeps the current one.

        Returns:
            The service as it is registered now.

        Raises:
            InstanceSuperseded: Another process has registered the name.
            RegistryError: The registry did not accept the content; the previous content remains registered.
        """
        await self._require_own_name()
        updated = Service()
        updated.CopyFrom(service)
        updated.name, updated.instance_id = self.name, self._instance_id
        updated.group = updated.group or self._lease.service.group
        if not updated.HasField("ttl"):
            updated.ttl.CopyFrom(self._lease.service.ttl)
        async with self._leases.registration_lock:
            registered = await self._client.register_service(updated)
            self._lease.service = updated
            self._leases.mark_registered(self._lease, registered)
        return registered

    @property
    def _instance_id(self) -> str:
        return self._lease.service.instance_id

    async def _require_own_name(self) -> None:
        """Check that the name belongs to this registration, or to none: a registration would take it from another.

        Raises:
            InstanceSuperseded: Another process has registered the name.
        """
        if not self._lease.superseded:
            try:
                answer = await self._client.heartbeat(leases=[self._lease.heartbeat()])
            except InvalidRequest:  # a registry of the previous version, which does not know instances
                return
            if self.name not in answer.superseded_names:
                return
            self._leases.mark_superseded(self._lease)
        raise InstanceSuperseded(f"another process has registered {self.name}", metadata={"name": self.name})

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

    async def _finish_work(self) -> None:
        """Wait for the work in flight, while heartbeats renew the lease."""
        try:
            async with asyncio.timeout(self._finish):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%s leaves with %d calls in flight after %g s", self.name, self.in_flight, self._finish)

    async def _leave(self) -> None:
        drained_at = time.monotonic() + self._drain
        may_have_callers = self._lease.known or self._lease.superseded
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_SECONDS + self._drain + self._finish):
                await self.start_draining()
                if may_have_callers:
                    await asyncio.sleep(drained_at - time.monotonic())
                await self._finish_work()
                await self._leases.remove_lease(self._lease)
                if self._lease.known:
                    await self._client.unregister_service(self.name, instance_id=self._instance_id)
                self._removed = may_have_callers or self._lease.known
        except ServiceNotFound:
            self._removed = True
            log.info("%s was already unregistered", self.name)
        except InstanceSuperseded:
            self._removed = True
            self._leases.mark_superseded(self._lease)
        except (RegistryError, TimeoutError) as error:
            log.warning("cannot unregister %s, it remains until its lease expires: %s", self.name, error)
        finally:
            await self._leases.remove_lease(self._lease)
            self._lease.set_state(RegistrationState.ENDED)


def _unique_name(name: str) -> str:
    """Return the name with a random suffix of 48 bits, which makes it unique without a call to the registry."""
    suffix = secrets.token_hex(_NAME_SUFFIX_BYTES)
    return f"{name[: _MAX_NAME_LENGTH - len(suffix) - 1]}-{suffix}"
