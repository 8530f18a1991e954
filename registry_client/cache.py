"""``ServiceCache``: what is registered, in memory, and endpoints picked from it in process."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Self

from registry_client.errors import RegistryError, RegistryUnavailable
from registry_client.messages import Event, EventType, HealthStatus, Service
from registry_client.resolve import Policy, Pool, Question, ResponseTimes, matches
from registry_client.retry import Backoff
from registry_client.tasks import Listeners, end
from registry_client.watch import Watch

_MOST_KEPT: Final = 1_000
"""Questions that are kept ready: a program that asks with ever new labels must not fill its memory."""
_GONE: Final = (EventType.EVENT_TYPE_SERVICE_UNREGISTERED, EventType.EVENT_TYPE_SERVICE_UNMATCHED)
_NO_LABELS: Final[frozenset[tuple[str, str]]] = frozenset()

log = logging.getLogger(__name__)


class ServiceCache:
    """A copy of what is registered, kept level by a watch. Made by ``RegistryClient.cache``.

    While the registry is away it goes on with what it last knew; ``age`` says how old that is. Nothing is raised then.
    Messages are shared: do not change them. ``resolve``, ``find`` and ``get`` may be called from any thread.
    """

    def __init__(
        self,
        watch: Watch,
        backoff: Backoff,
        *,
        policy: Policy,
        fallback: tuple[HealthStatus.ValueType, ...],
        patience: float,
    ) -> None:
        self._watch = watch
        self._backoff = backoff
        self._policy = policy
        self._fallback = fallback
        self._patience = patience
        # Held while these are changed, and while what follows from them is made; a pick that is ready needs no lock.
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {}
        self._by_capability: dict[str, dict[str, Service]] = {}
        self._pools: dict[Question, Pool] = {}
        self._asked_by_capability: dict[str, set[Question]] = {}
        self._pickers: dict[tuple[object, ...], Callable[[], Service]] = {}
        self._times = ResponseTimes()
        self._listeners: Listeners[Event] = Listeners()
        self._ready = asyncio.Event()
        self._change = asyncio.Event()
        """Set with the next change, which brings a new one."""
        self._task: asyncio.Task[None] | None = None
        self._last_error: RegistryError | None = None

    async def __aenter__(self) -> Self:
        """Begins to follow the registry, and waits for the first snapshot if that is wanted.

        Raises:
            RegistryUnavailable: It did not come in time.
            RegistryError: The registry refuses the watch.
        """
        self._task = asyncio.create_task(self._follow(), name="registry cache")
        if self._patience:
            try:
                await self._first_snapshot(self._task)
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops following. What is known stays readable. Idempotent."""
        if self._task is not None:
            await end(self._task)
        await self._watch.close()

    # State.

    @property
    def ready(self) -> bool:
        """Whether a snapshot has arrived; before that the cache is empty."""
        return self._ready.is_set()

    @property
    def connected(self) -> bool:
        """Whether changes arrive."""
        return self._watch.connected

    @property
    def age(self) -> float:
        """Seconds since the registry was last heard: the state is at most so old. Infinite before the first snapshot.

        While ``connected`` it stays below the bookmark interval (10 s by default), give or take a busy machine.
        """
        return time.monotonic() - self._watch.last_heard if self.ready else float("inf")

    @property
    def last_error(self) -> RegistryError | None:
        """Why no changes arrive; None while they do."""
        return self._last_error or self._watch.last_error

    async def wait_ready(self) -> None:
        """Waits for the first snapshot."""
        await self._ready.wait()

    async def changed(self) -> None:
        """Waits for the next change: ``while not cache.find("summarize"): await cache.changed()``."""
        await self._change.wait()

    def __len__(self) -> int:
        return len(self._services)

    def __contains__(self, name: object) -> bool:
        return name in self._services

    @property
    def services(self) -> Mapping[str, Service]:
        """All that is known, by name; a copy."""
        with self._lock:
            return dict(self._services)

    def get(self, name: str) -> Service | None:
        """The service of a name, if it is known."""
        return self._services.get(name)

    # Picking.

    def resolve(
        self,
        capability: str = "",
        *,
        version: str = "",
        group: str = "",
        environment: str = "",
        labels: Mapping[str, str] | None = None,
        policy: Policy | None = None,
    ) -> Service:
        """Picks a service that is healthy, or where none is, one of a status in ``fallback``.

        Args:
            capability: It offers this.
            version: Version or range (``^1.4``, ``>=1.2 <2``) of that capability; without ``capability``, of the
                service. See ``registry_client.versions`` for the ranges that are understood.
            group: It belongs to this group.
            environment: It runs in this environment.
            labels: It has all of these.
            policy: How to pick; unset = as the cache was made.

        Returns:
            The service; its ``endpoint`` says where it is.

        Raises:
            NoEndpoint: Nobody may be used; the message says why.
            ValueError: ``version`` is not understood.
        """
        if labels is None:
            key: tuple[object, ...] = (capability, version, group, environment, policy)
        else:
            key = (capability, version, group, environment, policy, frozenset(labels.items()))
        pick = self._pickers.get(key)
        if pick is None:
            asked = frozenset(labels.items()) if labels else _NO_LABELS
            question = Question(capability, version, group, environment, asked)
            pick = self._picker(question, policy or self._policy, key)
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
        """All services that match, whatever their health; the arguments are those of ``resolve``.

        Raises:
            ValueError: ``version`` is not understood.
        """
        asked = frozenset(labels.items()) if labels else _NO_LABELS
        with self._lock:
            return self._pool(Question(capability, version, group, environment, asked)).matching

    def observe(self, service: Service, seconds: float) -> None:
        """Tells how long a service took to answer, for ``Policy.LEAST_RESPONSE_TIME``.

        A failure may be told as a long time.

        Args:
            service: As ``resolve`` gave it.
            seconds: How long it took.
        """
        self._times.add(service.name, seconds)

    def on_change(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Calls a function with each event, right after the cache has taken it.

        It runs in the event loop and must not block. What it raises is logged. A snapshot's events come too.

        Returns:
            A function that ends this.
        """
        return self._listeners.add(listener)

    # Inside.

    def _picker(self, question: Question, policy: Policy, key: tuple[object, ...]) -> Callable[[], Service]:
        with self._lock:
            pool = self._pool(question)
            if not pool.usable:
                raise pool.refuse(question)
            if len(self._pickers) >= _MOST_KEPT:
                self._drop(list(self._asked_by_capability))
                pool = self._pool(question)
            pool.keys.append(key)
            pick = self._pickers[key] = pool.picker(policy)
            return pick

    def _pool(self, question: Question) -> Pool:
        pool = self._pools.get(question)
        if pool is None:
            capability = question.capability
            candidates = self._by_capability.get(capability, {}) if capability else self._services
            pool = Pool(filter(matches(question), candidates.values()), self._fallback, self._times)
            if len(self._pools) >= _MOST_KEPT:
                self._drop(list(self._asked_by_capability))
            self._pools[question] = pool
            self._asked_by_capability.setdefault(capability, set()).add(question)
        return pool

    def _drop(self, capabilities: Iterable[str]) -> None:
        """Drops what is kept for questions about these capabilities."""
        for capability in capabilities:
            for question in self._asked_by_capability.pop(capability, ()):
                for key in self._pools.pop(question).keys:
                    self._pickers.pop(key, None)

    async def _first_snapshot(self, follower: asyncio.Task[None]) -> None:
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait((ready, follower), timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(ready)
        if follower.done():
            follower.result()  # raises: it ends in no other way before the first snapshot
        if not self.ready:
            raise RegistryUnavailable(f"no snapshot came in {self._patience:g} s: {self.last_error}")

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                events = await self._watch.next_events()
            except RegistryError as error:
                if not self.ready and self._patience:
                    raise  # whoever opens the cache waits, and is told
                log.warning("the registry refuses a watch, trying again: %s", error)
                self._last_error = error
                failures += 1
                await asyncio.sleep(self._backoff.delay(failures))
                continue
            failures = 0
            self._last_error = None
            self._take(events)

    def _take(self, events: Iterable[Event]) -> None:
        taken = list(events)
        touched = {""}
        with self._lock:
            for event in taken:
                if event.type in _GONE:
                    touched |= self._put(event.service.name, None)
                elif event.HasField("service"):
                    touched |= self._put(event.service.name, event.service)
            if taken:
                self._drop(touched)
        if self._watch.complete:
            self._ready.set()
        if taken:
            change, self._change = self._change, asyncio.Event()
            change.set()
        for event in taken:
            self._listeners.tell(event)

    def _put(self, name: str, service: Service | None) -> set[str]:
        """Takes the state of one service, None if it is gone; gives the capabilities whose services changed."""
        before = _capabilities(self._services.get(name))
        after = _capabilities(service)
        for capability in before - after:
            offering = self._by_capability[capability]
            del offering[name]
            if not offering:
                del self._by_capability[capability]
        if service is None:
            self._services.pop(name, None)
            self._times.forget(name)
        else:
            self._services[name] = service
            for capability in after:
                self._by_capability.setdefault(capability, {})[name] = service
        return before | after


def _capabilities(service: Service | None) -> set[str]:
    return {each.name for each in service.capabilities} if service else set()
