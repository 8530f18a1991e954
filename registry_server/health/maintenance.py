"""``Maintenance``: starts and ends the maintenance of services by operators.

While it lasts, the stored status of a service is MAINTENANCE. What probes, reports, registrations and updates observe
is stored as its newest probe result, and becomes its health when the maintenance ends.
"""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.instrumentation.audit import AuditEntry
from registry_server.model import normal
from registry_server.model.record import Record
from registry_server.replication import Writes, require_existing
from registry_server.runtime.clock import Clock, timestamp
from registry_server.security.identity import NO_CLAIM
from registry_server.store import KEEP_CHECK, CheckChange, Conflict, EpochChanged, RedisStore

_MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
_S = TypeVar("_S", Service, Service | None)


class Maintenance:
    """Starts and ends maintenance, and applies changes of services that are in maintenance."""

    def __init__(self, *, store: RedisStore, writes: Writes, clock: Clock) -> None:
        self._store = store
        self._writes = writes
        self._clock = clock

    async def set_maintenance(
        self, name: str, *, enabled: bool, reason: str, operator: str, entry: AuditEntry
    ) -> Service:
        """Start the maintenance of a service, change its reason, or end it.

        Args:
            name: Name of the service.
            enabled: Whether the service is in maintenance afterwards.
            reason: Reason for the maintenance.
            operator: Identity of the caller.
            entry: Audit entry, which receives the revisions before and after.

        Raises:
            ServiceNotFound: The service is not registered.
            WriteConflict: Concurrent changes of the service prevented the commit.
            StoreUnavailable: Redis does not answer.
        """

        async def attempt(current: Record | None) -> Service | Conflict | EpochChanged:
            before = require_existing(name, current).message()
            entry.before = entry.after = before.revision
            now = timestamp(self._clock())
            after, check = before, KEEP_CHECK
            if enabled or before.HasField("maintenance"):
                stored, observed = await self._read_observed(before)
                if enabled:
                    after = _start(before, observed, reason, operator, now)
                    check = CheckChange(observed.SerializeToString(), stored)
                else:
                    after = normal.replace_health(before, observed, now)
                    after.ClearField("maintenance")
                    check = CheckChange(b"", stored)
            return await self._writes.put_service(before, after, now, renew=False, claim=NO_CLAIM, check=check)

        service = await self._writes.change_service(name, attempt)
        entry.after = service.revision
        return service

    async def apply_change(
        self, before: _S, change: Callable[[_S], Service], *, reported: bool = False
    ) -> tuple[Service, CheckChange | None]:
        """Apply a change that an agent makes. During maintenance, it changes the observed health, not the stored one.

        Args:
            before: The registered service, if there is one.
            change: Returns the service after the change.
            reported: Whether the change is a report or a probe. Otherwise the status MAINTENANCE is the one that the
                client has read, and not an observation.

        Returns:
            The new state, and what becomes of the newest probe result; ``None`` = the default of ``write_service``.
        """
        registered: Service | None = before
        if registered is None or not registered.HasField("maintenance"):
            return change(before), None
        stored, observed = await self._read_observed(registered)
        after = change(_with_health(registered, observed))
        if not reported and after.health.status == _MAINTENANCE != observed.status:
            same_place = after.endpoint == registered.endpoint
            after.health.CopyFrom(observed if same_place else Health(status=normal.initial_status(after)))
        check = KEEP_CHECK
        if after.health != observed:
            check = CheckChange(after.health.SerializeToString(), stored)
        return _with_health(after, registered.health), check

    async def observe(
        self, service: Service, observation: Callable[[HealthStatus.ValueType], Health], now: Timestamp
    ) -> Conflict | None:
        """Record the result of a probe of a service in maintenance.

        Args:
            service: The registered service.
            observation: Returns the new health, given the status that was observed before.
            now: Time of the observation.

        Returns:
            A conflict if the service, or what was observed before, has changed in the meantime.
        """

        def change(seen: Service) -> Service:
            return normal.replace_health(seen, observation(seen.health.status), now)

        _, check = await self.apply_change(service, change, reported=True)
        return await self.write_check(service, check or KEEP_CHECK)

    async def write_check(self, service: Service, check: CheckChange) -> Conflict | None:
        """Store the newest probe result of a service without an event."""
        if check.new == "=":
            return None
        return await self._store.writer.write_check(service.name, check.new, expected=service.revision, seen=check.seen)

    async def _read_observed(self, service: Service) -> tuple[bytes, Health]:
        """Return the newest probe result as it is stored, empty if there is none, and the observed health."""
        stored, _ = await self._store.reader.read_check(service.name)
        return stored or b"", observed_health(service, stored)


def observed_health(service: Service, stored: bytes | None) -> Health:
    """Return the newest health of a service that was probed or reported.

    Args:
        service: The registered service.
        stored: Its newest probe result as it is stored, if there is one.
    """
    check = None if stored is None else _read_health(stored)
    health = service.health
    if service.HasField("maintenance") and health.status == _MAINTENANCE:
        # Redis does not hold it any more if it lost data during the maintenance.
        return check or Health(status=normal.initial_status(service))
    # A check written just before a status change is outdated by it. The check time of that change is no reference,
    # because a registration may set it to any value.
    since = health.status_changed_at
    if check is None or check.status != health.status or check.last_check.ToNanoseconds() < since.ToNanoseconds():
        return health
    check.status_changed_at.CopyFrom(since)
    return check


def current_health(service: Service, observed: Health) -> Health:
    """Return the newest health of a service, given the observed one."""
    if not service.HasField("maintenance"):
        return observed
    health = Health()
    health.CopyFrom(service.health)
    if observed.HasField("last_check"):
        health.last_check.CopyFrom(observed.last_check)
    return health


def _start(before: Service, observed: Health, reason: str, operator: str, now: Timestamp) -> Service:
    """Return the service in maintenance; only the reason changes if it is in maintenance already."""
    health = Health(status=_MAINTENANCE, error=reason)
    last_check = before.health if before.HasField("maintenance") else observed
    if last_check.HasField("last_check"):
        health.last_check.CopyFrom(last_check.last_check)
    after = normal.replace_health(before, health, now)
    if not after.HasField("maintenance"):
        after.maintenance.since.CopyFrom(now)
        after.maintenance.by = operator
    after.maintenance.reason = reason
    return after


def _with_health(service: Service, health: Health) -> Service:
    copy = Service()
    copy.CopyFrom(service)
    copy.health.CopyFrom(health)
    return copy


def _read_health(wire: bytes) -> Health | None:
    """Return a stored health, or ``None`` if it is damaged; the next check replaces it."""
    try:
        return Health.FromString(wire)
    except DecodeError:
        return None
