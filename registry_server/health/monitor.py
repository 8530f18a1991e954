"""``HealthMonitor``: probes every service of this process's share when it is due, and draws the conclusions."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.catalog import Change, Replica
from registry_server.clock import Clock, timestamp
from registry_server.config import HealthCheckSettings
from registry_server.errors import RegistryError
from registry_server.health.members import Membership
from registry_server.health.probes import Outcome, OutcomeKind, Plan, Prober
from registry_server.health.protection import Protection
from registry_server.health.results import ResultWriter
from registry_server.health.schedule import Schedule
from registry_server.health.thresholds import Streak
from registry_server.model.record import Record

_LATE: Final = 1.0
"""Seconds after which a probe counts as late."""
_PAUSE: Final = 2.0
"""A gap of so many seconds between two looks at the clock, which come every second, means that we stood still."""
_FIRST_PROBE: Final = 1.0
"""Seconds within which a service that nothing is known of is probed."""
_SLICE: Final = 2_000  # services sorted anew between two looks at other tasks
_UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN

Conclude = Callable[[str, Service, Health], Awaitable[None]]
"""Commits a health: name, the service as it was when it was probed, its new health."""

log = structlog.get_logger(__name__)


class HealthMonitor:
    """Probes services at their intervals with bounded concurrency.

    One heap says who is due; there is a task for each probe that is under way and none for those that wait. Results are
    dropped where they prove nothing: if this process stood still meanwhile, or while the store is away.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        prober: Prober,
        results: ResultWriter,
        settings: HealthCheckSettings,
        clock: Clock,
        conclude: Conclude,
        notify: Callable[[str], Awaitable[None]],
        is_connected: Callable[[], bool],
    ) -> None:
        """Prepares it.

        Args:
            replica: Which services there are.
            prober: Makes the probes.
            results: Takes the result of each probe.
            settings: Defaults of checks, concurrency and protection.
            clock: Wall clock, for ``last_check``.
            conclude: Commits a transition.
            notify: Tells everyone of a problem of the registry itself.
            is_connected: Whether the store answers.
        """
        self._replica = replica
        self._prober = prober
        self._results = results
        self._settings = settings
        self._clock = clock
        self._conclude = conclude
        self._notify = notify
        self._is_connected = is_connected
        self._owns: Callable[[str], bool] = lambda _: False
        self._schedule = Schedule()
        self._streaks: dict[str, Streak] = {}
        self._wake = asyncio.Event()
        self._shares_changed = asyncio.Event()
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._stood_still = 0
        self.protection = Protection(
            share=settings.protection_share,
            minimum=settings.protection_min_failures,
            longest=settings.protection_max_seconds,
        )
        self.probes = 0
        self.late = 0

    async def run(self, membership: Membership) -> None:
        """Probes this process's share until cancelled."""
        self._owns = membership.owns
        self._replica.on_applied.append(self._on_change)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(membership.run(), name="membership")
                group.create_task(self._results.run(), name="probe-results")
                group.create_task(self._share_out_when_changed(), name="probe-shares")
                group.create_task(self._watch_clock(), name="probe-clock")
                await self._dispatch(group)
        finally:
            self._replica.on_applied.remove(self._on_change)

    def shares_changed(self) -> None:
        """Says that services are shared out anew."""
        self._shares_changed.set()

    async def check_now(self, record: Record) -> None:
        """Probes a service at once; its result counts like any other and is written on return."""
        service = record.message()
        plan = Plan.of(service, self._settings)
        if plan.probed:
            await self._take(service, plan, await self._prober.probe(plan))
            await self._results.flush()

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            entry = self._schedule.pop_due(time.monotonic())
            if entry is None:
                due = self._schedule.next_due()
                self._wake.clear()
                try:
                    async with asyncio.timeout_at(due and asyncio.get_running_loop().time() + due - time.monotonic()):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            name, due = entry
            record = self._replica.records.get(name)
            if record is None or not self._owns(name):
                continue
            await self._slots.acquire()
            self.probes += 1
            self.late += time.monotonic() - due > _LATE
            group.create_task(self._check(record, due))

    async def _check(self, record: Record, due: float) -> None:
        """Makes one probe and sets the time of the next."""
        service = record.message()
        plan = Plan.of(service, self._settings)
        try:
            if plan.probed:
                stood_still = self._stood_still
                outcome = await self._prober.probe(plan)
                if stood_still != self._stood_still:  # the time that passed was not the service's
                    self._schedule_soon(record.name, plan.interval)
                    return
                self._schedule_at(record.name, max(due + plan.interval, time.monotonic()))
                if self._is_connected():
                    await self._take(service, plan, outcome)
            elif plan.by_heartbeat and service.health.status == _UNKNOWN:
                # It registered, so it lives; when its heartbeats end, so does its lease.
                health = Health(status=HealthStatus.HEALTH_STATUS_HEALTHY, last_check=timestamp(self._clock()))
                await self._conclude(record.name, service, health)
        except RegistryError as error:  # the store went away meanwhile: the next probe tells
            log.debug("result of a probe was not kept", service=record.name, why=str(error))
            self._schedule_at(record.name, time.monotonic() + plan.interval)
        finally:
            self._slots.release()

    async def _take(self, service: Service, plan: Plan, outcome: Outcome) -> None:
        """Draws the conclusions of a result."""
        record = self._replica.records.get(service.name)
        if record is None:
            return
        if record.revision != service.revision and record.message().endpoint != service.endpoint:
            return  # registered elsewhere meanwhile
        failed = outcome.kind is OutcomeKind.FAILED
        streak = self._streaks.setdefault(service.name, Streak())
        streak.add(outcome.kind)
        self.protection.take(service.name, failed=failed, status=record.status)
        await self._judge()
        frozen = self.protection.active
        status = record.status
        if not frozen:
            status = streak.verdict(record.status, plan.failure_threshold, plan.success_threshold)
        health = Health(
            status=status, last_check=timestamp(self._clock()), details=outcome.details, error=outcome.error
        )
        health.response_time.FromMicroseconds(round(outcome.response_time * 1e6))
        if status != record.status:
            await self._conclude(service.name, service, health)
        # While statuses are frozen, so are leases: nobody is evicted on the word of a process that doubts itself.
        self._results.add(service.name, health.SerializeToString(), renew=not failed or frozen)

    async def _judge(self) -> None:
        match self.protection.judge(time.monotonic()):
            case True:
                what = (
                    f"{self.protection.failing} of {self.protection.counted} services fail at once: "
                    "this process doubts itself and freezes their statuses"
                )
                log.error("protection began", failing=self.protection.failing, of=self.protection.counted)
                await self._notify(what)
            case False:
                log.warning("protection ended")

    def _on_change(self, change: Change) -> None:
        before, after = change.before, change.after
        if after is None:
            self._drop(change.name)
            return
        if before is not None:
            if change.reason == EventReason.EVENT_REASON_HEALTH_CHECK or _checked_alike(before, after):
                return
            self._drop(change.name)  # what was learned is of another endpoint, or somebody knows better
        if self._owns(change.name):
            self._schedule_soon(change.name, _FIRST_PROBE)

    def _drop(self, name: str) -> None:
        self._schedule.discard(name)
        self._streaks.pop(name, None)
        self.protection.forget(name)

    def _schedule_soon(self, name: str, within: float) -> None:
        self._schedule_at(name, time.monotonic() + random.uniform(0, within))  # noqa: S311 - jitter, not a secret

    def _schedule_at(self, name: str, due: float) -> None:
        if name in self._replica.records and self._owns(name):
            self._schedule.set(name, due)
            self._wake.set()

    async def _share_out_when_changed(self) -> None:
        while True:
            await self._shares_changed.wait()
            self._shares_changed.clear()
            await self._share_out(anew=False)

    async def _share_out(self, *, anew: bool) -> None:
        """Takes up what this process owns and lets go what it does not; spreads all over an interval if ``anew``."""
        interval = self._settings.interval_ms / 1000
        for i, name in enumerate(list(self._replica.records)):
            if not self._owns(name):
                self._drop(name)
            elif anew or name not in self._schedule:
                self._schedule_soon(name, interval)
            if i % _SLICE == 0:
                await asyncio.sleep(0)

    async def _watch_clock(self) -> None:
        """Notices that this process stood still (stopped, swapped out, machine asleep)."""
        last = _now_with_sleep()
        while True:
            await asyncio.sleep(1)
            now = _now_with_sleep()
            if now - last > _PAUSE:
                self._stood_still += 1
                log.warning("this process stood still: probes under way do not count", seconds=round(now - last, 1))
                await self._share_out(anew=True)
            last = now


def _checked_alike(before: Record, after: Record) -> bool:
    """Whether a change leaves everything as it was that probes depend on."""
    if before.status != after.status:
        return False
    old, new = before.message(), after.message()
    return old.endpoint == new.endpoint and old.health_check == new.health_check


def _now_with_sleep() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
