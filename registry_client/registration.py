"""``Registration``: a service is registered for as long as a block lasts."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from registry_client.errors import RegistryError, ServiceNotFound
from registry_client.leases import Lease, LeaseKeeper, RegistrationState
from registry_client.messages import HealthStatus, Service
from registry_client.signals import terminations

if TYPE_CHECKING:
    from registry_client.client import RegistryClient

_FAREWELL: Final = 5.0
"""Seconds that maintenance and unregistering may take together; if the registry is away, the lease ends by itself."""
_LEAVING: Final = "the agent is leaving"
"""By this the maintenance of an agent that leaves is told from that of an operator."""
_LONGEST_NAME: Final = 128
_SUFFIX_BYTES: Final = 6

log = logging.getLogger(__name__)


class Registration:
    """Keeps a service registered for as long as ``async with`` lasts. Made by ``RegistryClient.registration``."""

    def __init__(
        self,
        client: "RegistryClient",
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
            service.name = _unique(service.name)
        self._client = client
        self._leases = leases
        self._lease = Lease(service)
        self._wait = wait
        self._drain = drain
        self._sigterm = sigterm
        self._terminated = False
        self._removed = False

    async def __aenter__(self) -> Self:
        """Registers the service.

        Raises:
            RegistryError: It could not be registered, unless ``wait`` is off.
            ValueError: This client keeps a service of that name registered already.
        """
        if self._wait:
            self._lease.accepted(await self._client.register_service(self._lease.service))
            await self._return()
        self._leases.add(self._lease)
        if self._sigterm:
            terminations().enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._sigterm:
            self._terminated = terminations().was_signalled(self)
        cut = await self._leave_in_full()
        if self._sigterm and terminations().leave(self):
            return kind is None or kind is asyncio.CancelledError
        if cut and kind is not asyncio.CancelledError:
            raise asyncio.CancelledError
        return False

    @property
    def name(self) -> str:
        """Name under which the service is registered; with ``replicas`` a unique one."""
        return self._lease.name

    @property
    def service(self) -> Service:
        """The service as the registry last answered it; before that, as it will be registered."""
        return self._lease.registered or self._lease.service

    @property
    def state(self) -> RegistrationState:
        """How the registration stands."""
        return self._lease.state

    @property
    def error(self) -> RegistryError | None:
        """What the registry, or its absence, says; None while all is well."""
        return self._lease.error

    @property
    def terminated(self) -> bool:
        """Whether SIGTERM ended the block."""
        return self._terminated

    @property
    def removed(self) -> bool:
        """Whether the registry has confirmed, after the block, that the name is free or another's.

        False: it could not be asked, and a service that is still there goes when its lease ends.
        """
        return self._removed

    def on_change(self, listener: Callable[[RegistrationState], object]) -> Callable[[], None]:
        """Calls a function with each new state, in the event loop. What it raises is logged.

        Returns:
            A function that ends this.
        """
        return self._lease.listeners.add(listener)

    async def report(
        self, status: HealthStatus.ValueType | str, *, error: str = "", details: Mapping[str, Any] | None = None
    ) -> None:
        """Reports the status of the service, as ``RegistryClient.report_service_health`` does.

        A registry that has to be told of the service again gets this status too.

        Raises:
            RegistryError: It was not taken.
        """
        health = await self._client.report_service_health(self.name, status, error=error, details=details)
        self._lease.service.health.Clear()
        self._lease.service.health.status = health.status
        self._lease.service.health.error = health.error

    async def update(self, service: Service) -> Service:
        """Registers other content under the same name and group; ``service.name`` does not count.

        Returns:
            The service as it is registered now.

        Raises:
            RegistryError: It was not taken; the old content stays.
        """
        made = Service()
        made.CopyFrom(service)
        made.name = self.name
        made.group = made.group or self._lease.service.group
        if not made.HasField("ttl"):
            made.ttl.CopyFrom(self._lease.service.ttl)
        async with self._leases.registering:
            answer = await self._client.register_service(made)
            self._lease.service = made
            self._lease.accepted(answer)
        return answer

    async def _return(self) -> None:
        """Takes back the maintenance in which a former process of this name left, but could not unregister.

        It is sticky, so that what an operator has taken out stays out; this one is known by its words.
        """
        health = self.service.health
        if health.status != HealthStatus.HEALTH_STATUS_MAINTENANCE or health.error != _LEAVING:
            return
        by_heartbeat = self._lease.service.health_check.WhichOneof("probe") == "heartbeat"
        await self._client.report_service_health(self.name, "healthy" if by_heartbeat else "unknown")
        self._lease.accepted(await self._client.get_service(self.name))

    async def _is_ours(self) -> bool:
        """Whether the service is still this one: in a rolling restart the next process may have taken the name."""
        return (await self._client.get_service(self.name)).endpoint == self._lease.service.endpoint

    async def _leave_in_full(self) -> bool:
        """Leaves, which takes a bounded time, though the task is cancelled meanwhile; tells whether it was.

        A task group cancels its tasks once more when SIGTERM has cancelled them already.
        """
        leaving = asyncio.create_task(self._leave(), name=f"unregistering {self.name}")
        cut = False
        while not leaving.done():
            try:
                await asyncio.shield(leaving)
            except asyncio.CancelledError:
                cut = True
        leaving.result()
        return cut

    async def _leave(self) -> None:
        known = self._lease.known
        try:
            async with asyncio.timeout(_FAREWELL + self._drain):
                if known and await self._is_ours():
                    maintenance = HealthStatus.HEALTH_STATUS_MAINTENANCE
                    await self._client.report_service_health(self.name, maintenance, error=_LEAVING)
                    await asyncio.sleep(self._drain)
                await self._leases.remove(self._lease)
                if known and await self._is_ours():
                    await self._client.unregister_service(self.name)
                self._removed = known
        except ServiceNotFound:
            self._removed = True
            log.info("%s was not registered any more", self.name)
        except (RegistryError, TimeoutError) as error:
            log.warning("%s could not be unregistered, its lease ends by itself: %s", self.name, error)
        finally:
            await self._leases.remove(self._lease)
            self._lease.become(RegistrationState.ENDED)


def _unique(name: str) -> str:
    """A name that nobody else takes: 48 random bits, without asking the registry for its leave."""
    suffix = secrets.token_hex(_SUFFIX_BYTES)
    return f"{name[: _LONGEST_NAME - len(suffix) - 1]}-{suffix}"
