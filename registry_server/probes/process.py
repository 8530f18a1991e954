"""``ProbeProcess``: controls the separate process that sends probes.

An HTTP probe takes about 0.4 ms of Python. A thousand of them per second in the event loop that answers calls would
delay calls by several times their duration; with a separate process, only their results are read there. Measured
response times are also independent of the load of the registry.
"""

import asyncio
import itertools
import json
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog
from google.protobuf.struct_pb2 import Struct

from registry_server.probes.messages import WorkerCommands, WorkerSetup
from registry_server.probes.outcome import LOST_ANSWER, NOT_READY, Outcome, OutcomeKind
from registry_server.probes.plan import Plan
from registry_server.probes.rounds import jitter
from registry_server.runtime.child import Child, RestartBackoff, SilenceWatch, running_child
from registry_server.runtime.connection import Connection, PendingAnswers
from registry_server.runtime.tasks import raise_if_cancelled

_START_TIMEOUT_SECONDS: Final = 30.0
"""How long a worker may take to become ready, and how long a probe on demand waits for it."""
_ANSWER_GRACE_SECONDS: Final = 2.0
"""How long after its timeout a probe on demand waits for its answer."""
_SILENT_CHECKS: Final = 3
"""Checks without a message after which due services get INCONCLUSIVE results."""
_DEAD_CHECKS: Final = 10
"""Checks without a message after which the worker is replaced."""
_RESULTS_PER_TURN: Final = 4
"""Results processed without yielding to the event loop, so that results do not delay calls."""
_SERVICES_PER_TURN: Final = 200
"""Services sent to a worker without yielding to the event loop: about 2 ms."""

log = structlog.get_logger(__name__)


class Result(NamedTuple):
    """The result of a due probe."""

    name: str | None
    """Name of the service; ``None`` if it was dropped or its plan changed since the probe started."""
    plan: Plan | None
    """Plan of the probe; ``None`` with the name."""
    outcome: Outcome
    started: float
    """Start of the probe, in monotonic seconds."""
    late: float | None
    """Seconds between its due time and its start; ``None`` if no probe was sent, because the worker is unavailable."""


ResultListener = Callable[[Result], None]
"""Receives results; must not raise."""


@dataclass(slots=True)
class _AssignedService:
    """A service that is probed periodically."""

    name: str
    plan: Plan
    last_result: float
    """Time of its last result, or before that the due time of its first probe, in monotonic seconds."""


