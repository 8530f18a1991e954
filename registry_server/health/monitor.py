"""``HealthMonitor``: has every service of this process's share probed, and draws the conclusions."""

import asyncio
import math
import time
from contextlib import suppress
from typing import Final

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health
from registry_server.catalog import Change, Replica
from registry_server.config import HealthCheckSettings
from registry_server.errors import Overloaded, ProbingDisabled, RegistryError, StoreUnavailable
from registry_server.health.counters import ProbeCounters
from registry_server.health.evaluator import HealthEvaluator
from registry_server.health.members import Membership
from registry_server.health.results import ResultWriter
from registry_server.health.transitions import Transitions
from registry_server.model.record import Record
from registry_server.probes import PauseDetector, Plan, ProbeProcess, Result, jitter
from registry_server.runtime.tasks import cancel

_FIRST_PROBE: Final = 1.0
"""Seconds within which a service is probed that registered or moved."""
_REVIEW_EVERY: Final = 1.0
"""Seconds."""
_SLICE: Final = 100
"""Services that are looked at between two turns of other tasks; about 4 ms."""
_ON_DEMAND: Final = 64
"""Probes at once that clients ask for, beside those that are due: they cannot hold those up."""

_MOST_ON_DEMAND: Final = 1_024
"""Of those that wait for that: the last of them already for longer than most clients do."""

log = structlog.get_logger(__name__)


