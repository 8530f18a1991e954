"""``ServiceRegistry``: the use cases. Transports and embedders call this and nothing below it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Self
from urllib.parse import urlsplit

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import (
    Consistency,
    DiscoverServicesRequest,
    GetRegistryHealthResponse,
    ListCapabilitiesResponse,
    RegistryStats,
    WatchEventsRequest,
)
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service, ServiceFilter
from registry_server.audit import Audit, Entry, together
from registry_server.catalog import Capabilities, Discovery, Follower, Replica, Watcher, WatchHub, stats
from registry_server.clock import Clock, timestamp
from registry_server.errors import (
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    RegistryError,
    ServiceExists,
    StoreUnavailable,
    Violation,
)
from registry_server.health import HealthMonitor, HealthReports
from registry_server.listeners import Listeners
from registry_server.model import normal, requests
from registry_server.model.filters import compile_filter
from registry_server.model.record import Record
from registry_server.model.tokens import encode_page_token
from registry_server.model.validation import (
    details_violations,
    error_text_violations,
    name_violations,
    service_violations,
    status_violations,
    update_mask_violations,
)
from registry_server.model.wire import only_field
from registry_server.probes import NetworkPolicy
from registry_server.security.identity import Claim, current_identity
from registry_server.store import LARGEST_GROUP, Conflict, EpochChanged, RedisStore
from registry_server.writes import PATIENCE, Writes, existing

_CAPABILITIES: Final = b"capabilities"
_NAME_TAG: Final = 0x0A
"""Of ``GetServiceRequest.name``: field 1, length-delimited."""
_MOST_WAITING: Final = 2_000
"""Calls that wait for a revision; fewer than there may be calls."""


class ServiceRegistry:
    """Register services, keep them alive, find them, watch them.

    Values are the messages of ``ossa.registry.v1``. Every method raises only ``RegistryError``; those that change
    something raise ``StoreUnavailable`` while Redis is away, those that read go on from memory.
    """

    def __init__(
        self,
        *,
        store: RedisStore,
        replica: Replica,
        discovery: Discovery,
        hub: WatchHub,
        follower: Follower,
        writes: Writes,
        monitor: HealthMonitor,
        reports: HealthReports,
        policy: NetworkPolicy,
        audit: Audit,
        listeners: Listeners,
        clock: Clock,
    ) -> None:
        """Puts the parts together; ``registry_server.app`` makes and owns them.

        Args:
            store: Where changes go.
            replica: Where reads come from.
            discovery: Queries over the replica.
            hub: Watches over the replica.
            follower: Keeps the replica level with the store.
            writes: Makes changes.
            monitor: Probes services.
            reports: Takes and tells health.
            policy: Which addresses an endpoint may have.
            audit: Is told of every change.
            listeners: Calls back for changes.
            clock: Wall clock.
        """
        self._store = store
        self._replica = replica
        self._discovery = discovery
        self._hub = hub
        self._follower = follower
        self._clock = clock
        self._writes = writes
        self._monitor = monitor
        self._reports = reports
        self._policy = policy
        self._audit = audit
        self._listeners = listeners
        self._close: Callable[[], Awaitable[None]] | None = None
        self._capabilities = Capabilities(replica)
        self._waiting = 0  # readers, for a revision

    # Within another program; see ``registry_server.open_registry``.

    def on(self, event: str, callback: Callable[..., Any]) -> Callable[[], None]:
        """Has a function or coroutine function called for every change from now on, in revision order.

        ======================== ==============================================================
        ``service:registered``   ``callback(service)``
        ``service:updated``      ``callback(service)``
        ``service:unregistered`` ``callback(name)``
        ``service:health:changed`` ``callback(name, before, after)``, values of ``HealthStatus``
        ``registry:error``       ``callback(error)``
        ======================== ==============================================================

        One that raises is logged and goes on being called. Changes do not wait for callbacks; too many that wait are
        dropped, and ``registry:error`` tells it by a ``WatcherTooSlow``.

        Returns:
            A function that ends it.

        Raises:
            ValueError: There is no such event.
        """
        return self._listeners.add(event, callback)

    async def close(self) -> None:
        """Ends a registry that ``open_registry`` gave, and all that it runs. May be called again."""
        if self._close is not None:
            await self._close()

    def closes_by(self, close: Callable[[], Awaitable[None]]) -> None:
        """Says what ends it; for whoever made the parts."""
        self._close = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Registration.

    async def register(self, service: Service, *, create_only: bool = False) -> Service:
        """Registers a service or takes its new content; renews its lease.

        Raises:
            InvalidRequest: The service breaks the contract.
            ServiceExists: With ``create_only``, the name is taken.
            WriteConflict: Others changed it each time.
        """
        with self._audit.change("register", service.name) as entry:
            requests.refuse(self._violations(service))
            return await self._register(service, entry, create_only=create_only)

    async def _register(self, service: Service, entry: Entry, *, create_only: bool = False) -> Service:
        async def attempt(current: Record | None) -> Service | Conflict | EpochChanged:
            entry.before = current.revision if current else None
            if current is not None and create_only:
                raise ServiceExists(service.name)
            before = current.message() if current else None
            now = self._now()
            after = normal.registered(service, before, now)
            if before is not None and after == before:
                return await self._writes.touch(before, renew=True, claim=claim)
            type_ = normal.update_type(before, after) if before else EventType.EVENT_TYPE_SERVICE_REGISTERED
            return await self._writes.put(before, normal.stamped(after, now), type_, renew=True, claim=claim)

        claim = _claim_on(service.name)
        registered = await self._writes.write(service.name, attempt)
        entry.after = registered.revision
        return registered

    async def register_batch(self, services: Sequence[Service]) -> list[Service | RegistryError]:
        """Registers many services; each stands alone, in order.

        Raises:
            InvalidRequest: There are none, or too many.
            Overloaded: They are too many beside the writes that are under way.
        """
        if not 1 <= len(services) <= requests.LARGEST_BATCH:
            with self._audit.change("register", ""):
                raise InvalidRequest(
                    [Violation("services", f"has {len(services)} services; 1 to {requests.LARGEST_BATCH} are taken")]
                )

        self._writes.must_have_room(len(services))
        # Before the first is written: the same code many times in a row takes half the time.
        violations = [self._violations(service, f"services[{i}]") for i, service in enumerate(services)]

        async def one(service: Service, found: list[Violation]) -> Service | RegistryError:
            try:
                with self._audit.change("register", service.name) as entry:
                    requests.refuse(found)
                    return await self._register(service, entry)
            except RegistryError as error:
                return error

        # They share round trips; the same name twice cannot overtake itself, since writes to a name take turns.
        # While the store commits some, the next are prepared.
        tasks: list[asyncio.Task[Service | RegistryError]] = []
        with together():
            async with asyncio.TaskGroup() as group:
                for i, each in enumerate(zip(services, violations, strict=True), 1):
                    tasks.append(group.create_task(one(*each)))
                    if i % LARGEST_GROUP == 0:
                        await asyncio.sleep(0)
        return [task.result() for task in tasks]

    async def update_service(
        self, service: Service, mask: FieldMask | None = None, *, expected_revision: int = 0
    ) -> Service:
        """Changes the fields in ``mask`` to what they are in ``service``; see ``UpdateServiceRequest``.

        Raises:
            InvalidRequest: The mask, or what would come of it, breaks the contract.
            ServiceNotFound: No such service.
            RevisionMismatch: It is not at ``expected_revision`` (0 = any).
            WriteConflict: Others changed it each time.
        """
        mask = mask or FieldMask()

        async def attempt(current: Record | None) -> Service | Conflict | EpochChanged:
            entry.before = current.revision if current else None
            before = existing(service.name, current, expected_revision).message()
            now = self._now()
            after = normal.updated(service, mask, before, now)
            violations = service_violations(after)
            if after.endpoint != before.endpoint:
                violations += self._endpoint_violations(after, violations)
            requests.refuse(violations)
            if after == before:  # asked of the store all the same: what this process knows may be old
                return await self._writes.touch(before, renew=False, claim=claim)
            type_ = normal.update_type(before, after)
            return await self._writes.put(before, normal.stamped(after, now), type_, renew=False, claim=claim)

        with self._audit.change("update", service.name) as entry:
            violations = name_violations(service.name, "service.name") + update_mask_violations(mask)
            requests.check_not_negative(expected_revision, "expected_revision", violations)
            requests.refuse(violations)
            claim = _claim_on(service.name)
            updated = await self._writes.write(service.name, attempt)
            entry.after = updated.revision
        return updated

    async def unregister(self, name: str, *, expected_revision: int = 0) -> Service:
        """Removes a service and gives its last state.

        Raises:
            ServiceNotFound: No such service.
            RevisionMismatch: It is not at ``expected_revision`` (0 = any).
            WriteConflict: Others changed it each time.
        """

        async def attempt(current: Record | None) -> Service | Conflict | EpochChanged:
            entry.before = current.revision if current else None
            return await self._writes.delete(existing(name, current, expected_revision), claim)

        with self._audit.change("unregister", name) as entry:
            violations = name_violations(name, "name")
            requests.check_not_negative(expected_revision, "expected_revision", violations)
            requests.refuse(violations)
            claim = _claim_on(name)
            return await self._writes.write(name, attempt)

    # Leases and health.

    async def heartbeat(self, names: Sequence[str]) -> tuple[int, list[str]]:
        """Renews leases.

        Returns:
            How many were renewed, and the names that are not registered, in the order given.
        """
        requests.check_names(names)
        self._writes.must_be_loaded()
        distinct = list(dict.fromkeys(names))
        claim = _claim_on(*distinct)
        unknown = await self._store.renew(distinct, claim)
        if any(name in self._replica.records for name in unknown):
            # Expired a moment ago; or the store has lost them, and whoever beats need not hear of that.
            await self._writes.level()
            unknown = await self._store.renew(unknown, claim)
        return len(distinct) - len(unknown), unknown

    async def restore_documents(self, names: Sequence[str]) -> None:
        """Writes the JSON documents of services again that Redis dropped before their lease was renewed or moved."""
        records = [record for name in names if (record := self._replica.records.get(name))]
        async with asyncio.TaskGroup() as group:
            for record in records:
                group.create_task(self._restore_document(record))

    async def _restore_document(self, record: Record) -> None:
        # One that has changed meanwhile, or meets a store that is away, is asked for again at the next sweep.
        with suppress(StoreUnavailable):
            await self._writes.touch(record.message(), renew=False, confirm=False)

    async def health(self, name: str) -> tuple[Health, Timestamp | None]:
        """Gives the newest health of a service and the end of its lease (``None``: permanent, or the store is away).

        Raises:
            ServiceNotFound: No such service.
        """
        return await self._reports.newest(await self.get(name))

    async def report_health(
        self, name: str, status: HealthStatus.ValueType, details: Struct | None, error: str
    ) -> Health:
        """Takes a reported status; an event only if it differs.

        Raises:
            InvalidRequest: The report breaks the contract.
            ServiceNotFound: No such service.
            WriteConflict: Others changed it each time.
        """
        with self._audit.change("report_health", name) as entry:
            violations = name_violations(name, "name") + error_text_violations(error, "error")
            violations += status_violations(status, "status")
            if details is not None:
                violations += details_violations(details, "details")
            requests.refuse(violations)
            claim = _claim_on(name)
            health = Health(status=status, details=details, error=error)
            return await self._reports.take(name, health, entry, claim)

    async def check_health(self, name: str) -> Health:
        """Probes a service now, by its own settings; the result counts like that of any other probe.

        A service that is not probed is answered as it is.

        Raises:
            ServiceNotFound: No such service.
            ProbingDisabled: This server does not probe.
        """
        record = await self.get(name)
        await self._reports.refuse_if_of_another(name, _claim_on(name))
        health = await self._monitor.check_now(record)
        if health is None:
            return (await self.health(name))[0]
        if not health.HasField("status_changed_at"):
            health.status_changed_at.CopyFrom(record.message().health.status_changed_at)
        return health

    async def start_health_monitoring(self) -> None:
        """Begins to probe services; other processes leave this one its share. Does nothing if it does already.

        Raises:
            StoreUnavailable: What is registered is not known yet.
        """
        self._writes.must_be_loaded()
        await self._monitor.start()

    async def stop_health_monitoring(self) -> None:
        """Ends it; other processes take over the services of this one."""
        await self._monitor.stop()

    async def cleanup(self) -> list[str]:
        """Removes services whose lease has run out; gives their names."""
        removed: list[str] = []
        try:
            with self._audit.change("cleanup", ""):  # a line of its own only if it fails
                self._writes.must_be_loaded()
                while True:
                    sweep = await self._store.sweep(EventReason.EVENT_REASON_CLEANUP, self._replica.position)
                    removed += sweep.removed
                    if not sweep.removed:
                        break
                if removed:
                    await self._writes.level()
        finally:
            self._audit.removed("cleanup", removed)
        return removed

    # Reading.

    async def get(self, name: str, *, min_revision: int = 0, within: float = PATIENCE) -> Record:
        """Reads a service.

        Args:
            name: Its name.
            min_revision: Wait for this revision.
            within: Seconds to wait at the most.

        Raises:
            ServiceNotFound: No such service.
            RevisionNotReached: ``min_revision`` did not come in time.
        """
        record = self._replica.records.get(name)
        if record is not None and 0 <= min_revision <= self._replica.revision:
            return record
        violations = name_violations(name, "name")
        requests.check_not_negative(min_revision, "min_revision", violations)
        requests.refuse(violations)
        self._writes.must_be_loaded()
        await self._reached(min_revision, within)
        return existing(name, self._replica.records.get(name))

    def ready_service(self, request: bytes) -> bytes | None:
        """Gives the answer to a serialised ``GetServiceRequest`` of a name alone, if there is such a service."""
        name = only_field(request, _NAME_TAG)
        try:
            record = self._replica.records.get(name.decode()) if name else None
        except UnicodeDecodeError:
            return None
        return record.framed if record else None

    def ready_answer(self, request: bytes) -> bytes | None:
        """Gives the ready answer to a serialised ``DiscoverServicesRequest``, if there is one."""
        return self._discovery.ready(request)

    def ready_page(self, request: bytes) -> bytes | None:
        """Gives the same without revision and ``stale``, and as one object as long as no change touches it."""
        return self._discovery.ready_page(request)

    async def discover_page(
        self, request: DiscoverServicesRequest, *, wire: bytes | None = None, within: float = PATIENCE
    ) -> bytes:
        """Finds services.

        Args:
            request: What is wanted.
            wire: ``request`` serialised, if ``ready_answer`` may answer its like from now on.
            within: Seconds to wait for a revision at the most.

        Returns:
            A serialised ``DiscoverServicesResponse``.

        Raises:
            RevisionNotReached: The wanted revision did not come in time.
        """
        violations: list[Violation] = []
        filter_ = compile_filter(request.filter, "filter", violations)
        size = requests.page_size(request.page_size, violations)
        after = requests.page_start(filter_.key, request.page_token, violations)
        requests.check_not_negative(request.min_revision, "min_revision", violations)
        if request.consistency not in Consistency.values():
            violations.append(Violation("consistency", f"{request.consistency} is not a Consistency"))
        requests.refuse(violations)
        self._writes.must_be_loaded()
        if request.consistency == Consistency.CONSISTENCY_STRONG:
            await self._reached(await self._writes.head(), within)
        await self._reached(request.min_revision, within)
        plain = not request.min_revision and request.consistency != Consistency.CONSISTENCY_STRONG
        return await self._discovery.answer(filter_, size, after, wire if plain else None)

    async def discover(self, filter_: ServiceFilter | None = None) -> list[Service]:
        """Finds all services that match, ordered by name."""
        violations: list[Violation] = []
        compiled = compile_filter(filter_ or ServiceFilter(), "filter", violations)
        requests.refuse(violations)
        self._writes.must_be_loaded()
        names = await self._discovery.matching(compiled)
        return [self._replica.records[name].message() for name in names]

    async def watch(self, request: WatchEventsRequest) -> Watcher:
        """Begins a watch; iterate over the watcher within ``with``.

        Raises:
            CursorExpired: What came after the cursor is no longer all at hand.
            ShuttingDown: The server drains.
        """
        violations: list[Violation] = []
        filter_ = compile_filter(request.filter, "filter", violations)
        requests.check_types(request.types, violations)
        cursor = requests.cursor(request.cursor, violations)
        wanted = request.bookmark_interval if request.HasField("bookmark_interval") else None
        interval = requests.bookmark_interval(wanted, violations)
        requests.refuse(violations)
        self._writes.must_be_loaded()
        return await self._hub.join(
            filter_,
            types=request.types,
            cursor=cursor,
            snapshot=request.include_snapshot,
            bookmark_interval=interval,
        )

    def list_capabilities(self, page_size: int = 0, page_token: str = "") -> ListCapabilitiesResponse:
        """Lists the distinct capabilities, ordered by name."""
        violations: list[Violation] = []
        size = requests.page_size(page_size, violations)
        after = requests.page_start(_CAPABILITIES, page_token, violations)
        requests.refuse(violations)
        self._writes.must_be_loaded()
        summaries, more = self._capabilities.page(after, size)
        token = encode_page_token(_CAPABILITIES, summaries[-1].name) if more else ""
        return ListCapabilitiesResponse(capabilities=summaries, next_page_token=token)

    def get_stats(self) -> RegistryStats:
        """Counts what is registered."""
        self._writes.must_be_loaded()
        return stats(self._replica)

    def registry_health(self) -> GetRegistryHealthResponse:
        """Tells how the registry is; never raises."""
        counts = stats(self._replica)
        if not self._follower.loaded:
            status = HealthStatus.HEALTH_STATUS_UNHEALTHY
        elif counts.unhealthy_services or not self._follower.connected:
            status = HealthStatus.HEALTH_STATUS_DEGRADED
        else:
            status = HealthStatus.HEALTH_STATUS_HEALTHY
        health = GetRegistryHealthResponse(
            status=status,
            checked_at=self._now(),
            stats=counts,
            store_connected=self._follower.connected,
            revision=self._replica.revision,
        )
        health.replication_lag.FromMilliseconds(round(self._follower.lag * 1000))
        return health

    async def _reached(self, revision: int, within: float) -> None:
        """Waits for a revision on account of a reader, who may ask for any and wait for long."""
        if revision <= self._replica.revision:
            return
        if self._waiting >= _MOST_WAITING:
            raise Overloaded("waits", _MOST_WAITING, f"{_MOST_WAITING} calls wait for a revision here")
        self._waiting += 1
        try:
            await self._replica.reached(revision, within)
        finally:
            self._waiting -= 1

    def _violations(self, service: Service, at: str = "service") -> list[Violation]:
        found = service_violations(service, at)
        return found + self._endpoint_violations(service, found, at)

    def _endpoint_violations(
        self, service: Service, found: Sequence[Violation], at: str = "service"
    ) -> list[Violation]:
        """Whether a probe may go to an endpoint, as far as it tells; a DNS name is judged when it is resolved."""
        if any(violation.field == f"{at}.endpoint" for violation in found):
            return []
        refusal = self._policy.refuses_literal(urlsplit(service.endpoint).hostname or "")
        return [Violation(f"{at}.endpoint", f"{refusal} by the settings of this registry")] if refusal else []

    def _now(self) -> Timestamp:
        return timestamp(self._clock())


def _claim_on(*names: str) -> Claim:
    """On whose account the caller writes services of these names.

    Raises:
        PermissionDenied: One is not a name that the caller may have.
    """
    identity = current_identity.get()
    refused = next((name for name in names if not identity.may_have(name)), None)
    if refused is not None:
        raise PermissionDenied(f"{refused!r} is not a name that this identity may have")
    return identity.claim()
