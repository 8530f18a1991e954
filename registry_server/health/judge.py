"""``Judge``: what follows from the result of a probe."""

import time
from typing import cast

import structlog

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.catalog import Replica
from registry_server.clock import Clock, timestamp
from registry_server.errors import RegistryError
from registry_server.health.probes import Outcome, OutcomeKind, Plan
from registry_server.health.protection import Protection
from registry_server.health.results import ResultWriter
from registry_server.health.thresholds import Streak
from registry_server.model import normal
from registry_server.model.record import Record
from registry_server.store import Conflict, EpochChanged
from registry_server.writes import Writes

UP = frozenset({HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_DEGRADED})
"""Statuses of services that are believed to work."""

log = structlog.get_logger(__name__)


class Judge:
    """Turns results into statuses by the thresholds of each service, unless this process doubts itself.

    A transition is committed like any change; every other result is only kept, without a revision.
    """

    def __init__(
        self, *, replica: Replica, writes: Writes, results: ResultWriter, protection: Protection, clock: Clock
    ) -> None:
        self.protection = protection
        self._replica = replica
        self._writes = writes
        self._results = results
        self._clock = clock
        self._streaks: dict[str, Streak] = {}
        self._contact = 0

    def expect(self, record: Record) -> None:
        """Takes on a service of this process; what was known of it before no longer counts."""
        self._streaks[record.name] = Streak()
        self.protection.expect(record.name, up=record.status in UP)

    def forget(self, name: str) -> None:
        """Lets a service go."""
        self._streaks.pop(name, None)
        self.protection.forget(name)

    async def take(self, probed: Record, plan: Plan, outcome: Outcome, *, contact: int) -> Health | None:
        """Draws the conclusions of one result.

        Args:
            probed: The service as it was when the probe began.
            plan: How it was probed.
            outcome: The result.
            contact: Number of the connection to the store that stood all the time; 0 if none did. Then the result
                proves nothing, and neither do those before it once there is another connection: what took the store
                away may have failed the probes.

        Returns:
            The health that the result shows, with ``status_changed_at`` only if it changes; ``None`` if the service is
            another one by now, or gone.

        Raises:
            RegistryError: A transition could not be committed.
        """
        record = self._replica.records.get(probed.name)
        if record is None or (record is not probed and not _same(record.message(), probed.message())):
            return None
        failed = outcome.kind is OutcomeKind.FAILED
        before = status = cast("HealthStatus.ValueType", record.status)
        if contact not in (0, self._contact):
            self._contact = contact
            self._streaks = {name: Streak() for name in self._streaks}
        if contact and outcome.kind is not OutcomeKind.INCONCLUSIVE:
            # That of a service which another process checks counts alone: the results between are not known here.
            streak = self._streaks.get(probed.name) or Streak()
            streak.add(outcome.kind)
            if probed.name in self._streaks:
                self.protection.take(probed.name, failed=failed, up=status in UP)
                await self.review()
            if not self.protection.active:
                status = streak.verdict(status, plan.failure_threshold, plan.success_threshold)
            if probed.name in self._streaks and status in UP:
                self.protection.expect(probed.name, up=True)  # so that a fleet that has just come up counts as a whole
        now = timestamp(self._clock())
        health = Health(status=status, last_check=now, details=outcome.details, error=outcome.error)
        health.response_time.FromMicroseconds(round(outcome.response_time * 1e6))
        if status != before:
            health.status_changed_at.CopyFrom(now)
            committed = await self._commit(probed.message(), before, health, renew=not failed)
            return health if committed else None
        if contact:
            # While statuses are frozen so are leases: nobody is evicted on the word of a process that doubts itself.
            self._results.add(probed.name, health.SerializeToString(), renew=not failed or self.protection.active)
        return health

    async def review(self) -> None:
        """Looks whether protection begins or ends; says so."""
        match self.protection.judge(time.monotonic()):
            case True:
                failing, counted = self.protection.failing, self.protection.counted
                log.error("protection began: statuses are frozen", failing=failing, of=counted)
                what = f"{failing} of {counted} services fail their probes at once; their statuses are frozen"
                try:
                    await self._writes.notice(what, EventReason.EVENT_REASON_HEALTH_CHECK)
                except RegistryError as error:
                    log.warning("could not tell of the protection", why=str(error))
            case False:
                log.warning("protection ended")

    async def _commit(self, probed: Service, status: HealthStatus.ValueType, health: Health, *, renew: bool) -> bool:
        """Commits a transition; does not if the service is no longer what was judged."""

        async def attempt(current: Record | None) -> bool | Conflict | EpochChanged:
            before = current.message() if current else None
            if before is None or not _same(before, probed) or before.health.status != status:
                return False
            if health.status not in UP:
                # A store that hangs would carry it out when it goes on: asked first, it shows before anything is sent.
                await self._writes.head()
            after = normal.stamped(normal.with_health(before, health, health.last_check), health.last_check)
            outcome = await self._writes.put(
                before,
                after,
                EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED,
                reason=EventReason.EVENT_REASON_HEALTH_CHECK,
                renew=renew,
            )
            return True if isinstance(outcome, Service) else outcome

        return await self._writes.write(probed.name, attempt)


def _same(service: Service, probed: Service) -> bool:
    """Whether a service is still what was probed."""
    return service.endpoint == probed.endpoint and service.health_check == probed.health_check