class HealthMonitor:
    """Decides whom this process probes, and takes the results.

    The probe process keeps the time and makes the probes. A result is dropped if this process stood still meanwhile.
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
    ) -> None:
        """Prepares it.

        Args:
            replica: Which services there are.
            prober: Makes the probes.
            membership: Which of them are this process's.
            evaluator: Takes the results.
            results: Writes them.
            settings: Defaults of checks.
        """
        self._replica = replica
        self._prober = prober
        self._membership = membership
        self._evaluator = evaluator
        self._results = results
        self._settings = settings
        self._transitions = Transitions(evaluator.commit)
        self._pauses = PauseDetector(lambda _: membership.refresh())  # it may have been taken for dead
        self._plans: dict[str, Plan] = {}  # of the services that this process probes
        self._fresh: set[str] = set()  # changed before it was known whose they are
        self._shares_changed = asyncio.Event()
        self._on_demand_slots = asyncio.Semaphore(_ON_DEMAND)
        self._on_demand: dict[tuple[str, Plan], asyncio.Future[Health | RegistryError | None]] = {}
        self._turn = asyncio.Lock()  # of starting and stopping
        self._session: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._failure: asyncio.Future[None] | None = None
        self.counters = ProbeCounters()

    @property
    def probed_services(self) -> int:
        """How many services this process probes."""
        return len(self._plans)

    @property
    def members(self) -> int:
        """Among how many live processes services are shared out."""
        return len(self._membership.members)

    @property
    def process_pauses(self) -> int:
        """How often this process stood still."""
        return self._pauses.count

    @property
    def self_preservation_active(self) -> bool:
        """Whether this process doubts itself and has frozen statuses."""
        return self._evaluator.self_preservation.active

    async def start(self) -> None:
        """Begins to probe this process's share; does nothing if it does already. The catalog must be loaded."""
        async with self._turn:
            if self._session is None:
                self._prober.start(self._on_result)
                self._session = asyncio.create_task(self._run(), name="health-monitor")
                self._session.add_done_callback(self._on_end)

    async def stop(self) -> None:
        """Ends it and leaves the services to other processes; probes under way are given up."""
        async with self._turn:
            if self._session is not None:
                await cancel([self._session])
                await self._prober.close()
                self._session = None

    async def supervise(self) -> None:
        """Ends with the error that ended the monitor, if one ever does."""
        self._failure = asyncio.get_running_loop().create_future()
        await self._failure

    async def check_now(self, record: Record) -> Health | None:
        """Probes a service at once; the result counts like any other and can be read on return.

        Those who ask while a probe is under way that was asked for get its result too.

        Returns:
            The health after the probe; ``None`` if there is nothing to probe, or the service changed meanwhile.

        Raises:
            ProbingDisabled: The monitor does not run.
            Overloaded: Too many are asked for.
            RegistryError: The result could not be committed.
        """
        if self._group is None:
            raise ProbingDisabled
        plan = Plan.of(record.message(), self._settings)
        answer = self._on_demand.get((record.name, plan))
        if answer is None:
            if len(self._on_demand) >= _MOST_ON_DEMAND:
                raise Overloaded("probes", _MOST_ON_DEMAND, f"{_MOST_ON_DEMAND} probes are asked for here")
            answer = self._on_demand[record.name, plan] = asyncio.get_running_loop().create_future()
            self._group.create_task(self._check_on_demand(record, plan))
        health = await asyncio.shield(answer)
        if isinstance(health, RegistryError):
            raise health
        return health

    async def _run(self) -> None:
        self._pauses.begin()
        self._replica.on_applied.append(self._on_change)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._membership.run(self._shares_changed.set), name="membership")
                group.create_task(self._results.run(), name="probe-results")
                group.create_task(self._share_out(), name="probe-shares")
                group.create_task(self._pauses.run(), name="standstill")
                group.create_task(self._transitions.run(), name="transitions")
                try:
                    await self._review()
                finally:
                    self._group = None  # which takes no more tasks while it ends
        finally:
            self._fresh.clear()
            self._replica.on_applied.remove(self._on_change)
            for name in list(self._plans):
                self._let_go(name)
            for answer in self._on_demand.values():
                if not answer.done():
                    answer.set_result(ProbingDisabled())
            self._on_demand.clear()

    def _on_end(self, session: asyncio.Task[None]) -> None:
        error = None if session.cancelled() else session.exception()
        if error is not None and self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    # Results.

    def _on_result(self, result: Result) -> None:
        """Takes the result of a probe that was due."""
        name, plan, outcome, began, late = result
        self.counters.ended(outcome, late)
        self._pauses.look()
        if name is None or plan is None or began < self._pauses.ended:  # the time that passed was not the service's
            return
        record = self._replica.records.get(name)
        if record is None:
            return
        try:
            ruling = self._evaluator.evaluate(record, plan, outcome, began)
        except Exception:
            # Ours to mend; it must cost one result, not all probing.
            log.exception("result of a probe was lost", service=name)
            return
        if ruling.changes:
            self._transitions.put(name, ruling)
        else:
            self._transitions.discard(name)

    async def _check_on_demand(self, record: Record, plan: Plan) -> None:
        health: Health | RegistryError | None = None
        try:
            async with self._on_demand_slots:
                # Again if this process stood still: who asks wants to know.
                health = await self._probe(record, plan) or await self._probe(record, plan)
            with suppress(StoreUnavailable):
                await self._results.flush()
        except RegistryError as error:
            health = error
        except Exception:
            log.exception("result of a probe was lost", service=record.name)
        self._on_demand.pop((record.name, plan)).set_result(health)

    async def _probe(self, record: Record, plan: Plan) -> Health | None:
        """Probes a service once and draws the conclusions; ``None`` if there are none to draw."""
        if not plan.probed:
            return None
        stood_still = self._pauses.look()
        began = time.monotonic()
        outcome = await self._prober.probe(plan)
        self.counters.ended(outcome)
        if self._pauses.look() != stood_still:
            return None
        return await self._evaluator.take(record, plan, outcome, began)

    async def _review(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_REVIEW_EVERY):
                    await self._evaluator.news.wait()
            await self._evaluator.review()

    # Whom to probe, and when.

    def _on_change(self, change: Change) -> None:
        before, after = change.before, change.after
        if after is None:
            self._let_go(change.name)
        elif not self._membership.members:
            self._fresh.add(after.name)
        elif not self._membership.owns(after.name):
            return
        elif before is None or _probed_otherwise(before, after):
            self._take_on(after, _FIRST_PROBE)
        elif before.status != after.status and change.reason != EventReason.EVENT_REASON_HEALTH_CHECK:
            self._evaluator.expect(after)  # somebody knows better

    async def _share_out(self) -> None:
        """Takes on what has become this process's, and lets go what no longer is, whenever shares change."""
        while True:
            await self._shares_changed.wait()
            self._shares_changed.clear()
            for i, record in enumerate(list(self._replica.records.values())):
                if i % _SLICE == 0:
                    await asyncio.sleep(0)
                if self._replica.records.get(record.name) is not record:
                    continue  # it changed meanwhile, and was looked at
                if not self._membership.owns(record.name):
                    self._let_go(record.name)
                elif record.name not in self._plans:
                    self._take_on(record, _FIRST_PROBE if record.name in self._fresh else math.inf)
            self._fresh.clear()

    def _take_on(self, record: Record, within: float) -> None:
        """Begins to probe a service, at the latest within an interval: somebody may have probed it just now."""
        plan = Plan.of(record.message(), self._settings)
        if not plan.probed:
            self._let_go(record.name)
            return
        self._plans[record.name] = plan
        self._evaluator.expect(record)
        self._prober.assign(record.name, plan, time.monotonic() + jitter(min(within, plan.interval)))

    def _let_go(self, name: str) -> None:
        if self._plans.pop(name, None) is not None:
            self._prober.drop(name)
            self._transitions.discard(name)
            self._evaluator.forget(name)


def _probed_otherwise(before: Record, after: Record) -> bool:
    old, new = before.message(), after.message()
    return old.endpoint != new.endpoint or old.health_check != new.health_check
