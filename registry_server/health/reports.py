"""``HealthReports``: records statuses that agents and operators report, and returns the newest health."""

from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Health, Service
from registry_server.errors import PermissionDenied, StoreUnavailable
from registry_server.health.maintenance import Maintenance, current_health, observed_health
from registry_server.health.results import ResultWriter
from registry_server.instrumentation.audit import AuditEntry
from registry_server.model import normal
from registry_server.model.record import Record
from registry_server.replication import Follower, Writes
from registry_server.replication.writes import require_existing
from registry_server.runtime.clock import Clock, timestamp
from registry_server.security.identity import NO_CLAIM, Claim, owned_by_another
from registry_server.store import CheckChange, Conflict, EpochChanged, RedisStore


class NewestHealth(NamedTuple):
    """The newest health of a service."""

    health: Health
    lease_ends: Timestamp | None
    """End of the lease; ``None`` for a permanent service and while the store is unavailable."""
    observed: Health | None
    """The health by probes and reports; ``None`` during maintenance while the store is unavailable."""


class HealthReports:
    """Records reported statuses and returns the newest health, whether reported or probed by any process."""

    def __init__(
        self,
        *,
        store: RedisStore,
        follower: Follower,
        writes: Writes,
        results: ResultWriter,
        maintenance: Maintenance,
        clock: Clock,
    ) -> None:
        self._store = store
        self._follower = follower
        self._writes = writes
        self._results = results
        self._maintenance = maintenance
        self._clock = clock

    async def newest_health(self, record: Record) -> NewestHealth:
        """Return the newest health of a service and the end of its lease."""
        service = record.message()
        stored, lease_ends = None, None
        available = self._follower.connected
        if available:
            try:
                stored, lease_ends = await self._store.reader.read_check(record.name)
            except StoreUnavailable:
                available = False
        if not available:
            return NewestHealth(service.health, None, None if service.HasField("maintenance") else service.health)
        observed = observed_health(service, stored)
        ends = None if lease_ends is None else timestamp(lease_ends * 1_000_000)
        return NewestHealth(current_health(service, observed), ends, observed)

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
            if reported is not None:
                reported.last_check.CopyFrom(now)

            def change(seen: Service) -> Service:
                after = normal.replace_health(seen, reported or seen.health, now)
                if draining is not None:
                    after.draining = draining
                return after

            after, check = await self._maintenance.apply_change(before, change, reported=True)
            if reported is not None:
                after.health.last_check.CopyFrom(now)
            type_ = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
            if after.draining != before.draining:
                type_ = EventType.EVENT_TYPE_SERVICE_UPDATED
            elif after.health.status == before.health.status:
                await self.require_owner(name, claim)
                if reported is None:
                    return before.health
                self._results.discard_result(name)  # a pending probe result is older
                check = check or CheckChange(after.health.SerializeToString())
                return await self._maintenance.write_check(before, check) or after.health
            outcome = await self._writes.write_service(
                before,
                normal.set_change_time(after, now),
                type_,
                reason=EventReason.EVENT_REASON_HEALTH_REPORT,
                renew=False,
                claim=claim,
                check=check,
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
