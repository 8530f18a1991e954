"""``HealthMonitor``: assigns services to the probe process and evaluates the results."""

import asyncio
import math
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health
from registry_server.catalog import Change, Replica
from registry_server.config import HealthCheckSettings
from registry_server.errors import Overloaded, ProbingDisabled, RegistryError, StoreUnavailable
from registry_server.health.counters import ProbeCounters
from registry_server.health.evaluator import HealthEvaluator, same_check
from registry_server.health.members import Membership
from registry_server.health.results import ResultWriter
from registry_server.health.transitions import Transitions
from registry_server.instrumentation.problems import Problems
from registry_server.model.record import Record
from registry_server.probes import PauseDetector, Plan, ProbeProcess, Result, jitter
from registry_server.runtime.fair_slots import FairSlots, TooManyWaiters
from registry_server.runtime.tasks import cancel
from registry_server.security.identity import current_caller_key

_SERVICES_PER_TURN: Final = 100
"""Services processed without yielding to the event loop: about 4 ms."""
_MAX_CONCURRENT_ON_DEMAND: Final = 64
"""Concurrent probes requested by clients, in addition to due ones, which they cannot delay. Callers share them."""
_MAX_WAITING_ON_DEMAND: Final = 1_024
"""Queue limit of requested probes; beyond it callers time out first."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _RequestedCheck:
    """A probe that one or more calls of the same caller wait for."""

    answer: "asyncio.Future[Health | RegistryError | None]"
    task: asyncio.Task[None]
    waiting: int = 0
    """Number of calls."""


class HealthMonitor:
    """Assigns this process's share of the services to the probe process and evaluates its results.

    The probe process schedules and sends the probes. A result is dropped if this process was paused during the probe.
    """

    def __init__(
        self,
        *,
        replica: Replica,
        prober: ProbeProcess,
        membership: Membership,
        evaluator: HealthEvaluator,
        results: ResultWriter,
        settings: HealthCheckSettings,
        problems: Problems,
        first_probe_seconds: float = 1.0,
        review_seconds: float = 1.0,
    ) -> None:
        """Create a monitor, which does not run yet.

        Args:
            replica: The registered services.
            prober: Sends the probes.
            membership: Decides which services are assigned to this process.
            evaluator: Evaluates the results.
            results: Stores the results.
            settings: Defaults of health checks.
            problems: Runs the tasks of the monitor.
            first_probe_seconds: Upper bound of the random delay before the first probe of a new or moved service.
            review_seconds: Interval of self-preservation reviews while there are no results.
        """
        self._replica = replica
        self._prober = prober
        self._membership = membership
        self._evaluator = evaluator
        self._results = results
        self._settings = settings
        self._problems = problems
        self._first_probe_seconds = first_probe_seconds
        self._review_seconds = review_seconds
        self._transitions = Transitions(evaluator.commit)
        # After a pause, the other processes may have considered this one dead.
        self._pauses = PauseDetector(lambda _: membership.refresh())
        self._changed_unassigned: set[str] = set()  # changed before the first assignment was read
        self._assignment_changed = asyncio.Event()
        self._on_demand_slots = FairSlots(_MAX_CONCURRENT_ON_DEMAND, _MAX_WAITING_ON_DEMAND)
        self._on_demand: dict[Hashable, _RequestedCheck] = {}
        self._lifecycle = asyncio.Lock()  # serialises start and stop
        self._session: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self.counters = ProbeCounters()

    @property
    def probed_services(self) -> int:
        """Number of services that this process probes."""
        return len(self._prober.services)

    @property
    def members(self) -> int:
        """Number of live processes that share the services."""
        return len(self._membership.members)

    @property
    def process_pauses(self) -> int:
        """How often this process was paused."""
        return self._pauses.count

    @property
    def self_preservation_active(self) -> bool:
        """Whether self-preservation suspends the status changes of all owners."""
        return self._evaluator.self_preservation.active

    @property
    def protected_owners(self) -> int:
        """Number of owners whose status changes self-preservation suspends because of their own services."""
        return self._evaluator.self_preservation.protected_owners

    async def start(self) -> None:
        """Start probing this process's share; do nothing if already running. The catalog must be loaded first."""
        async with self._lifecycle:
            if self._session is None:
                run = self._problems.keep_running("health_monitor", self._run)
                self._session = asyncio.create_task(run, name="health-monitor")

    async def stop(self) -> None:
        """Stop probing and leave the services to other processes; probes in flight are abandoned."""
        async with self._lifecycle:
            if self._session is not None:
                await cancel([self._session])
                self._session = None

    async def check_now(self, record: Record) -> Health | None:
        """Probe a service now. The result counts like any other and can be read on return.

        Concurrent requests of one caller for the same service share one probe. It is cancelled when all of them are.

        Returns:
            The health after the probe; ``None`` if the service has no probe, or changed during the probe.

        Raises:
            ProbingDisabled: The monitor is not running.
            Overloaded: Too many requested probes of this caller are waiting.
            RegistryError: The result could not be committed.
        """
        if self._group is None:
            raise ProbingDisabled
        plan = self._plan_of(record)
        caller = current_caller_key()
        key = caller, record.name, plan
        check = self._on_demand.get(key)
        if check is None:
            answer: asyncio.Future[Health | RegistryError | None] = asyncio.get_running_loop().create_future()
            task = self._group.create_task(self._check_on_demand(record, plan, caller, answer))
            check = self._on_demand[key] = _RequestedCheck(answer, task)
        check.waiting += 1
        try:
            health = await asyncio.shield(check.answer)
        finally:
            check.waiting -= 1
            if not check.waiting:
                check.task.cancel()
                if self._on_demand.get(key) is check:
                    del self._on_demand[key]
        if isinstance(health, RegistryError):
            raise health
        return health

    async def _run(self) -> None:
        self._pauses.reset()
        self._replica.on_applied.append(self._on_change)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                keep = self._problems.keep_running
                group.create_task(keep("probes", partial(self._prober.run, self._on_result)), name="probes")
                members = partial(self._membership.run, self._assignment_changed.set)
                group.create_task(keep("membership", members), name="membership")
                group.create_task(keep("probe_results", self._results.run), name="probe-results")
                group.create_task(keep("probe_assignment", self._assign_services), name="probe-assignment")
                group.create_task(keep("pause_detector", self._pauses.run), name="pause-detector")
                group.create_task(keep("transitions", self._transitions.run), name="transitions")
                try:
                    await keep("probe_review", self._review)
                finally:
                    self._group = None  # a task group that is ending accepts no more tasks
        finally:
            self._changed_unassigned.clear()
            self._replica.on_applied.remove(self._on_change)
            for name in list(self._prober.services):
                self._release(name)
            for check in self._on_demand.values():
                if not check.answer.done():
                    check.answer.set_result(ProbingDisabled())
            self._on_demand.clear()

    # Evaluation of results.

    def _on_result(self, result: Result) -> None:
        """Evaluate the result of a due probe."""
        name, plan, outcome, started, late = result
        self.counters.count_probe(outcome, late)
        self._pauses.check()
        if name is None or plan is None or started < self._pauses.ended:  # this process was paused during the probe
            return
        record = self._replica.records.get(name)
        if record is None:
            return
        try:
            verdict = self._evaluator.evaluate(record, plan, outcome, started)
        except Exception:
            # A bug must cost one result, not all probing.
            log.exception("probe result not evaluated", service=name)
            return
        if verdict.changes:
            if not self._transitions.add_transition(name, verdict):
                self._evaluator.store_unchanged(verdict)
        else:
            self._transitions.discard_transition(name)

    async def _check_on_demand(
        self, record: Record, plan: Plan, caller: Hashable, answer: "asyncio.Future[Health | RegistryError | None]"
    ) -> None:
        health: Health | RegistryError | None = None
        try:
            async with self._on_demand_slots.slot(caller):
                # Repeat once if this process was paused during the probe.
                health = await self._probe_once(record, plan) or await self._probe_once(record, plan)
            with suppress(StoreUnavailable):
                await self._results.flush()
        except TooManyWaiters:
            limit = _MAX_WAITING_ON_DEMAND
            health = Overloaded("probes", limit, f"too many of {limit} waiting probes were requested by this caller")
        except RegistryError as error:
            health = error
        except Exception:
            log.exception("probe result not evaluated", service=record.name)
        answer.set_result(health)

    async def _probe_once(self, record: Record, plan: Plan) -> Health | None:
        """Probe a service and apply the result; return ``None`` if there is no probe or its result does not count."""
        if not plan.probed:
            return None
        pauses = self._pauses.check()
        started = time.monotonic()
        outcome = await self._prober.probe_now(plan)
        self.counters.count_probe(outcome)
        if self._pauses.check() != pauses:
            return None
        return await self._evaluator.apply_result(record, plan, outcome, started)

    async def _review(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._review_seconds):
                    await self._evaluator.review_needed.wait()
            await self._evaluator.review()

    # Assignment of services to the probe process.

    def _on_change(self, change: Change) -> None:
        before, after = change.before, change.after
        if after is None:
            self._release(change.name)
        elif not self._membership.members:
            self._changed_unassigned.add(after.name)
        elif not self._membership.owns(after.name):
            return
        elif (
            before is None
            or not same_check(before.message(), after.message())
            or self._prober.owner_of(after.name) not in {None, change.owner}
        ):
            self._assign(after, self._first_probe_seconds)
        elif before.status != after.status and change.reason != EventReason.EVENT_REASON_HEALTH_CHECK:
            self._evaluator.track_service(after)  # the new status comes from a report or an update

    async def _assign_services(self) -> None:
        """Assign and release services whenever the membership changes."""
        while True:
            await self._assignment_changed.wait()
            self._assignment_changed.clear()
            for i, record in enumerate(list(self._replica.records.values())):
                if i % _SERVICES_PER_TURN == 0:
                    await asyncio.sleep(0)
                if self._replica.records.get(record.name) is not record:
                    continue  # changed in the meantime; _on_change has assigned or released it
                if not self._membership.owns(record.name):
                    self._release(record.name)
                elif record.name not in self._prober.services:
                    self._assign(
                        record, self._first_probe_seconds if record.name in self._changed_unassigned else math.inf
                    )
            self._changed_unassigned.clear()

    def _assign(self, record: Record, max_delay: float) -> None:
        """Assign a service to the probe process, with its first probe within ``max_delay`` seconds and one interval."""
        plan = self._plan_of(record)
        if not plan.probed:
            self._release(record.name)
            return
        self._evaluator.track_service(record)
        self._prober.assign_service(record.name, plan, time.monotonic() + jitter(min(max_delay, plan.interval)))

    def _plan_of(self, record: Record) -> Plan:
        return Plan.of(record.message(), self._settings, self._replica.owners.get(record.name, ""))

    def _release(self, name: str) -> None:
        if self._prober.drop_service(name):
            self._transitions.discard_transition(name)
            self._evaluator.forget_service(name)
