"""``ServiceCache``: the registered services in memory, and endpoint resolution in process."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Self, Unpack

from ossa.registry.v1.event_pb2 import Event
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from registry_client.errors import NoEndpoint, NoEndpointInTime, RegistryError, RegistryUnavailable
from registry_client.outliers import Outliers
from registry_client.resolve import Criteria, Policy, Pool, Query, Requests, ResponseTimes, query_matcher
from registry_client.tasks import Listeners, cancel_and_wait
from registry_client.watch import REMOVAL_TYPES, Watch

_MAX_CACHED_QUERIES: Final = 1_000
"""Bounds memory if a program queries with labels that change constantly."""
_NO_LABELS: Final[frozenset[tuple[str, str]]] = frozenset()

log = logging.getLogger(__name__)


class ServiceCache:
    """A copy of the registered services, updated by a watch. Create it with ``RegistryClient.cache``.

    While the registry is unavailable, the cache serves the last known state and raises no error; ``age`` is the age of
    that state. Messages are shared: do not edit them. Any thread may call ``resolve``, ``observe``, ``find``, ``get``.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        policy: Policy,
        fallback: tuple[HealthStatus.ValueType, ...],
        snapshot_timeout: float,
        explain: Callable[..., Awaitable[str]],
    ) -> None:
        self._explain = explain
        self._watch = watch
        self._policy = Policy(policy)
        self._fallback = fallback
        self._snapshot_timeout = snapshot_timeout  # 0 = do not wait
        # Protects the following collections while they change and while pools are built. A cached picker is called
        # without the lock.
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}
        self._by_capability: dict[str, dict[str, Service]] = {}
        self._pools: dict[Query, Pool] = {}
        self._queries_by_capability: dict[str, set[Query]] = {}
        self._pickers: dict[tuple[object, ...], Callable[[], Service]] = {}
        # What `observe` recorded about the services, removed with them.
        self._times = ResponseTimes()
        self._requests = Requests()
        self._outliers = Outliers()
        self._ejected = self._outliers.ejected
        self._listeners: Listeners[Event] = Listeners()
        self._ready = asyncio.Event()
        self._change = asyncio.Event()
        """Set by the next change, which replaces it with a new event."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the watch, and wait for the first snapshot unless ``wait`` is false.

        Raises:
            RegistryUnavailable: The snapshot did not arrive in time.
            RegistryError: The registry rejected the watch.
        """
        self._watch.check_usable()
        self._task = asyncio.create_task(self._follow_watch(), name="registry cache")
        if self._snapshot_timeout:
            try:
                await self._wait_first_snapshot(self._task)
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the watch. The last known state remains readable. Idempotent."""
        if self._task is not None:
            await cancel_and_wait(self._task)
        await self._watch.close()

    # State.

    @property
    def ready(self) -> bool:
        """Whether a snapshot has arrived; before that the cache is empty."""
        return self._ready.is_set()

    @property
    def connected(self) -> bool:
        """Whether the watch is connected, so that changes arrive."""
        return self._watch.connected

    @property
    def age(self) -> float:
        """Seconds since the last message of the registry, an upper bound of the age of the state.

        Infinite before the first snapshot. While ``connected``, it stays below the bookmark interval (10 s by default),
        apart from delays on a busy machine.
        """
        return time.monotonic() - self._watch.last_heard if self.ready else float("inf")

    @property
    def last_error(self) -> RegistryError | None:
        """The error that interrupted the watch; None while it is connected."""
        return self._watch.last_error

    async def wait_ready(self) -> None:
        """Wait for the first snapshot."""
        await self._ready.wait()

    async def changed(self, *, timeout: float | None = None) -> None:
        """Wait for the next change: ``while not cache.find("summarize"): await cache.changed()``.

        Args:
            timeout: Seconds to wait; unset = no limit.

        Raises:
            TimeoutError: No change came in time.
        """
        change = self._change
        async with asyncio.timeout(timeout):
            await change.wait()

    async def wait_for(
        self, capability: str = "", *, timeout: float | None = None, **criteria: Unpack[Criteria]
    ) -> Service:
        """Wait until ``resolve`` finds a usable service, and return it.

        Args:
            capability: Capability that the service must have.
            timeout: Seconds to wait; unset = no limit.
            **criteria: The other arguments of ``resolve``, such as ``version``.

        Raises:
            NoEndpointInTime: No usable service came in time; the message has the explanation of the registry.
            ValueError: ``version`` is not a supported range.
        """
        missing = NoEndpoint("")
        try:
            async with asyncio.timeout(timeout):
                while True:
                    change = self._change
                    try:
                        return self.resolve(capability, **criteria)
                    except NoEndpoint as error:
                        missing = error
                    await change.wait()
        except TimeoutError:
            why = await self._explain(capability, criteria, available=not self._fallback) if self.connected else ""
            raise NoEndpointInTime(f"{missing}, within {timeout:g} s{why and ': '}{why}") from None

    def __len__(self) -> int:
        return len(self._services)

    def __contains__(self, name: object) -> bool:
        return name in self._services

    @property
    def services(self) -> Mapping[str, Service]:
        """A copy of the cached services, by name."""
        with self._lock:
            return dict(self._services)

    def get(self, name: str) -> Service | None:
        """Return the service of a name, or None if it is not cached."""
        return self._services.get(name)

    # Resolution.

    def resolve(
        self,
        capability: str = "",
        *,
        version: str = "",
        group: str = "",
        environment: str = "",
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        exclude: Collection[str | Service] = (),
    ) -> Service:
        """Select a healthy service or, if none is healthy, one with a status in ``fallback``.

        Args:
            capability: Capability that the service must have.
            version: Version or range (``^1.4``, ``>=1.2 <2``) of that capability; without ``capability``, of the
                service. ``ossa_common.versions`` describes the supported ranges.
            group: Group that the service must belong to.
            environment: Environment that the service must run in.
            labels: Labels that the service must all have.
            policy: How to select; unset = the policy of the cache.
            exclude: Services to leave out, or their names, such as those at which this request has failed.

        Returns:
            The service; call it at its ``endpoint``.

        Raises:
            NoEndpoint: No usable service matches; the message lists the unusable matches. Or the cache has no snapshot
                yet, so that it cannot know.
            ValueError: ``version`` is not a supported range.
        """
        if self._ejected:
            self._readmit_due()
        if exclude:
            label_set = frozenset(labels.items()) if labels else _NO_LABELS
            query = Query(capability, version, group, environment, label_set)
            return self._resolve_without(query, policy or self._policy, exclude)
        if labels is None:
            key: tuple[object, ...] = (capability, version, group, environment, policy)
        else:
            key = (capability, version, group, environment, policy, frozenset(labels.items()))
        pick = self._pickers.get(key)
        if pick is None:
            label_set = frozenset(labels.items()) if labels else _NO_LABELS
            query = Query(capability, version, group, environment, label_set)
            pick = self._add_picker(query, policy or self._policy, key)
        return pick()

    def find(
        self,
        capability: str = "",
        *,
        version: str = "",
        group: str = "",
        environment: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> tuple[Service, ...]:
        """Return all matching services, whatever their health; the arguments are those of ``resolve``.

        Raises:
            ValueError: ``version`` is not a supported range.
        """
        label_set = frozenset(labels.items()) if labels else _NO_LABELS
        with self._lock:
            return self._pool(Query(capability, version, group, environment, label_set)).matching

    def observe(self, service: Service, seconds: float | None = None, *, error: object = None) -> None:
        """Record the result of a call, for ``Policy.LEAST_RESPONSE_TIME`` and ``LEAST_REQUEST``, and to eject outliers.

        After three failures in a row ``resolve`` leaves the service out for 30 s, and for longer each time it fails
        again afterwards. At most half of the usable services are left out, and never the last one.

        Args:
            service: A service that ``resolve`` returned. Without effect if it has left or was replaced meanwhile.
            seconds: Measured response time of a call that succeeded.
            error: The exception of a call that failed, or any other true value.
        """
        name = service.name
        with self._lock:
            known = self._services.get(name)
            if known is None or known.instance_id != service.instance_id:
                return
            self._requests.end(name)
            if seconds is not None and not error:
                self._times.record(name, seconds)
            if self._outliers.record(name, failed=bool(error)):
                self._invalidate({"", *_capability_names(known)})

    def on_change(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Call a function with each event, after the cache has applied it; events of a snapshot are included.

        The function runs in the event loop and must not block. Exceptions of the function are logged.

        Returns:
            A function that removes the listener.
        """
        return self._listeners.subscribe(listener)

    # Internals.

    def _add_picker(self, query: Query, policy: Policy, key: tuple[object, ...]) -> Callable[[], Service]:
        with self._lock:
            pool = self._pool(query)
            if not pool.usable:
                raise self._no_endpoint_error(pool, query)
            if len(self._pickers) >= _MAX_CACHED_QUERIES:
                self._invalidate(list(self._queries_by_capability))
                pool = self._pool(query)
            pool.picker_keys.append(key)
            pick = self._pickers[key] = pool.picker(policy)
            return pick

    def _pool(self, query: Query) -> Pool:
        pool = self._pools.get(query)
        if pool is None:
            capability = query.capability
            candidates = self._by_capability.get(capability, {}) if capability else self._services
            pool = self._create_pool(filter(query_matcher(query), candidates.values()))
            if len(self._pools) >= _MAX_CACHED_QUERIES:
                self._invalidate(list(self._queries_by_capability))
            self._pools[query] = pool
            self._queries_by_capability.setdefault(capability, set()).add(query)
        return pool

    def _create_pool(self, matching: Iterable[Service]) -> Pool:
        return Pool(matching, self._fallback, self._times, self._requests, self._ejected)

    def _resolve_without(self, query: Query, policy: Policy, exclude: Collection[str | Service]) -> Service:
        if isinstance(exclude, str):
            raise TypeError(f"exclude must be a collection of names, such as [{exclude!r}], not {exclude!r}")
        excluded = {each if isinstance(each, str) else each.name for each in exclude}
        with self._lock:
            pool = self._pool(query)
            rest = self._create_pool(each for each in pool.matching if each.name not in excluded)
            if rest.usable:
                return rest.picker(policy)()
            error = self._no_endpoint_error(rest, query)
            error.args = (f"{error}, without {len(pool.matching) - len(rest.matching)} excluded",)
            raise error

    def _no_endpoint_error(self, pool: Pool, query: Query) -> NoEndpoint:
        if self.ready:
            return pool.no_endpoint_error(query)
        cause = f": {self.last_error}" if self.last_error else ""
        return NoEndpoint(f"no snapshot of the services has arrived from the registry yet{cause}")

    def _readmit_due(self) -> None:
        with self._lock:
            for name in self._outliers.readmit_due():
                self._invalidate({"", *_capability_names(self._services.get(name))})

    def _invalidate(self, capabilities: Iterable[str]) -> None:
        """Drop the pools and pickers of queries for these capabilities."""
        for capability in capabilities:
            for query in self._queries_by_capability.pop(capability, ()):
                for key in self._pools.pop(query).picker_keys:
                    self._pickers.pop(key, None)

    async def _wait_first_snapshot(self, follower: asyncio.Task[None]) -> None:
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait((ready, follower), timeout=self._snapshot_timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(ready)
        if follower.done():
            follower.result()  # raises: before the first snapshot the task ends only with an error
        if not self.ready:
            raise RegistryUnavailable(f"no snapshot arrived within {self._snapshot_timeout:g} s: {self.last_error}")

    async def _follow_watch(self) -> None:
        while True:
            try:
                self._apply_events(await self._watch.next_events())
            except RegistryError as error:
                if not self.ready and self._snapshot_timeout:
                    raise  # __aenter__ waits for this task and raises the error
                log.warning("watch rejected by the registry, retrying: %s", error)
                await self._watch.back_off(error)

    def _apply_events(self, batch: Sequence[Event]) -> None:
        affected = {""}
        with self._lock:
            for event in batch:
                if event.type in REMOVAL_TYPES:
                    affected |= self._set_service(event.service.name, None)
                elif event.HasField("service"):
                    affected |= self._set_service(event.service.name, event.service)
            if batch:
                self._invalidate(affected)
        if self._watch.complete:
            self._ready.set()
        if batch:
            change, self._change = self._change, asyncio.Event()
            change.set()
        for event in batch:
            self._listeners.notify(event)

    def _set_service(self, name: str, service: Service | None) -> set[str]:
        """Store the state of a service, or remove it if None; return the capabilities whose services changed."""
        known = self._services.get(name)
        before = _capability_names(known)
        after = _capability_names(service)
        for capability in before - after:
            providers = self._by_capability[capability]
            del providers[name]
            if not providers:
                del self._by_capability[capability]
        if known is not None and (service is None or service.instance_id != known.instance_id):
            for observed in (self._times, self._requests, self._outliers):
                observed.discard(name)
        if service is None:
            self._services.pop(name, None)
        else:
            self._services[name] = service
            for capability in after:
                self._by_capability.setdefault(capability, {})[name] = service
        return before | after


def _capability_names(service: Service | None) -> set[str]:
    return {capability.name for capability in service.capabilities} if service else set()
