"""``RegistryClient``: every unary RPC as a method, and registrations, watches and caches built on the streams."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Self, Unpack

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import HealthStatus, Service, ServiceFilter
from registry_client import values
from registry_client.cache import ServiceCache
from registry_client.calls import Caller, Session, sdk_errors
from registry_client.channel import Channels, Tls
from registry_client.errors import RegistryError
from registry_client.forks import is_broken_by_fork
from registry_client.leases import LeaseKeeper
from registry_client.registration import Registration
from registry_client.resolve import Policy
from registry_client.retry import Backoff
from registry_client.rpcs import UnaryCalls
from registry_client.watch import Watch

if TYPE_CHECKING:
    import grpc

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for a call with all its attempts."""
DEFAULT_TTL: Final = 30.0
"""Seconds of the lease of a registration whose service sets no ``ttl``."""
_HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"
"""A serialised ``HealthCheckResponse`` with the status SERVING."""


class RegistryClient(UnaryCalls):
    """A client of one registry, which may consist of several processes.

    Use it as ``async with RegistryClient("localhost:50051") as client``, or call ``close``. It connects on first use
    and belongs to the event loop of that first use.

    Calls that are safe to repeat are retried until their deadline while the registry is unavailable;
    ``registry_client.retry`` describes which calls those are. All methods raise the errors of
    ``registry_client.errors``.

    Args:
        target: Address of a registry, such as ``localhost:50051``, or several addresses of the same registry: one is
            used until it fails, then the next. Without a port it is 50051.
        tls: TLS configuration; without it the connection is not encrypted.
        token: Bearer token, or a function that returns the current one. It is sent unencrypted without ``tls``.
        timeout: Seconds for a call with all its attempts, unless the call sets its own.
        session: Whether reads wait until the registry process holds the highest revision that this client has seen.
            With it the client reads its own writes and never goes back in time, whichever process responds.
        backoff: How long to wait between attempts.
        proxy: URL of an HTTP proxy that supports CONNECT; true = the proxy that the environment names for the target,
            never for loopback; false = no proxy.
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
        proxy: str | bool = True,
    ) -> None:
        targets = [target] if isinstance(target, str) else target
        self._channels = Channels(targets, tls, token, backoff or Backoff(), proxy=proxy)
        super().__init__(Caller(self._channels, timeout), Session(enabled=session))
        self._leases = LeaseKeeper(self._channels, self.batch_register_services)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop heartbeats and watches, and close the connections. Idempotent.

        Registered services remain until their leases expire. In a child process of the one that opened the client,
        the method does nothing: the connections belong to the parent.
        """
        if is_broken_by_fork():
            return
        await self._leases.close()
        await self._channels.close()

    @property
    def target(self) -> str:
        """The current target."""
        return self._channels.target

    async def is_serving(self, *, timeout: float | None = None) -> bool:
        """Return whether the registry is ready, by ``grpc.health.v1``, which needs no credential unless configured."""
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channels.channel.unary_unary(_HEALTH_CHECK)
        metadata = self._channels.call_metadata()
        target = self.target
        try:
            with sdk_errors():
                answer = await check(b"", timeout=self._timeout if timeout is None else timeout, metadata=metadata)
        except RegistryError as error:
            self._channels.name_proxy(error, target)
            raise
        return bool(answer == _SERVING)

    # Streams.

    def registration(
        self,
        service: Service,
        *,
        replicas: bool = False,
        wait: bool = True,
        drain: float = 0.0,
        finish: float = 20.0,
        capacity: int = 0,
        sigterm: bool = True,
    ) -> Registration:
        """Keep a service registered for the duration of an ``async with`` block.

        The lease is renewed three times per TTL (30 s unless ``service.ttl`` is set), on one stream that carries all
        registrations of this client. If the registry loses the service, the client registers it again; if the registry
        is unavailable, the client retries until it responds. Neither raises an error in the block: see
        ``Registration.state`` and ``on_change``. At the end of the block the service is marked as draining and, after
        ``drain`` seconds and the work in flight, unregistered.

        Each registration is an instance of its own, unless ``service.instance_id`` is set. If another process registers
        the name, the registration is superseded: that is final, and the client leaves the name to the other process.

        Args:
            service: The service to register; see ``make_service``.
            replicas: Whether the name is that of a group: each registration gets a unique name in it.
            wait: Whether entering the block waits for the first registration and raises its error. If false, the
                service is registered in the background, for agents that start before their registry.
            drain: Seconds between draining and unregistration, for callers that still hold the endpoint.
            finish: Seconds that the end of the block waits at most, after ``drain``, for the work in flight that
                ``Registration.work`` counts.
            capacity: Calls or tasks that the agent works on at the same time; 0 = unknown. With it, heartbeats carry
                the load from the start, otherwise from the first ``Registration.work``.
            sigterm: Whether SIGTERM ends the block as if its body had ended, unless the program handles SIGTERM itself.

        Returns:
            A context manager that returns itself.
        """
        copy = Service()
        copy.CopyFrom(service)
        if not copy.HasField("ttl"):
            copy.ttl.CopyFrom(values.duration(DEFAULT_TTL))
        return Registration(
            self,
            self._leases,
            copy,
            replicas=replicas,
            wait=wait,
            drain=drain,
            finish=finish,
            capacity=capacity,
            sigterm=sigterm,
        )

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
        """Watch changes: ``async for event in client.watch(capability="summarize")``.

        The watch resumes automatically after a broken stream, without gaps or repetitions. If the registry no longer
        holds the missed changes, the watch takes a snapshot and returns the difference as events with the reason
        ``RESYNC``. Every watch therefore keeps the matching services in memory; a narrow filter keeps that small.

        Args:
            filter: The services to watch; unset = all.
            types: Event types to return; empty = all.
            include_snapshot: Whether to return the existing services first, as ``SERVICE_SNAPSHOT`` events.
            cursor: Where to resume: ``Watch.cursor`` of an earlier watch with the same filter.
            bookmark_interval: Seconds after which the registry sends a message on a stream without changes. A stream
                that is silent for three intervals counts as broken.
            **fields: Fields of the filter.

        Returns:
            An asynchronous iterator of events.
        """
        return Watch(
            self._channels,
            self._session,
            values.make_filter(filter, fields),
            types=frozenset(values.enum_value(EventType, each, "types") for each in types),
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
        """Cache services in memory for the duration of an ``async with`` block, to resolve endpoints in process.

        Args:
            filter: The services to cache; unset = all.
            policy: How ``ServiceCache.resolve`` selects a service, unless the call sets its own policy.
            fallback: Statuses that are acceptable, in this order, if no service is healthy, such as ``["degraded"]``.
            wait: Whether entering the block waits for the first snapshot, for up to the ``timeout`` of the client.
            bookmark_interval: Seconds after which the registry sends a message on a stream without changes.
            **fields: Fields of the filter.

        Returns:
            A context manager that returns itself.
        """
        watch = self.watch(filter, include_snapshot=True, bookmark_interval=bookmark_interval, **fields)
        return ServiceCache(
            watch,
            policy=policy,
            fallback=tuple(values.enum_value(HealthStatus, each, "fallback") for each in fallback),
            snapshot_timeout=self._timeout if wait else 0.0,
            explain=self._explain_criteria,
        )
