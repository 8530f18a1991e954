"""``HealthReports``: records statuses that agents and operators report, and returns the newest health."""

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health, Service
from registry_server.errors import PermissionDenied, StoreUnavailable
from registry_server.health.results import ResultWriter
from registry_server.instrumentation.audit import AuditEntry
from registry_server.model import normal
from registry_server.model.record import Record
from registry_server.replication import Follower, Writes
from registry_server.replication.writes import require_existing
from registry_server.runtime.clock import Clock, timestamp
from registry_server.security.identity import NO_CLAIM, Claim, owned_by_another
from registry_server.store import Conflict, EpochChanged, RedisStore


class HealthReports:
    """Records reported statuses and returns the newest health, whether reported or probed by any process."""

    def __init__(
        self, *, store: RedisStore, follower: Follower, writes: Writes, results: ResultWriter, clock: Clock
    ) -> None:
        self._store = store
        self._follower = follower
        self._writes = writes
        self._results = results
        self._clock = clock

    async def newest_health(self, record: Record) -> tuple[Health, Timestamp | None]:
        """Return the newest health of a service and the end of its lease.

        The end is ``None`` for a permanent service and while the store is unavailable.
        """
        health = record.message().health
        if not self._follower.connected:
            return health, None
        try:
            wire, lease_ends = await self._store.reader.read_check(record.name)
        except StoreUnavailable:
            return health, None
        check = None if wire is None else _read_health(wire)
        if check is not None:
            # A check written just before a status change is outdated by it. The check time of that change is no
            # reference, because a registration may set it to any value.
            since = health.status_changed_at
            if check.status == health.status and check.last_check.ToNanoseconds() >= since.ToNanoseconds():
                check.status_changed_at.CopyFrom(since)
                health = check
        return health, None if lease_ends is None else timestamp(lease_ends * 1_000_000)

    async def report(self, name: str, reported: Health, entry: AuditEntry, claim: Claim = NO_CLAIM) -> Health:
        """Record a valid report; commit it if the status changes, otherwise only store it.

        Args:
            name: Name of the service.
            reported: The reported health.
            entry: Audit entry, which receives the revisions before and after.
            claim: Ownership that the caller claims.

        Raises:
            PermissionDenied: The service has another owner.
            ServiceNotFound: The service is not registered.
            WriteConflict: Concurrent changes of the service prevented the commit.
            StoreUnavailable: Redis does not answer.
        """

        async def attempt(current: Record | None) -> Health | Conflict | EpochChanged:
            before = require_existing(name, current).message()
            entry.before = entry.after = before.revision
            now = timestamp(self._clock())
            reported.last_check.CopyFrom(now)
            if reported.status == before.health.status:
                await self.require_owner(name, claim)
                self._results.discard_result(name)  # a pending probe result is older
                health = normal.replace_health(before, reported, now).health
                check = health.SerializeToString()
                return await self._store.writer.write_check(name, check, expected=before.revision) or health
            reason = EventReason.EVENT_REASON_HEALTH_REPORT
            outcome = await self._writes.replace_health(before, reported, now, reason=reason, renew=False, claim=claim)
            if not isinstance(outcome, Service):
                return outcome
            entry.after = outcome.revision
            return outcome.health

        return await self._writes.change_service(name, attempt)

    async def require_owner(self, name: str, claim: Claim) -> None:
        """Check the owner of a service, for writes that are not commits.

        Raises:
            PermissionDenied: The service has another owner.
        """
        if claim.exclusive and await self._store.reader.read_owner(name) not in {None, claim.owner}:
            raise PermissionDenied(owned_by_another(name))


def _read_health(wire: bytes) -> Health | None:
    """Return a stored health, or ``None`` if it is damaged; the next check replaces it."""
    try:
        return Health.FromString(wire)
    except DecodeError:
        return None
