"""``LeaseKeeper``: renews the leases of all registrations of a client over one ``KeepAlive`` stream."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Load, Service
from registry_client.calls import next_message
from registry_client.channel import Channels
from registry_client.errors import (
    DeadlineExceeded,
    InstanceSuperseded,
    InvalidRequest,
    PermissionDenied,
    RegistryError,
    RegistryUnavailable,
    Unauthenticated,
)
from registry_client.retry import StreamEnds
from registry_client.tasks import Listeners, cancel_and_wait

if TYPE_CHECKING:
    import grpc

    _KeepAliveCall: TypeAlias = grpc.aio.StreamStreamCall[pb.KeepAliveRequest, pb.KeepAliveResponse]

RegisterBatch: TypeAlias = Callable[[Sequence[Service]], Awaitable[Sequence[Service | RegistryError]]]
"""Registers a batch of services and returns one result for each, in order."""

_HEARTBEATS_PER_TTL: Final = 3
_PERMANENT_HEARTBEAT_SECONDS: Final = 30.0
"""Heartbeat interval of a service without a lease: it only detects that the registry has lost the service."""
_MIN_JITTER: Final = 0.75
_MAX_JITTER: Final = 0.9
"""Heartbeats are sent after 0.75 to 0.9 of their interval. The jitter spreads agents that started together, and the
upper bound ensures that a registry which has lost a service receives it again within a third of the TTL."""
_MAX_NAMES_PER_HEARTBEAT: Final = 10_000
_REGISTRATION_BATCH_SIZE: Final = 30
"""Services in one ``BatchRegisterServices`` call: up to 128 KiB each, in a message of up to 4 MiB."""
_MAX_BACKOFF_SHARE: Final = 0.25
"""Maximum delay before the next attempt, as a share of the shortest heartbeat interval."""
_MIN_HEARTBEAT_TIMEOUT_SECONDS: Final = 2.0
"""A heartbeat response may take half of the shortest interval, but at least this time. An unresponsive registry is thus
detected, and another target used, before a lease expires."""

log = logging.getLogger(__name__)


class RegistrationState(StrEnum):
    """State of a registration."""

    PENDING = "pending"
    """The service has not been registered yet."""
    REGISTERED = "registered"
    """The registry confirmed the service at the last heartbeat."""
    AWAY = "away"
    """The registry is unavailable; the client retries until it responds."""
    REFUSED = "refused"
    """The registry rejected the service, for the reason in ``error``. The client retries periodically."""
    SUPERSEDED = "superseded"
    """Another process has registered the name. This is final: the client neither renews nor registers it again."""
    ENDED = "ended"
    """The service was unregistered, or its lease is no longer renewed."""


_FINAL_STATES: Final = (RegistrationState.SUPERSEDED, RegistrationState.ENDED)


class Lease:
    """The state of one service whose lease is kept alive."""

    def __init__(self, service: Service) -> None:
        self.service = service
        """The content to register, also after the registry has lost the service."""
        self.registered: Service | None = None
        """The service as the registry last returned it."""
        self.state = RegistrationState.PENDING
        self.error: RegistryError | None = None
        self.known = False
        """Whether the registry holds the service, according to its last response."""
        self.draining = False
        """Whether the agent leaves. A service that the registry has lost is then not registered again."""
        self.load: Load | None = None
        """How busy the agent is; None = it does not count its work."""
        self.due = 0.0
        """Time of the next heartbeat or registration, by the clock of the ``LeaseKeeper``."""
        self.refusals = 0
        """Consecutive failed registrations, from which the next retry delay follows."""
        self.listeners: Listeners[RegistrationState] = Listeners()

    @property
    def name(self) -> str:
        """Name of the service."""
        return self.service.name

    @property
    def heartbeat_interval(self) -> float:
        """Maximum seconds between two heartbeats."""
        return self.service.ttl.ToNanoseconds() / 1e9 / _HEARTBEATS_PER_TTL or _PERMANENT_HEARTBEAT_SECONDS

    @property
    def superseded(self) -> bool:
        """Whether another process has registered the name."""
        return self.state is RegistrationState.SUPERSEDED

    def heartbeat(self) -> pb.Lease:
        """Return the lease to send in a heartbeat."""
        draining = True if self.draining else None
        return pb.Lease(name=self.name, instance_id=self.service.instance_id, load=self.load, draining=draining)

    def set_state(self, state: RegistrationState, error: RegistryError | None = None) -> None:
        """Change the state, and notify the listeners if it differs from the current one."""
        if self.state in _FINAL_STATES:
            return  # a response to a call that was in flight when the registration ended
        changed = state is not self.state
        self.state, self.error = state, error
        if changed:
            self.listeners.notify(state)


class LeaseKeeper:
    """Keeps leases alive in a background task, which retries after every failure and raises nothing.

    Args:
        channels: The connections.
        register_batch: Registers services that the registry does not hold.
        clock: Monotonic time in seconds.
        sleep: Waits for a number of seconds.
        uniform: Source of randomness: returns a number between its two arguments.
        min_heartbeat_timeout: Minimum seconds to wait for a heartbeat response.
    """

    def __init__(
        self,
        channels: Channels,
        register_batch: RegisterBatch,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        min_heartbeat_timeout: float = _MIN_HEARTBEAT_TIMEOUT_SECONDS,
    ) -> None:
        self._channels = channels
        self._register_batch = register_batch
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._min_heartbeat_timeout = min_heartbeat_timeout
        self._leases: dict[str, Lease] = {}
        self._failures = 0
        self._ends = StreamEnds(self._clock)
        self._sends_names = False
        """Whether the current stream sends names instead of leases."""
        self._wake = asyncio.Event()
        self.registration_lock = asyncio.Lock()
        """Held during a registration, so that old content cannot overwrite newer content."""
        self._task: asyncio.Task[None] | None = None

    def add_lease(self, lease: Lease) -> None:
        """Start to keep a lease alive.

        Raises:
            ValueError: This client already keeps a lease of that name.
            RuntimeError: The client is closed, or belongs to another event loop or process.
        """
        self._channels.check_usable()
        self.require_free(lease.name)
        self._leases[lease.name] = lease
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="registry leases")

    def require_free(self, name: str) -> None:
        """Check that this client keeps no lease of a name.

        Raises:
            ValueError: It does.
        """
        if name in self._leases:
            raise ValueError(f"this client has already registered {name}")

    async def remove_lease(self, lease: Lease) -> None:
        """Stop keeping a lease alive. Afterwards the service is not registered again."""
        self._forget(lease)
        async with self.registration_lock:  # waits for a registration in flight
            pass
        if not self._leases:
            await self.close()

    async def close(self) -> None:
        """Stop renewing all leases, without unregistering the services. Idempotent."""
        # Before the first await: a lease that is added meanwhile starts a new task.
        task, self._task = self._task, None
        leases, self._leases = self._leases, {}
        if task is not None:
            await cancel_and_wait(task)
        for lease in leases.values():
            lease.set_state(RegistrationState.ENDED)

    def mark_superseded(self, lease: Lease) -> None:
        """Stop keeping a lease alive, because another process has registered the name."""
        self._forget(lease)
        lease.known = False
        lease.set_state(
            RegistrationState.SUPERSEDED, InstanceSuperseded(f"another process has registered {lease.name}")
        )

    def mark_lost(self, lease: Lease) -> None:
        """Record that the registry does not hold a service: register it again, unless it is draining."""
        lease.known = False
        if lease.draining:
            self._forget(lease)
        else:
            lease.due = 0.0
            lease.set_state(RegistrationState.PENDING)

    def _forget(self, lease: Lease) -> None:
        if self._leases.get(lease.name) is lease:
            del self._leases[lease.name]

    def mark_registered(self, lease: Lease, service: Service | None = None) -> None:
        """Record that the registry holds a service, which it returned if it has just been registered."""
        lease.registered = service or lease.registered
        lease.known = True
        lease.refusals = 0
        lease.due = self._clock() + lease.heartbeat_interval * self._uniform(_MIN_JITTER, _MAX_JITTER)
        lease.set_state(RegistrationState.REGISTERED)

    async def _run(self) -> None:
        while True:
            target = self._channels.target
            try:
                await self._run_stream()
            except RegistryError as error:
                self._channels.name_proxy(error, target)
                failure = error
            except Exception as error:
                log.exception("lease renewal failed, retrying")
                failure = RegistryError(str(error))
            self._failures += 1
            if not self._is_planned_end(failure):
                self._set_failed(failure)
            delay = self._channels.reopen_delay(target, self._failures, failure)
            await self._sleep(min(delay, self._max_retry_delay()))

    def _is_planned_end(self, failure: RegistryError) -> bool:
        """Return whether the end of a stream is no failure, as long as another one is answered soon.

        A registry of the previous version rejects ``leases``; the next stream sends names.
        """
        rejected = isinstance(failure, InvalidRequest) and not self._sends_names
        self._sends_names = rejected
        return self._ends.is_planned(failure) or rejected

    def _set_failed(self, failure: RegistryError) -> None:
        refused = isinstance(failure, Unauthenticated | PermissionDenied)
        for lease in list(self._leases.values()):
            if refused:
                lease.set_state(RegistrationState.REFUSED, failure)
            else:
                was_registered = lease.state is RegistrationState.REGISTERED
                lease.set_state(RegistrationState.AWAY if was_registered else lease.state, failure)

    def _max_retry_delay(self) -> float:
        """Return the limit of delays, with which all leases are renewed within one heartbeat interval.

        gRPC waits up to another second before it reconnects.
        """
        return self._shortest_interval() * _MAX_BACKOFF_SHARE

    def _shortest_interval(self) -> float:
        return min((lease.heartbeat_interval for lease in self._leases.values()), default=_PERMANENT_HEARTBEAT_SECONDS)

    async def _run_stream(self) -> NoReturn:
        """Keep leases alive on one stream until it breaks.

        Raises:
            RegistryError: The error that broke the stream.
        """
        call = self._channels.stub.KeepAlive(metadata=self._channels.call_metadata())
        call.add_done_callback(lambda _: self._wake.set())
        for lease in self._leases.values():
            lease.due = 0.0  # the previous stream may have been broken for an unknown time
        try:
            while True:
                self._wake.clear()
                now = self._clock()
                due = [lease for lease in self._leases.values() if lease.due <= now]
                await self._register_lost([lease for lease in due if not lease.known])
                renewing = [lease for lease in due if lease.known]
                # Detects a stream that has broken while no heartbeat is due.
                if call.done() and not renewing:
                    await next_message(call, pb.KeepAliveResponse, self._heartbeat_timeout())
                for start in range(0, len(renewing), _MAX_NAMES_PER_HEARTBEAT):
                    await self._send_heartbeat(call, renewing[start : start + _MAX_NAMES_PER_HEARTBEAT])
                await self._wait_until_due()
        finally:
            call.cancel()

    async def _send_heartbeat(self, call: "_KeepAliveCall", leases: Sequence[Lease]) -> None:
        if self._sends_names:
            request = pb.KeepAliveRequest(names=[lease.name for lease in leases])
        else:
            request = pb.KeepAliveRequest(leases=[lease.heartbeat() for lease in leases])
        response = await next_message(call, pb.KeepAliveResponse, self._heartbeat_timeout(), request)
        self._failures = 0
        self._ends.answered = True
        unknown, superseded = set(response.unknown_names), set(response.superseded_names)
        for lease in leases:
            if lease.name in superseded:
                self.mark_superseded(lease)
            elif lease.name in unknown:
                self.mark_lost(lease)
            else:
                self.mark_registered(lease)

    def _heartbeat_timeout(self) -> float:
        return max(self._min_heartbeat_timeout, self._shortest_interval() / 2)

    async def _register_lost(self, leases: Sequence[Lease]) -> None:
        """Register the services that the registry does not hold."""
        for start in range(0, len(leases), _REGISTRATION_BATCH_SIZE):
            async with self.registration_lock:
                batch = leases[start : start + _REGISTRATION_BATCH_SIZE]
                batch = [lease for lease in batch if self._leases.get(lease.name) is lease]
                if not batch:
                    continue
                results = await self._register_batch([lease.service for lease in batch])
                for lease, result in zip(batch, results, strict=True):
                    if isinstance(result, Service):
                        self.mark_registered(lease, result)
                        continue
                    unavailable = isinstance(result, RegistryUnavailable | DeadlineExceeded)
                    lease.refusals += 1
                    delay = lease.heartbeat_interval
                    if unavailable:
                        delay = min(self._channels.backoff.delay(lease.refusals), self._max_retry_delay())
                    lease.due = self._clock() + delay
                    lease.set_state(RegistrationState.AWAY if unavailable else RegistrationState.REFUSED, result)
            self._failures = 0

    async def _wait_until_due(self) -> None:
        """Wait until a heartbeat is due, a lease was added or the stream has ended."""
        if self._leases:
            seconds = max(0.0, min(lease.due for lease in self._leases.values()) - self._clock())
        else:
            seconds = _PERMANENT_HEARTBEAT_SECONDS
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
