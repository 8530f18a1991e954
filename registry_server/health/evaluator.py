"""``HealthEvaluator``: what follows from the result of a probe."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import structlog

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.catalog import Replica
from registry_server.errors import RegistryError
from registry_server.health.results import ResultWriter
from registry_server.health.self_preservation import SelfPreservation
from registry_server.health.thresholds import Streak
from registry_server.model import normal
from registry_server.model.record import Record
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.replication import Writes
from registry_server.runtime.clock import Clock, timestamp
from registry_server.store import Conflict, EpochChanged

UP = frozenset({HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_DEGRADED})
"""Statuses of services that are believed to work."""

log = structlog.get_logger(__name__)


class Verdict(NamedTuple):
    """What one result says of a service."""

    record: Record
    """The service as it was when it was judged."""
    before: HealthStatus.ValueType
    health: Health
    """With ``status_changed_at`` only if the status changes."""
    renew: bool
    """Whether the service has earned its lease anew."""
    began: float
    """When the probe began, in monotonic seconds."""
    contact: int
    """The connection to the store that has stood since then; 0 if none has."""

    @property
    def changes(self) -> bool:
        """Whether it is a transition, to be committed."""
        return self.health.status != self.before


class HealthEvaluator:
    """Turns results into statuses by the thresholds of each service, unless this process doubts itself.

    A transition is to be committed like any change; every other result is only kept, without a revision.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        writes: Writes,
        results: ResultWriter,
        self_preservation: SelfPreservation,
        contact: Callable[[float], int],
        clock: Clock,
    ) -> None:
        """Prepares it.

        Args:
            replica: Which services there are.
            writes: Commits transitions.
            results: Keeps all other results.
            self_preservation: Suspends status changes when too many probes fail at once.
            contact: Number of the connection to the store that has stood since a monotonic second, counted from 1; 0 if
                none has.
            clock: Wall clock.
        """
        self.self_preservation = self_preservation
        self.news = asyncio.Event()
        """Set when ``review`` has something to tell."""
        self._replica = replica
        self._writes = writes
        self._results = results
        self._clock = clock
        self._contact_since = contact
        self._streaks: dict[str, Streak] = {}
        self._contact = 0  # on which the streaks were seen
        self._untold = ""

    def expect(self, record: Record) -> None:
        """Takes on a service of this process; what was known of it before no longer counts."""
        self._streaks[record.name] = Streak()
        self.self_preservation.expect(record.name, up=record.status in UP)

    def forget(self, name: str) -> None:
        """Lets a service go."""
        self._streaks.pop(name, None)
        self.self_preservation.forget(name)

    def evaluate(self, record: Record, plan: Plan, outcome: Outcome, began: float) -> Verdict:
        """Draws the conclusions of one result; keeps it if it is no transition.

        It proves nothing if the store was away since the probe began, and neither do those before it once there is
        another connection: what took the store away may have failed the probes.

        Args:
            record: The service, which is probed as it was when the probe began.
            plan: How it was probed.
            outcome: The result.
            began: When the probe began, in monotonic seconds.
        """
        contact = self._contact_since(began)
        name = record.name
        failed = outcome.kind is OutcomeKind.FAILED
        before = status = cast("HealthStatus.ValueType", record.status)
        if contact not in (0, self._contact):
            self._contact = contact
            self._streaks = {each: Streak() for each in self._streaks}
        if contact and outcome.kind is not OutcomeKind.INCONCLUSIVE:
            # That of a service which another process checks counts alone: the results between are not known here.
            ours = self._streaks.get(name)
            streak = ours or Streak()
            streak.add(outcome.kind)
            if ours:
                self.self_preservation.take(name, failed=failed, up=status in UP)
                self._look()
            if not self.self_preservation.active:
                status = streak.verdict(status, plan.failure_threshold, plan.success_threshold)
            if ours and status in UP:
                self.self_preservation.expect(name, up=True)  # so that a fleet that has just come up counts as a whole
        now = timestamp(self._clock())
        health = Health(status=status, last_check=now, details=outcome.details, error=outcome.error)
        health.response_time.FromMicroseconds(round(outcome.response_time * 1e6))
        if status != before:
            health.status_changed_at.CopyFrom(now)
            return Verdict(record, before, health, not failed, began, contact)
        # While statuses are frozen so are leases: nobody is evicted on the word of a process that doubts itself.
        renew = not failed or self.self_preservation.active
        if contact:
            self._results.add(name, health.SerializeToString(), renew=renew)
        return Verdict(record, before, health, renew, began, contact)

    async def take(self, probed: Record, plan: Plan, outcome: Outcome, began: float) -> Health | None:
        """The same, of a probe whose service may have changed since it began; commits a transition.

        Returns:
            The health that the result shows; ``None`` if the service is another one by now, or gone.

        Raises:
            RegistryError: A transition could not be committed.
        """
        record = self._replica.records.get(probed.name)
        if record is None or (record is not probed and not _same(record.message(), probed.message())):
            return None
        ruling = self.evaluate(record, plan, outcome, began)
        await self.review()
        if ruling.changes and not await self.commit(ruling):
            return None
        return ruling.health

    async def review(self) -> None:
        """Looks whether protection begins or ends, which it may with time; tells it to everyone."""
        self._look()
        self.news.clear()
        what, self._untold = self._untold, ""
        if what:
            try:
                await self._writes.publish_notice(what, EventReason.EVENT_REASON_HEALTH_CHECK)
            except RegistryError as error:
                log.warning("could not tell of the protection", why=str(error))

    def _look(self) -> None:
        match self.self_preservation.judge(time.monotonic()):
            case True:
                failing, counted = self.self_preservation.failing, self.self_preservation.counted
                log.error("protection began: statuses are frozen", failing=failing, of=counted)
                self._untold = f"{failing} of {counted} services fail their probes at once; their statuses are frozen"
                self.news.set()
            case False:
                log.warning("protection ended")

    async def commit(self, ruling: Verdict) -> bool:
        """Commits a transition; does not if the service is no longer what was judged, or the store was away meanwhile.

        Raises:
            RegistryError: It could not be committed.
        """
        status, health = ruling.before, ruling.health
        probed = ruling.record.message()

        async def attempt(current: Record | None) -> bool | Conflict | EpochChanged:
            before = current.message() if current else None
            if before is None or not _same(before, probed) or before.health.status != status:
                return False
            if health.status not in UP:
                # A store that hangs would carry it out when it goes on: asked first, it shows before anything is sent.
                await self._writes.read_head()
            if self._contact_since(ruling.began) != ruling.contact:
                return False
            after = normal.set_change_time(normal.replace_health(before, health, health.last_check), health.last_check)
            outcome = await self._writes.write_service(
                before,
                after,
                EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED,
                reason=EventReason.EVENT_REASON_HEALTH_CHECK,
                renew=ruling.renew,
            )
            return True if isinstance(outcome, Service) else outcome

        return await self._writes.change_service(ruling.record.name, attempt)


def _same(service: Service, probed: Service) -> bool:
    """Whether a service is still what was probed."""
    return service.endpoint == probed.endpoint and service.health_check == probed.health_check
