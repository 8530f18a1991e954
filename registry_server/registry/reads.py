"""``RegistryReads``: the use cases that read."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

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
from ossa_common.violations import Violation
from registry_server.catalog import Capabilities, Discovery, Page, PageKey, Replica, registry_stats
from registry_server.model import requests, rules
from registry_server.model.filters import compile_filter
from registry_server.model.record import Record
from registry_server.model.tokens import encode_page_token
from registry_server.model.validation import name_violations
from registry_server.model.wire import only_field
from registry_server.replication import REPLICA_WAIT_SECONDS, Follower, Writes, require_existing
from registry_server.runtime.clock import Clock, timestamp
from registry_server.security.identity import Role, current_identity
from registry_server.watch import Watcher, WatchHub

_CAPABILITIES_PAGE_SCOPE: Final = b"capabilities"
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
        record = self._replica.records.get(name)
        if record is not None and self._follower.loaded and 0 <= min_revision <= self._replica.revision:
            return record
        violations = name_violations(name, "name")
        requests.check_not_negative(min_revision, "min_revision", violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        await self._replica.wait_for_client(min_revision, wait_seconds)
        return require_existing(name, self._replica.records.get(name))

    def cached_service(self, request: bytes) -> Record | None:
        """Return the service of a serialised ``GetServiceRequest`` with only a known name; ``None`` for any other."""
        name = only_field(request, _GET_SERVICE_NAME_TAG)
        if not name or not self._follower.loaded:
            return None
        try:
            return self._replica.records.get(name.decode())
        except UnicodeDecodeError:
            return None

    def cached_page(self, key: PageKey) -> Page | None:
        """Return the page kept under a key, unless a change has affected it since."""
        return self._discovery.cached_page(key)

    def keep_page(self, key: PageKey, page: Page) -> None:
        """Let ``cached_page`` return a page until a change affects it."""
        self._discovery.keep_page(key, page)

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
        filter_ = compile_filter(request.filter, "filter", violations)
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
            self._discovery.keep_page(wire, page)
        return page

    async def discover(self, filter_: ServiceFilter | None = None) -> list[Service]:
        """Return all matching services, ordered by name."""
        violations: list[Violation] = []
        compiled = compile_filter(filter_ or ServiceFilter(), "filter", violations)
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
        filter_ = compile_filter(request.filter, "filter", violations)
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
        after = requests.page_start(self._replica.secret, _CAPABILITIES_PAGE_SCOPE, page_token, violations)
        requests.raise_if_invalid(violations)
        self._writes.require_loaded()
        summaries, has_more = await self._capabilities.page(after, size)
        token = (
            encode_page_token(self._replica.secret, _CAPABILITIES_PAGE_SCOPE, summaries[-1].name) if has_more else ""
        )
        return ListCapabilitiesResponse(capabilities=summaries, next_page_token=token)

    def get_stats(self) -> RegistryStats:
        """Return counts of the registered services."""
        self._writes.require_loaded()
        return registry_stats(self._replica)

    def visible_owner(self, name: str) -> str:
        """Return the owner of a service if the caller is the owner or an operator; otherwise an empty string."""
        owner, identity = self._replica.owners.get(name, ""), current_identity.get()
        return owner if identity.role >= Role.OPERATOR or identity.name == owner else ""

    def registry_health(self) -> GetRegistryHealthResponse:
        """Return the health of the registry; never raises."""
        counts = registry_stats(self._replica)
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

    def _now(self) -> Timestamp:
        return timestamp(self._clock())
