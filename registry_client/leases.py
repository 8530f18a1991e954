"""``LeaseKeeper``: one ``KeepAlive`` stream keeps the leases of all registrations of a client alive."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias

import grpc

from ossa.registry.v1.registry_service_pb2 import KeepAliveRequest, KeepAliveResponse
from registry_client.calls import being_cancelled
from registry_client.channel import Channels
from registry_client.errors import (
    DeadlineExceeded,
    PermissionDenied,
    RegistryError,
    RegistryUnavailable,
    Unauthenticated,
    error_of_call,
)
from registry_client.messages import Service
from registry_client.retry import Backoff
from registry_client.tasks import Listeners, end

if TYPE_CHECKING:
    _Call: TypeAlias = grpc.aio.StreamStreamCall[KeepAliveRequest, KeepAliveResponse]

Register: TypeAlias = Callable[[Sequence[Service]], Awaitable[Sequence[Service | RegistryError]]]
"""Registers a batch; the answers are in its order."""

_BEATS_IN_A_TTL: Final = 3
_PERMANENT: Final = 30.0
"""Seconds between beats of a service without a lease: they only tell whether the registry still knows it."""
_EARLIEST: Final = 0.75
_LATEST: Final = 0.9
"""Beats come at 0.75 to 0.9 of a third of the TTL: agents that started together do not stay together, and a registry
that has forgotten a service is told of it again within a third of the TTL."""
_MOST_NAMES: Final = 10_000
_BATCH: Final = 50
"""Services in one registration: 64 KiB each at the most, in a message of 4 MiB."""
_LONGEST_WAIT: Final = 0.25
"""Share of a period that passes at the most before a registry that is away is tried again."""
_LEAST_PATIENCE: Final = 2.0
"""Seconds to wait for the answer to a beat, if half of the period is shorter. A registry that hangs is found out, and
another one told, well before the lease ends."""

log = logging.getLogger(__name__)


class RegistrationState(Enum):
    """How a registration stands."""

    PENDING = "pending"
    """Not made yet."""
    REGISTERED = "registered"
    """The registry knew the service at the last heartbeat."""
    AWAY = "away"
    """The registry does not answer, or not for long enough to be sure. It is tried until it does."""
    REFUSED = "refused"
    """The registry does not take the service, as it says in ``error``. It is asked again now and then."""
    ENDED = "ended"
    """Unregistered, or left to its lease."""


class Lease:
    """One service whose lease is kept alive, and how that stands."""

    def __init__(self, service: Service) -> None:
        self.service = service
        """What is registered, also when it has to be done again."""
        self.registered: Service | None = None
        """What the registry answered."""
        self.state = RegistrationState.PENDING
        self.error: RegistryError | None = None
        self.known = False
        """Whether the registry knows the service, as far as we were told."""
        self.due = 0.0
        """When to beat or register next, by ``time.monotonic``."""
        self.refusals = 0
        self.listeners: Listeners[RegistrationState] = Listeners()

    @property
    def name(self) -> str:
        """Name of the service."""
        return self.service.name

    @property
    def period(self) -> float:
        """Seconds between two beats."""
        return self.service.ttl.ToNanoseconds() / 1e9 / _BEATS_IN_A_TTL or _PERMANENT

    def renewed(self) -> None:
        """The registry knows the service."""
        self.known = True
        self.refusals = 0
        self.due = time.monotonic() + self.period * random.uniform(_EARLIEST, _LATEST)  # noqa: S311 - spreads load
        self.become(RegistrationState.REGISTERED)

    def accepted(self, answer: Service) -> None:
        """The registry has taken the service."""
        self.registered = answer
        self.renewed()

    def become(self, state: RegistrationState, error: RegistryError | None = None) -> None:
        """Changes the state, and tells the listeners if it is another one."""
        if self.state is RegistrationState.ENDED:
            return  # an answer that was under way
        changed = state is not self.state
        self.state, self.error = state, error
        if changed:
            self.listeners.tell(state)


class LeaseKeeper:
    """Keeps leases alive as long as there are some. Whatever happens, it goes on trying, and raises nothing."""

    def __init__(self, channels: Channels, backoff: Backoff, register: Register) -> None:
        self._channels = channels
        self._backoff = backoff
        self._register = register
        self._leases: dict[str, Lease] = {}
        self._failures = 0
        self._news = asyncio.Event()
        self.registering = asyncio.Lock()
        """Held while something is registered, so that old content cannot overtake new."""
        self._task: asyncio.Task[None] | None = None

    def add(self, lease: Lease) -> None:
        """Begins to keep a lease.

        Raises:
            ValueError: This client keeps one of that name already.
        """
        if lease.name in self._leases:
            raise ValueError(f"{lease.name} is registered by this client already")
        self._leases[lease.name] = lease
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="registry leases")

    async def remove(self, lease: Lease) -> None:
        """Ends keeping a lease. After this nothing registers the service again."""
        self._leases.pop(lease.name, None)
        async with self.registering:  # it may be under way
            pass
        if not self._leases:
            await self.close()

    async def close(self) -> None:
        """Ends everything; what is registered is left to its lease. Idempotent."""
        # First, without waiting: what is added meanwhile is kept by a task of its own.
        task, self._task = self._task, None
        leases, self._leases = self._leases, {}
        if task is not None:
            await end(task)
        for lease in leases.values():
            lease.become(RegistrationState.ENDED)

    async def _run(self) -> None:
        while True:
            target = self._channels.target
            try:
                await self._stream()
            except RegistryError as error:
                failure = error
            except Exception as error:
                log.exception("keeping leases failed; it goes on")
                failure = RegistryError(str(error))
            self._failures += 1
            refused = isinstance(failure, Unauthenticated | PermissionDenied)
            for lease in self._leases.values():
                if refused:
                    lease.become(RegistrationState.REFUSED, failure)
                else:
                    was_registered = lease.state is RegistrationState.REGISTERED
                    lease.become(RegistrationState.AWAY if was_registered else lease.state, failure)
            another = self._channels.give_up(target)
            if not (another and self._failures < len(self._channels)):
                await asyncio.sleep(self._delay(self._failures))

    def _delay(self, failures: int) -> float:
        """Seconds to wait after failures: once the registry is back, everybody is to be there within a period.

        gRPC itself waits up to a second before it connects again; it comes on top.
        """
        return min(self._backoff.delay(failures), self._shortest() * _LONGEST_WAIT)

    def _shortest(self) -> float:
        return min((lease.period for lease in self._leases.values()), default=_PERMANENT)

    async def _stream(self) -> NoReturn:
        """Keeps leases alive on one stream until it breaks.

        Raises:
            RegistryError: How it broke.
        """
        call = self._channels.stub.KeepAlive(metadata=self._channels.metadata())
        call.add_done_callback(lambda _: self._news.set())
        for lease in self._leases.values():
            lease.due = 0.0  # how long the last stream was broken without our knowing is anybody's guess
        try:
            while True:
                self._news.clear()
                now = time.monotonic()
                due = [lease for lease in self._leases.values() if lease.due <= now]
                await self._register_again([lease for lease in due if not lease.known])
                renewing = [lease for lease in due if lease.known]
                # A stream that is broken while nothing is due has to be noticed as well.
                if call.done() and not renewing:
                    await self._answer(call)
                for start in range(0, len(renewing), _MOST_NAMES):
                    await self._beat(call, renewing[start : start + _MOST_NAMES])
                await self._until_due()
        finally:
            call.cancel()

    async def _beat(self, call: "_Call", leases: Sequence[Lease]) -> None:
        request = KeepAliveRequest(names=[lease.name for lease in leases])
        try:
            async with asyncio.timeout(max(_LEAST_PATIENCE, self._shortest() / 2)):
                answer = await self._answer(call, request)
        except TimeoutError:
            raise DeadlineExceeded("a heartbeat was not answered in time") from None
        self._failures = 0
        unknown = set(answer.unknown_names)
        for lease in leases:
            if lease.name in unknown:
                lease.known = False
                lease.due = 0.0
                lease.become(RegistrationState.PENDING)
            else:
                lease.renewed()

    async def _answer(self, call: "_Call", request: KeepAliveRequest | None = None) -> KeepAliveResponse:
        try:
            if request is not None:
                await call.write(request)
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error) from error
        except asyncio.InvalidStateError as error:  # gRPC's word for a stream that has ended
            raise RegistryUnavailable("the stream has ended") from error
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise RegistryUnavailable("the stream was closed") from None
        if isinstance(answer, KeepAliveResponse):
            return answer
        raise RegistryUnavailable("the registry ended the stream")

    async def _register_again(self, leases: Sequence[Lease]) -> None:
        for start in range(0, len(leases), _BATCH):
            async with self.registering:
                part = [lease for lease in leases[start : start + _BATCH] if self._leases.get(lease.name) is lease]
                if not part:
                    continue
                for lease, result in zip(part, await self._register([each.service for each in part]), strict=True):
                    if isinstance(result, Service):
                        lease.accepted(result)
                        continue
                    away = isinstance(result, RegistryUnavailable | DeadlineExceeded)
                    lease.refusals += 1
                    lease.due = time.monotonic() + (self._delay(lease.refusals) if away else lease.period)
                    lease.become(RegistrationState.AWAY if away else RegistrationState.REFUSED, result)
            self._failures = 0

    async def _until_due(self) -> None:
        if self._leases:
            wait = max(0.0, min(lease.due for lease in self._leases.values()) - time.monotonic())
        else:
            wait = _PERMANENT
        try:
            async with asyncio.timeout(wait):
                await self._news.wait()
        except TimeoutError:
            pass
