"""``RegistryClient``: every RPC as a method, and what is built on them."""

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self, Unpack

from registry_client import values
from registry_client.cache import ServiceCache
from registry_client.calls import Caller, Session
from registry_client.channel import Channels, Tls
from registry_client.leases import LeaseKeeper
from registry_client.messages import EventType, HealthStatus, Service, ServiceFilter
from registry_client.registration import Registration
from registry_client.resolve import Policy
from registry_client.retry import Backoff
from registry_client.rpcs import UnaryCalls
from registry_client.watch import Watch

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for a call with all its tries."""
DEFAULT_TTL: Final = 30.0
"""Seconds that the lease of a registration lasts whose service does not say."""


class RegistryClient(UnaryCalls):
    """A client of one registry, which may be several processes.

    Use it as ``async with RegistryClient("localhost:50051") as client``, or call ``close``. It connects when it is
    first used, and belongs to the event loop in which that happens.

    Calls that are safe to repeat are made again until their deadline when nobody answers; see ``registry_client.retry``
    for which they are. All methods raise the errors of ``registry_client.errors``.

    Args:
        target: Address of a registry, such as ``localhost:50051``, or several of the same registry: one is used until
            it fails, then the next.
        tls: How to secure the connection; unset = not at all.
        token: Bearer token, or a function that gives the one that is valid now. It is sent as it is: use ``tls``.
        timeout: Seconds for a call with all its tries, unless the call says otherwise.
        session: Whether reads wait until the process that is asked holds the highest revision that this client has
            seen, so that it reads its own writes and never goes back, whichever process answers.
        backoff: How long to wait between tries.
    """

    def __init__(
        self,
        target: str | Sequence[str] = "localhost:50051",
        *,
        tls: Tls | None = None,
        token: str | Callable[[], str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        session: bool = True,
        backoff: Backoff | None = None,
    ) -> None:
        self._channels = Channels([target] if isinstance(target, str) else target, tls, token)
        self._backoff = backoff or Backoff()
        super().__init__(Caller(self._channels, self._backoff, timeout), Session(enabled=session), timeout)
        self._leases = LeaseKeeper(self._channels, self._backoff, self.batch_register_services)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends heartbeats, watches and connections. What is registered stays until its lease ends. Idempotent."""
        await self._leases.close()
        await self._channels.close()

    @property
    def target(self) -> str:
        """The target in use."""
        return self._channels.target

    # Streams.

    def registration(
        self,
        service: Service,
        *,
        replicas: bool = False,
        wait: bool = True,
        drain: float = 0.0,
        sigterm: bool = True,
    ) -> Registration:
        """Keeps a service registered for as long as ``async with`` lasts.

        Its lease is renewed three times in its length (30 s unless ``service.ttl`` says otherwise) on one stream that
        carries all registrations of this client. A registry that forgot the service is told of it again; one that is
        away is tried until it is back. Nothing of that raises: see ``Registration.state`` and ``on_change``. At the end
        the service is put in maintenance, and after ``drain`` seconds unregistered.

        Args:
            service: What to register; see ``make_service``.
            replicas: Whether the name is that of a group: each registration gets a unique name in it.
            wait: Whether entering waits for the first registration and raises what goes wrong with it. Otherwise it is
                made in the background, for agents that start before their registry.
            drain: Seconds between maintenance and the end, for those who still hold the endpoint.
            sigterm: Whether SIGTERM ends the block as if it was left, unless the program handles SIGTERM itself.

        Returns:
            A context manager that gives itself.
        """
        made = Service()
        made.CopyFrom(service)
        if not made.HasField("ttl"):
            made.ttl.CopyFrom(values.duration(DEFAULT_TTL))
        return Registration(self, self._leases, made, replicas=replicas, wait=wait, drain=drain, sigterm=sigterm)

    def watch(
        self,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        types: Iterable[EventType.ValueType | str] = (),
        include_snapshot: bool = False,
        cursor: str = "",
        bookmark_interval: float = 10.0,
        **fields: Unpack[values.FilterFields],
    ) -> Watch:
        """Watches changes: ``async for event in client.watch(capability="summarize")``.

        The stream resumes by itself after every break, with no gap and no repeat. Where the registry no longer holds
        what happened meanwhile, the difference comes as events with reason ``RESYNC``. To be able to tell it, a watch
        takes a snapshot of what matches in any case and keeps it; a narrow filter keeps that small.

        Args:
            filter: Which services; unset = all.
            types: Kinds of event to give; none = all.
            include_snapshot: Whether the services that are there come first, as ``SERVICE_SNAPSHOT``.
            cursor: Where to go on: ``Watch.cursor`` of an earlier watch with the same filter.
            bookmark_interval: Seconds after which a quiet registry is heard all the same; after three of them it counts
                as away.
            **fields: Fields of the filter.

        Returns:
            An asynchronous iterator of events.
        """
        return Watch(
            self._channels,
            self._backoff,
            self._session,
            values.make_filter(filter, fields),
            types=frozenset(map(values.event_type, types)),
            include_snapshot=include_snapshot,
            cursor=cursor,
            bookmark_interval=bookmark_interval,
        )

    def cache(
        self,
        filter: ServiceFilter | None = None,  # noqa: A002 - the field's name in the contract
        *,
        policy: Policy = Policy.ROUND_ROBIN,
        fallback: Sequence[HealthStatus.ValueType | str] = (),
        wait: bool = True,
        bookmark_interval: float = 10.0,
        **fields: Unpack[values.FilterFields],
    ) -> ServiceCache:
        """Keeps services in memory for as long as ``async with`` lasts, to pick endpoints in process.

        Args:
            filter: Which services; unset = all.
            policy: How ``ServiceCache.resolve`` picks, unless the call says otherwise.
            fallback: Statuses that are used, in this order, where no service is healthy, such as ``["degraded"]``.
            wait: Whether entering waits for the first snapshot, as long as the client's ``timeout``.
            bookmark_interval: Seconds after which a quiet registry is heard all the same.
            **fields: Fields of the filter.

        Returns:
            A context manager that gives itself.
        """
        watch = self.watch(filter, include_snapshot=True, bookmark_interval=bookmark_interval, **fields)
        return ServiceCache(
            watch,
            self._backoff,
            policy=policy,
            fallback=tuple(map(values.status, fallback)),
            patience=self._timeout if wait else 0.0,
        )
