"""``HealthReports``: what agents and operators say of a service, and the newest that is known of it."""

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
    """Takes reports and tells the newest health, be it reported or probed, by this process or another."""

    def __init__(
        self, *, store: RedisStore, follower: Follower, writes: Writes, results: ResultWriter, clock: Clock
    ) -> None:
        self._store = store
        self._follower = follower
        self._writes = writes
        self._results = results
        self._clock = clock

    async def newest(self, record: Record) -> tuple[Health, Timestamp | None]:
        """Gives the newest health of a service and the end of its lease (``None``: permanent, or the store is away)."""
        health = record.message().health
        if not self._follower.connected:
            return health, None
        try:
            wire, lease_ends = await self._store.reader.read_check(record.name)
        except StoreUnavailable:
            return health, None
        if wire is not None:
            check = Health.FromString(wire)
            # A check that was written just before a transition tells of the time before it. Not compared with the time
            # of the check that the transition came with: a registration may have given any.
            since = health.status_changed_at
            if check.status == health.status and _nanoseconds(check.last_check) >= _nanoseconds(since):
                check.status_changed_at.CopyFrom(since)
                health = check
        return health, None if lease_ends is None else timestamp(lease_ends * 1_000_000)

    async def take(self, name: str, reported: Health, entry: AuditEntry, claim: Claim = NO_CLAIM) -> Health:
        """Takes a report, valid and of now; commits it if the status differs, else only keeps it.

        Args:
            name: The service.
            reported: What is said of it.
            entry: Is told the revisions before and after.
            claim: Whose the service has to be.

        Raises:
            PermissionDenied: The service is not that of the claim.
            ServiceNotFound: No such service.
            WriteConflict: Others changed it each time.
            StoreUnavailable: Redis does not answer.
        """

        async def attempt(current: Record | None) -> Health | Conflict | EpochChanged:
            before = require_existing(name, current).message()
            entry.before = entry.after = before.revision
            now = timestamp(self._clock())
            reported.last_check.CopyFrom(now)
            after = normal.replace_health(before, reported, now)
            if after.health.status == before.health.status:
                await self.refuse_if_of_another(name, claim)
                self._results.discard(name)  # a result that still waits is older
                check = after.health.SerializeToString()
                return await self._store.writer.write_check(name, check, expected=before.revision) or after.health
            outcome = await self._writes.write_service(
                before,
                normal.set_change_time(after, now),
                EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED,
                reason=EventReason.EVENT_REASON_HEALTH_REPORT,
                renew=False,
                claim=claim,
            )
            if not isinstance(outcome, Service):
                return outcome
            entry.after = outcome.revision
            return outcome.health

        return await self._writes.change_service(name, attempt)

    async def refuse_if_of_another(self, name: str, claim: Claim) -> None:
        """Refuses who may not speak for a service; a change asks in its own script, what is no change asks here.

        Raises:
            PermissionDenied: The service is not that of the claim.
        """
        if claim.exclusive and await self._store.reader.read_owner(name) not in {None, claim.owner}:
            raise PermissionDenied(owned_by_another(name))


def _nanoseconds(time: Timestamp) -> int:
    return time.seconds * 1_000_000_000 + time.nanos