class ProbeProcess:
    """Probes services periodically and on demand, with a worker process while ``run`` runs.

    A worker that dies is replaced. While no worker responds, due services get the result ``INCONCLUSIVE``.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        *,
        check_interval_seconds: float = 1.0,
        dead_checks: int = _DEAD_CHECKS,
        worker_module: str = "registry_server.probes.worker",
    ) -> None:
        """Configure the worker, which ``run`` starts.

        Args:
            setup: Configuration of the worker.
            check_interval_seconds: How often to check that the worker sends messages, which it does every second.
            dead_checks: Checks without a message after which the worker is replaced.
            worker_module: Module that the worker runs.
        """
        self._setup = setup
        self._silence = SilenceWatch(check_interval_seconds)
        self._dead_checks = dead_checks
        self._worker_module = worker_module
        self._numbers = itertools.count()
        self._assigned: dict[int, _AssignedService] = {}
        self._number_of: dict[str, int] = {}
        self._on_demand = PendingAnswers[Outcome]()
        self._commands = WorkerCommands([], [], [], [])
        self._child: Child | None = None  # once it is ready
        self._running = asyncio.Event()

    async def run(self, on_result: ResultListener) -> None:
        """Probe due services until cancelled; then abandon probes in flight."""
        self._silence.reset()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._supervise(on_result), name="probe-process")
            group.create_task(self._watch_worker(on_result), name="probe-process-watch")

    @property
    def services(self) -> Collection[str]:
        """Names of the services that are probed periodically."""
        return self._number_of.keys()

    def assign_service(self, name: str, plan: Plan, due: float) -> None:
        """Probe a service periodically, first at ``due`` in monotonic seconds, or change its plan."""
        self.drop_service(name)
        number = self._number_of[name] = next(self._numbers)
        self._assigned[number] = _AssignedService(name, plan, due)
        if self._child is not None:
            self._next_commands().assign.append((number, plan, due))

    def owner_of(self, name: str) -> str | None:
        """Return the owner in the plan of a service; ``None`` if the service is not probed."""
        number = self._number_of.get(name)
        return None if number is None else self._assigned[number].plan.owner

    def drop_service(self, name: str) -> bool:
        """Stop probing a service; return whether it was probed."""
        number = self._number_of.pop(name, None)
        if number is None:
            return False
        del self._assigned[number]
        if self._child is not None:
            self._next_commands().drop.append(number)
        return True

    async def probe_now(self, plan: Plan) -> Outcome:
        """Probe a service once, on demand; raise nothing but ``CancelledError``, which also cancels the probe.

        If the answer is late, the outcome is ``INCONCLUSIVE``.
        """
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                await self._running.wait()
        except TimeoutError:
            return Outcome(OutcomeKind.INCONCLUSIVE, 0.0, NOT_READY)
        sent: list[int] = []
        answer = None

        def send(number: int) -> None:
            sent.append(number)
            self._next_commands().once.append((number, plan))

        try:
            answer = await self._on_demand.request(send, plan.timeout + _ANSWER_GRACE_SECONDS)
        finally:
            if answer is None:  # late, or no caller waits for it
                self._next_commands().cancel.extend(sent)
        return answer or Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST_ANSWER)

    def _next_commands(self) -> WorkerCommands:
        """Return the commands to add to: all of one turn of the event loop are sent at its end."""
        if not any(self._commands):
            asyncio.get_running_loop().call_soon(self._flush)
        return self._commands

    def _flush(self) -> None:
        commands, self._commands = self._commands, WorkerCommands([], [], [], [])
        # The write buffer is bounded by the changes that occur until a stalled worker is replaced.
        if self._child is not None:
            self._child.connection.send_pickle(commands)

    async def _supervise(self, on_result: ResultListener) -> None:
        """Run a worker, and replace it when it ends."""
        backoff = RestartBackoff()
        first = True
        while True:
            backoff.start()
            try:
                async with running_child(self._worker_module, self._setup) as child, asyncio.TaskGroup() as group:
                    async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                        ready = await anext(child.connection, None) is not None
                    if ready:
                        self._silence.observe(child.connection)
                        self._child = child
                        self._running.set()
                        group.create_task(self._send_services(dict(self._assigned), spread=not first))
                        first = False
                        await self._listen(child.connection, on_result)
            except* OSError as errors:
                log.warning("probe process connection failed", reason=str(errors.exceptions[0]))
            except* Exception:
                log.exception("probe process sent an unexpected message")
            finally:
                self._lose_worker()
                self._on_demand.abandon()
            raise_if_cancelled()  # an error of the worker may have replaced the cancellation
            delay = backoff.next_delay()
            log.error("probe process ended; restarting", delay_seconds=delay)
            await asyncio.sleep(delay)

    def _lose_worker(self) -> None:
        self._child = None
        self._running.clear()

    async def _send_services(self, services: dict[int, _AssignedService], *, spread: bool) -> None:
        """Send the existing services to a new worker, and spread those of an earlier worker over one interval.

        Later services are sent as they are assigned.
        """
        now = time.monotonic()
        for part in _slices(services.items()):
            for number, service in part:
                if number in self._assigned:
                    due = now + jitter(service.plan.interval) if spread else service.last_result
                    self._next_commands().assign.append((number, service.plan, due))
            await asyncio.sleep(0)

    async def _listen(self, connection: Connection, on_result: ResultListener) -> None:
        async for frame in connection:
            for i, (number, *outcome, started, late) in enumerate(json.loads(frame)):
                if i % _RESULTS_PER_TURN == _RESULTS_PER_TURN - 1:
                    await asyncio.sleep(0)
                if late is None:
                    self._on_demand.resolve(number, _outcome(*outcome))
                elif (service := self._assigned.get(number)) is not None:
                    service.last_result = started
                    on_result(Result(service.name, service.plan, _outcome(*outcome), started, late))
                else:
                    on_result(Result(None, None, _outcome(*outcome), started, late))

    async def _watch_worker(self, on_result: ResultListener) -> None:
        """Report INCONCLUSIVE for due services of a silent worker, which renews their leases; replace a dead one."""
        while True:
            silent_checks = await self._silence.next_check()
            if silent_checks < _SILENT_CHECKS:
                continue
            if silent_checks >= self._dead_checks and self._child is not None:
                log.error("probe process not responding")
                self._child.send_signal(signal.SIGKILL)
                self._lose_worker()
            lost = Outcome(OutcomeKind.INCONCLUSIVE, 0.0, NOT_READY if self._child is None else LOST_ANSWER)
            now = time.monotonic()
            for part in _slices(self._assigned.items()):
                for number, service in part:
                    if now - service.last_result >= service.plan.interval and number in self._assigned:
                        service.last_result = now
                        on_result(Result(service.name, service.plan, lost, now, None))
                await asyncio.sleep(0)


def _slices(services: Iterable[tuple[int, _AssignedService]]) -> Iterator[list[tuple[int, _AssignedService]]]:
    each = list(services)
    return (each[start : start + _SERVICES_PER_TURN] for start in range(0, len(each), _SERVICES_PER_TURN))


def _outcome(kind: str, response_time: float, error: str, details: str | None) -> Outcome:
    struct = None if details is None else Struct.FromString(details.encode("latin-1"))
    return Outcome(OutcomeKind(kind), response_time, error, struct)
