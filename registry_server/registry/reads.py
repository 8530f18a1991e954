"""``RegistryReads``: the use cases that read."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.registry_service_pb2 import (
    Consistency,
    DiscoverServicesRequest,
    GetRegistryHealthResponse,
    ListCapabilitiesResponse,
    RegistryStats,
    WatchEventsRequest,
)
from ossa.registry.v1.service_pb2 import HealthStatus, Service, ServiceFilter
from ossa_common.cursors import decode_cursor
from ossa_common.json_shape import enum_word
from ossa_common.json_writer import time_text
from ossa_common.violations import Violation
from registry_server.catalog import Capabilities, Discovery, Page, PageKey, Replica, Statistics, registry_stats
from registry_server.errors import Removal, ServiceNotFound
from registry_server.model import requests, rules
from registry_server.model.filters import EVERYTHING, Filter, compile_filter
from registry_server.model.record import Record
from registry_server.model.tokens import encode_page_token
from registry_server.model.validation import name_violations
from registry_server.model.wire import bytes_field, only_field
from registry_server.replication import REPLICA_WAIT_SECONDS, Follower, Writes, require_existing
from registry_server.runtime.clock import Clock, timestamp
from registry_server.security.identity import Role, current_identity
from registry_server.watch import Watcher, WatchHub

_CAPABILITIES_PAGE_SCOPE: Final = b"capabilities"
_SERVICE: Final = 1
"""Number of the field ``service`` in responses."""
_GET_SERVICE_NAME_TAG: Final = 0x0A
"""Tag of ``GetServiceRequest.name``: field 1, length-delimited."""


class RegistryReads:
    """Reads, answered from memory while the store is unavailable."""

    def __init__(
        self,
        *,
        replica: Replica,
        discovery: Discovery,
        hub: WatchHub,
        follower: Follower,
        writes: Writes,
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._discovery = discovery
        self._hub = hub
        self._follower = follower
        self._writes = writes
        self._clock = clock
        self.slices = discovery.slices
        """Runs long computations of all callers."""
        self._capabilities = Capabilities(replica, self.slices)
        self._statistics = Statistics(replica, discovery)

    async def get(self, name: str, *, min_revision: int = 0, wait_seconds: float = REPLICA_WAIT_SECONDS) -> Record:
        """Return a service.

        Args:
            name: Name of the service.
            min_revision: Wait until this process has applied this revision.
            wait_seconds: Seconds to wait for it.

        Raises:
            ServiceNotFound: No such service.
            RevisionNotReached: ``min_revision`` was not applied in time.
        """
        try:
            record = self._replica.records.get(name)
            if record is not None and self._follower.loaded and 0 <= min_revision <= self._replica.revision:
                return require_existing(name, record)
            return await self._get_at_revision(name, min_revision, wait_seconds)
        except ServiceNotFound:
            raise ServiceNotFound(name, self._find_removal(name)) from None

    async def _get_at_revision(self, name: str, min_revision: int, wait_seconds: float) -> Record:
        violations = name_violations(name, "name")
        requests.check_not_negative(min_revision, "min_revision", violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        await self._replica.wait_for_client(min_revision, wait_seconds)
        return require_existing(name, self._replica.records.get(name))

    def _find_removal(self, name: str) -> Removal | None:
        """Return when and why a service left that the caller saw."""
        change = self._replica.tombstones.get(name)
        if change is None or change.before is None or not current_identity.get().sees(change.before):
            return None
        word = enum_word(EventReason.DESCRIPTOR, change.reason)
        return Removal(change.revision, time_text(timestamp(change.at_ms * 1_000_000)), word)

    def cached_service(self, request: bytes) -> Record | None:
        """Return the service of a serialised ``GetServiceRequest`` with only a known name; ``None`` for any other."""
        name = only_field(request, _GET_SERVICE_NAME_TAG)
        if not name or not self._follower.loaded:
            return None
        try:
            record = self._replica.records.get(name.decode())
        except UnicodeDecodeError:
            return None
        return record if record is not None and current_identity.get().sees(record) else None

    def frame_service(self, service: Service) -> bytes:
        """Return a registered service as field 1 of a response: the bytes of its record, unless it changed since."""
        record = self._replica.records.get(service.name)
        if record is not None and record.revision == service.revision:
            return record.framed
        return bytes_field(_SERVICE, service.SerializeToString())

    def cached_page(self, key: PageKey) -> Page | None:
        """Return the page kept under a key, unless a change has affected it since."""
        return self._discovery.cached_page(self._scoped(key))

    def keep_page(self, key: PageKey, page: Page) -> None:
        """Let ``cached_page`` return a page until a change affects it, to callers that see the same services."""
        self._discovery.keep_page(self._scoped(key), page)

    def _scoped(self, key: PageKey) -> PageKey:
        """Return the key under which a page for callers that see the same services as this one is kept."""
        if not (scope := current_identity.get().scope):
            return key
        # Of fixed length, so that no caller can form a key of another scope.
        return scope + key if isinstance(key, str) else scope.encode() + key

    async def find_page(
        self,
        request: DiscoverServicesRequest,
        *,
        wire: bytes | None = None,
        wait_seconds: float = REPLICA_WAIT_SECONDS,
    ) -> Page:
        """Return a page of matching services.

        Args:
            request: Filter, page and consistency.
            wire: The serialised ``request``, if ``cached_page`` may answer identical requests from now on.
            wait_seconds: Seconds to wait for the requested revision.

        Raises:
            RevisionNotReached: The requested revision was not applied in time.
        """
        violations: list[Violation] = []
        filter_ = _compile(request.filter, violations)
        size = requests.page_size(request.page_size, violations)
        after = requests.page_start(self._replica.secret, filter_.key, request.page_token, violations)
        requests.check_not_negative(request.min_revision, "min_revision", violations)
        if request.consistency not in Consistency.values():
            violations.append(Violation("consistency", f"{request.consistency} is not a Consistency"))
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        strong = request.consistency == Consistency.CONSISTENCY_STRONG
        if strong:
            await self._replica.wait_for_client(await self._writes.read_head(), wait_seconds)
        await self._replica.wait_for_client(request.min_revision, wait_seconds)
        page = await self._discovery.find_page(filter_, size, after)
        if wire is not None and not request.min_revision and not strong:
            self.keep_page(wire, page)
        return page

    async def discover(self, filter_: ServiceFilter | None = None) -> list[Service]:
        """Return all matching services, ordered by name."""
        violations: list[Violation] = []
        compiled = _compile(filter_ or ServiceFilter(), violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        names = await self._discovery.matching_names(compiled)
        return [self._replica.records[name].message() for name in names]

    async def watch(self, request: WatchEventsRequest) -> Watcher:
        """Open a watch; use the watcher as a context manager and iterate over it.

        Raises:
            CursorExpired: The changes after the cursor are no longer all kept.
            ShuttingDown: The server is draining.
        """
        violations: list[Violation] = []
        filter_ = _compile(request.filter, violations)
        requests.check_types(request.types, violations)
        cursor = rules.parse_optional(decode_cursor, request.cursor, "cursor", violations)
        wanted = request.bookmark_interval if request.HasField("bookmark_interval") else None
        interval = requests.bookmark_interval(wanted, violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        return await self._hub.open_watch(
            filter_,
            types=request.types,
            cursor=cursor,
            snapshot=request.include_snapshot,
            bookmark_interval=interval,
        )

    async def list_capabilities(self, page_size: int = 0, page_token: str = "") -> ListCapabilitiesResponse:
        """Return a page of the distinct capabilities, ordered by name."""
        violations: list[Violation] = []
        size = requests.page_size(page_size, violations)
        identity = current_identity.get()
        scope = _CAPABILITIES_PAGE_SCOPE + identity.scope.encode()
        after = requests.page_start(self._replica.secret, scope, page_token, violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        summaries, has_more = await self._capabilities.page(after, size, identity.restrict(EVERYTHING))
        token = encode_page_token(self._replica.secret, scope, summaries[-1].name) if has_more else ""
        return ListCapabilitiesResponse(capabilities=summaries, next_page_token=token)

    def get_stats(self) -> RegistryStats:
        """Return counts of all registered services, for programs that embed the registry."""
        self._writes.require_loaded()
        return registry_stats(self._replica)

    async def visible_stats(self) -> RegistryStats:
        """Return counts of the services that the caller sees."""
        self._writes.require_loaded()
        return await self._statistics.count(current_identity.get().restrict(EVERYTHING))

    def visible_owner(self, name: str) -> str:
        """Return the owner of a service if the caller is the owner or an operator; otherwise an empty string."""
        owner, identity = self._replica.owners.get(name, ""), current_identity.get()
        return owner if identity.role >= Role.OPERATOR or identity.name == owner else ""

    async def visible_health(self) -> GetRegistryHealthResponse:
        """Return the health of the registry, as far as the caller sees its services; never raises."""
        return self.registry_health(await self._statistics.count(current_identity.get().restrict(EVERYTHING)))

    async def visible_status(self) -> tuple[HealthStatus.ValueType, RegistryStats]:
        """Return the status and counts of ``visible_health``; never raises."""
        counts = await self._statistics.count(current_identity.get().restrict(EVERYTHING))
        return self._status(counts), counts

    def _status(self, counts: RegistryStats) -> HealthStatus.ValueType:
        if not self._follower.loaded:
            return HealthStatus.HEALTH_STATUS_UNHEALTHY
        if counts.unhealthy_services or not self._follower.connected:
            return HealthStatus.HEALTH_STATUS_DEGRADED
        return HealthStatus.HEALTH_STATUS_HEALTHY

    def registry_health(self, counts: RegistryStats | None = None) -> GetRegistryHealthResponse:
        """Return the health of the registry; never raises.

        Args:
            counts: Counts of the services that the caller sees; ``None`` = it sees all.
        """
        counts = counts or registry_stats(self._replica)
        health = GetRegistryHealthResponse(
            status=self._status(counts),
            checked_at=self._now(),
            stats=counts,
            store_connected=self._follower.connected,
            revision=self._replica.revision,
        )
        health.replication_lag.FromMilliseconds(round(self._follower.lag * 1000))
        return health

    def _now(self) -> Timestamp:
        return timestamp(self._clock())


def _compile(filter_: ServiceFilter, violations: list[Violation]) -> Filter:
    """Compile the filter of a request, joined with what the caller sees."""
    return current_identity.get().restrict(compile_filter(filter_, "filter", violations))
