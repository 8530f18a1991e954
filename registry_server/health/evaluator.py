"""``HealthEvaluator``: evaluates probe results against the thresholds of their service."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.catalog import Replica
from registry_server.errors import RegistryError, StoreUnavailable
from registry_server.health.maintenance import Maintenance
from registry_server.health.results import ResultWriter
from registry_server.health.self_preservation import SelfPreservation, Transition
from registry_server.health.thresholds import Streak
from registry_server.model.record import Record
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.replication import Writes
from registry_server.runtime.clock import Clock, timestamp
from registry_server.store import Conflict, EpochChanged

UP = frozenset({HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_DEGRADED})
"""Statuses of services that are considered available."""

log = structlog.get_logger(__name__)


class Verdict(NamedTuple):
    """The conclusion from one probe result."""

    record: Record
    """The service at the time of the evaluation."""
    before: HealthStatus.ValueType
    """The status at the time of the evaluation."""
    health: Health
    """The new health; ``status_changed_at`` is set only if the status changes."""
    renew: bool
    """Whether the result renews the lease."""
    started: float
    """Start of the probe, in monotonic seconds."""
    connection: int
    """Number of the store connection that has been up since the start of the probe; 0 = none."""
    owner: str = ""
    """Owner of the service, as in the plan of the probe."""
    in_maintenance: bool = False
    """Whether an operator kept the service in maintenance."""
    streak: Streak | None = None
    """Results of the service so far; ``None`` if the result does not count or statuses are frozen."""
    thresholds: tuple[int, int] = (1, 1)
    """Numbers of failures and successes that change the status."""

    @property
    def changes(self) -> bool:
        """Whether the result must be committed: the status changes, or may change when the maintenance ends."""
        return self.health.status != self.before or (self.in_maintenance and self.connection != 0)


class HealthEvaluator:
    """Derives statuses from probe results; self-preservation suspends status changes.

    A status change is committed like any other change. All other results are stored without a new revision.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        writes: Writes,
        results: ResultWriter,
        maintenance: Maintenance,
        self_preservation: SelfPreservation,
        connection_since: Callable[[float], int],
        clock: Clock,
    ) -> None:
        """Create an evaluator.

        Args:
            replica: The registered services.
            writes: Commits status changes.
            results: Stores all other results.
            maintenance: Stores what is observed during maintenance.
            self_preservation: Suspends status changes when too many probes fail at once.
            connection_since: Returns the number of the store connection that has been up since a monotonic time,
                counted from 1; 0 = none.
            clock: Wall clock.
        """
        self.self_preservation = self_preservation
        self.review_needed = asyncio.Event()
        """Set when ``review`` must publish a notice."""
        self._replica = replica
        self._writes = writes
        self._results = results
        self._maintenance = maintenance
        self._clock = clock
        self._connection_since = connection_since
        self._streaks: dict[str, Streak] = {}
        self._connection = 0  # the store connection during which the streaks were observed
        self._pending_notices: list[Transition] = []
        self._announced: set[str | None] = set()

    def track_service(self, record: Record) -> None:
        """Start evaluating a service of this process; discard its earlier results."""
        self._streaks[record.name] = Streak()
        owner = self._replica.owners.get(record.name, "")
        self.self_preservation.track_service(record.name, up=record.status in UP, owner=owner)

    def forget_service(self, name: str) -> None:
        """Stop evaluating a service."""
        self._streaks.pop(name, None)
        self.self_preservation.forget_service(name)

    def evaluate(self, record: Record, plan: Plan, outcome: Outcome, started: float) -> Verdict:
        """Return the verdict on one result; store the result unless the status changes.

        A result is not counted if the store was unavailable at any time since the probe started, and a new store
        connection discards earlier results: the cause of the outage may have failed the probes as well.

        Args:
            record: The service; its endpoint and checks have not changed since the probe started.
            plan: Plan of the probe.
            outcome: Result of the probe.
            started: Start of the probe, in monotonic seconds.
        """
        connection = self._connection_since(started)
        name = record.name
        failed = outcome.kind is OutcomeKind.FAILED
        before = status = cast("HealthStatus.ValueType", record.status)
        if connection not in (0, self._connection):
            self._connection = connection
            self._streaks = {each: Streak() for each in self._streaks}
        counted: Streak | None = None
        thresholds = plan.failure_threshold, plan.success_threshold
        if connection and outcome.kind is not OutcomeKind.INCONCLUSIVE:
            # A service of another process has no streak here, so that this result is evaluated on its own.
            own_streak = self._streaks.get(name)
            streak = own_streak or Streak()
            streak.add_outcome(outcome.kind)
            if own_streak:
                self.self_preservation.add_result(name, failed=failed, up=status in UP)
                self._update_self_preservation()
            if not self.self_preservation.protects(plan.owner):
                counted = streak
                status = streak.next_status(status, *thresholds)
            if own_streak and status in UP:
                # A fleet that has just started must count completely.
                self.self_preservation.track_service(name, up=True)
        # An instance lives by its heartbeats: its endpoint may be that of its successor.
        renewable = not record.instance_id
        now = timestamp(self._clock())
        health = Health(status=status, last_check=now, details=outcome.details, error=outcome.error)
        health.response_time.FromMicroseconds(round(outcome.response_time * 1e6))
        # Self-preservation also renews leases: no service is evicted because of results that may be wrong.
        renew = renewable and (not failed or self.self_preservation.protects(plan.owner))
        maintained = record.in_maintenance and before == HealthStatus.HEALTH_STATUS_MAINTENANCE
        if status != before:
            health.status_changed_at.CopyFrom(now)
        elif connection and not maintained:
            self._results.add_result(name, health.SerializeToString(), renew=renew)
        return Verdict(record, before, health, renew, started, connection, plan.owner, maintained, counted, thresholds)

    async def apply_result(self, probed: Record, plan: Plan, outcome: Outcome, started: float) -> Health | None:
        """Evaluate a probe whose service may have changed since the probe started, and commit a status change.

        Returns:
            The resulting health; ``None`` if the endpoint or checks of the service changed, or it was removed.

        Raises:
            RegistryError: A status change could not be committed.
        """
        record = self._replica.records.get(probed.name)
        if record is None or (record is not probed and not same_check(record.message(), probed.message())):
            return None
        verdict = self.evaluate(record, plan, outcome, started)
        await self.review()
        if verdict.changes and not await self.commit(verdict):
            return None
        return verdict.health

    async def review(self) -> None:
        """Start or end self-preservation if necessary, and publish a notice when it starts."""
        self._update_self_preservation()
        self.review_needed.clear()
        notices, self._pending_notices = self._pending_notices, []
        try:
            # One for each owner, because not every watcher may receive those of other owners.
            for notice in [each for each in notices if each.owner is None or each.only][-1:] or notices:
                await self._writes.publish_notice(
                    _notice(notice), EventReason.EVENT_REASON_HEALTH_CHECK, owner=notice.owner or ""
                )
        except RegistryError as error:
            log.warning("self-preservation notice not published", reason=str(error))

    def _update_self_preservation(self) -> None:
        for transition in self.self_preservation.update(time.monotonic()):
            owner, started, failing, counted, _, repeated = transition
            fields = {"owner": owner} if owner else {}
            if not started and owner in self._announced:
                self._announced.discard(owner)
                log.warning("self-preservation ended", **fields)
            elif started and not repeated:  # an owner must not fill the log and the event stream
                log.error("self-preservation started", failing=failing, probed=counted, **fields)
                self._announced.add(owner)
                self._pending_notices.append(transition)
                self.review_needed.set()

    async def commit(self, verdict: Verdict) -> bool:
        """Commit a status change, unless the service changed or the store was unavailable in between.

        If a limit refuses it, the result is stored without the change, so that the lease is renewed anyway.

        Returns:
            Whether it was committed.

        Raises:
            RegistryError: The store, a limit or a concurrent change prevented the commit.
        """
        status, health = verdict.before, verdict.health
        probed = verdict.record.message()

        async def attempt(current: Record | None) -> bool | Conflict | EpochChanged:
            before = current.message() if current else None
            if before is None or not same_check(before, probed):
                return False
            if before.HasField("maintenance"):
                return await self._observe(before, verdict)
            if verdict.in_maintenance or before.health.status != status:
                return False
            if health.status not in UP:
                # A store that hangs would execute the commit when it resumes. This read detects it beforehand.
                await self._writes.read_head()
            if self._connection_since(verdict.started) != verdict.connection:
                return False
            reason = EventReason.EVENT_REASON_HEALTH_CHECK
            outcome = await self._writes.replace_health(
                before, health, health.last_check, reason=reason, renew=verdict.renew
            )
            return True if isinstance(outcome, Service) else outcome

        try:
            return await self._writes.change_service(verdict.record.name, attempt)
        except StoreUnavailable:
            raise
        except RegistryError:
            self.store_unchanged(verdict)
            raise

    async def _observe(self, before: Service, verdict: Verdict) -> bool | Conflict:
        """Record the result of a service in maintenance."""
        if self._connection_since(verdict.started) != verdict.connection:
            return False
        health = Health()
        health.CopyFrom(verdict.health)

        def observation(status: HealthStatus.ValueType) -> Health:
            health.status = status
            if verdict.streak is not None:
                verdict.streak.restart_if_reported(status)
                health.status = verdict.streak.next_status(status, *verdict.thresholds)
            return health

        conflict = await self._maintenance.observe(before, observation, health.last_check)
        if conflict is not None:
            return conflict
        if verdict.streak is not None:
            verdict.streak.observed = health.status
        self._results.add_result(before.name, b"", renew=verdict.renew)
        return True

    def store_unchanged(self, verdict: Verdict) -> None:
        """Store the result without its status change, which renews the lease if the probe did not fail."""
        if verdict.in_maintenance:
            self._results.add_result(verdict.record.name, b"", renew=verdict.renew)
            return
        health = Health()
        health.CopyFrom(verdict.health)
        health.status = verdict.before
        health.ClearField("status_changed_at")
        self._results.add_result(verdict.record.name, health.SerializeToString(), renew=verdict.renew)


def _notice(start: Transition) -> str:
    """Return the text about a start of self-preservation. It names no owner, because all watchers may receive it."""
    of, whose = ("", "") if start.owner is None or start.only else (" of one owner", "their ")
    return (
        f"self-preservation: {start.failing} of {start.counted} services{of} fail their probes at once; "
        f"{whose}statuses are frozen"
    )


def same_check(service: Service, probed: Service) -> bool:
    """Return whether endpoint, checks and instance of a service are still those that were probed."""
    return (
        service.endpoint == probed.endpoint
        and service.health_check == probed.health_check
        and service.instance_id == probed.instance_id
    )
