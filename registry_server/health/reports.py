"""``HealthReports``: records statuses that agents and operators report, and returns the newest health."""

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import EventReason, EventType
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

    async def report(
        self,
        name: str,
        reported: Health | None,
        entry: AuditEntry,
        claim: Claim = NO_CLAIM,
        *,
        draining: bool | None = None,
        instance_id: str = "",
    ) -> Health:
        """Record a valid report; commit it if the status or ``draining`` changes, otherwise only store it.

        Args:
            name: Name of the service.
            reported: The reported health; ``None`` = keep it.
            entry: Audit entry, which receives the revisions before and after.
            claim: Ownership that the caller claims.
            draining: The new value of ``Service.draining``; ``None`` = keep it.
            instance_id: Instance that reports; empty = whichever is registered.

        Raises:
            PermissionDenied: The service has another owner.
            ServiceNotFound: The service is not registered.
            InstanceSuperseded: The service belongs to another instance.
            WriteConflict: Concurrent changes of the service prevented the commit.
            StoreUnavailable: Redis does not answer.
        """

        async def attempt(current: Record | None) -> Health | Conflict | EpochChanged:
            before = require_existing(name, current, instance_id=instance_id).message()
            entry.before = entry.after = before.revision
            now = timestamp(self._clock())
            health = reported or before.health
            if reported is not None:
                reported.last_check.CopyFrom(now)
            after = normal.replace_health(before, health, now)
            type_ = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
            if draining is not None and draining != before.draining:
                after.draining = draining
                type_ = EventType.EVENT_TYPE_SERVICE_UPDATED
            elif health.status == before.health.status:
                await self.require_owner(name, claim)
                if reported is None:
                    return health
                self._results.discard_result(name)  # a pending probe result is older
                check = after.health.SerializeToString()
                return await self._store.writer.write_check(name, check, expected=before.revision) or after.health
            outcome = await self._writes.write_service(
                before,
                normal.set_change_time(after, now),
                type_,
                reason=EventReason.EVENT_REASON_HEALTH_REPORT,
                renew=False,
                claim=claim,
            )
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
