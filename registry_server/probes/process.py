"""``ProbeProcess``: controls the separate process that sends probes.

An HTTP probe takes about 0.4 ms of Python. A thousand of them per second in the event loop that answers calls would
delay calls by several times their duration; with a separate process, only their results are read there. Measured
response times are also independent of the load of the registry.
"""

import asyncio
import itertools
import json
import pickle
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
from google.protobuf.struct_pb2 import Struct

from registry_server.model.networks import Network
from registry_server.probes.messages import WorkerCommands, WorkerLogSettings, WorkerSetup
from registry_server.probes.outcome import LOST_ANSWER, NOT_READY, Outcome, OutcomeKind
from registry_server.probes.plan import Plan
from registry_server.runtime.frames import encode_frame, read_frame
from registry_server.runtime.tasks import cancel

if TYPE_CHECKING:  # the worker imports this package; loading the settings would delay its start by half a second
    from registry_server.config import LogSettings

_WORKER: Final = "registry_server.probes.worker"
_START_TIMEOUT_SECONDS: Final = 30.0
"""How long a worker may take to become ready, and how long a probe on demand waits for it."""
_ANSWER_GRACE_SECONDS: Final = 2.0
"""How long after its timeout a probe on demand waits for its answer."""
_CHECK_INTERVAL_SECONDS: Final = 1.0
"""How often to check that the worker sends messages, which it does every second."""
_SILENT_CHECKS: Final = 3
"""Checks without a message after which due services get INCONCLUSIVE results."""
_DEAD_CHECKS: Final = 10
"""Checks without a message after which the worker is replaced."""
_RESULTS_PER_SLICE: Final = 4
"""Results processed without yielding to the event loop, so that results do not delay calls."""
_SERVICES_PER_SLICE: Final = 200
"""Services sent to a worker without yielding to the event loop: about 2 ms."""
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.1, 5.0
"""Delays before a worker is replaced; they double while workers end within the maximum."""

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


class _AssignedService:
    """A service that is probed periodically."""

    __slots__ = ("last_result", "name", "plan")

    def __init__(self, name: str, plan: Plan, last_result: float) -> None:
        self.name = name
        self.plan = plan
        self.last_result = last_result
        """Time of its last result, or before that the due time of its first probe, in monotonic seconds."""


class ProbeProcess:
    """Probes services periodically and on demand, with a worker process between ``start`` and ``close``.

    A worker that dies is replaced. While no worker responds, due services get the result ``INCONCLUSIVE``.
    """

    def __init__(
        self,
        allowed: Sequence[Network],
        denied: Sequence[Network],
        *,
        concurrency: int,
        logs: "LogSettings",
        check_interval_seconds: float = _CHECK_INTERVAL_SECONDS,
        dead_checks: int = _DEAD_CHECKS,
        answer_grace_seconds: float = _ANSWER_GRACE_SECONDS,
        worker_module: str = _WORKER,
    ) -> None:
        """Configure the worker, which ``start`` starts.

        Args:
            allowed: See ``EgressPolicy``.
            denied: See ``EgressPolicy``.
            concurrency: Maximum number of concurrent due probes.
            logs: Log settings of the worker.
            check_interval_seconds: How often to check that the worker sends messages.
            dead_checks: Checks without a message after which the worker is replaced.
            answer_grace_seconds: How long after its timeout a probe on demand waits for its answer.
            worker_module: Module that the worker runs.
        """
        self._check_interval_seconds = check_interval_seconds
        self._dead_checks = dead_checks
        self._answer_grace_seconds = answer_grace_seconds
        self._worker_module = worker_module
        self._setup = WorkerSetup(
            tuple(allowed), tuple(denied), concurrency, WorkerLogSettings(logs.level, logs.format)
        )
        self._numbers = itertools.count()
        self._assigned: dict[int, _AssignedService] = {}
        self._number_of: dict[str, int] = {}
        self._on_demand: dict[int, asyncio.Future[Outcome]] = {}
        self._commands = WorkerCommands([], [], [])
        self._writer: asyncio.StreamWriter | None = None
        self._running = asyncio.Event()
        self._silent_checks = 0  # since the worker's last message
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, on_result: ResultListener) -> None:
        """Start a worker and keep one running.

        Args:
            on_result: Receives the results of due probes.
        """
        self._silent_checks = 0
        self._tasks = [
            asyncio.create_task(self._supervise(on_result), name="probe-process"),
            asyncio.create_task(self._watch_worker(on_result), name="probe-process-watch"),
        ]

    async def close(self) -> None:
        """Stop the worker, abandon probes in flight and forget all services."""
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        self._assigned.clear()
        self._number_of.clear()

    def assign_service(self, name: str, plan: Plan, due: float) -> None:
        """Probe a service periodically from now on, or change its plan.

        Args:
            name: Name of the service.
            plan: Plan of its probes.
            due: Due time of the first probe, in monotonic seconds.
        """
        self.drop_service(name)
        number = self._number_of[name] = next(self._numbers)
        self._assigned[number] = _AssignedService(name, plan, due)
        if self._writer is not None:
            self._schedule_flush()
            self._commands.assign.append((number, plan, due))

    def drop_service(self, name: str) -> None:
        """Stop probing a service."""
        number = self._number_of.pop(name, None)
        if number is not None:
            del self._assigned[number]
            if self._writer is not None:
                self._schedule_flush()
                self._commands.drop.append(number)

    async def probe_now(self, plan: Plan) -> Outcome:
        """Probe a service once, on demand; raise nothing but ``CancelledError``.

        If the answer is late, the outcome is ``INCONCLUSIVE``.
        """
        if not self._running.is_set() and not await self._wait_running():
            return Outcome(OutcomeKind.INCONCLUSIVE, 0.0, NOT_READY)
        number = next(self._numbers)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._on_demand[number] = answer
        self._schedule_flush()
        self._commands.once.append((number, plan))
        try:
            async with asyncio.timeout(plan.timeout + self._answer_grace_seconds):
                return await answer
        except TimeoutError:
            return Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST_ANSWER)
        finally:
            del self._on_demand[number]

    async def _wait_running(self) -> bool:
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                await self._running.wait()
        except TimeoutError:
            return False
        return True

    def _schedule_flush(self) -> None:
        """Send pending commands together at the end of this turn of the event loop."""
        if not any(self._commands):
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        commands, self._commands = self._commands, WorkerCommands([], [], [])
        # The write buffer is bounded by the changes that occur until a stalled worker is replaced.
        if self._writer is not None:
            self._writer.write(encode_frame(pickle.dumps(commands)))

    async def _supervise(self, on_result: ResultListener) -> None:
        """Run a worker, and replace it when it ends."""
        delay = _MIN_RETRY_SECONDS
        first = True
        while True:
            started = time.monotonic()
            try:
                async with self._worker() as (reader, writer), asyncio.TaskGroup() as group:
                    writer.write(encode_frame(pickle.dumps(self._setup)))
                    async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                        ready = await read_frame(reader) is not None
                    if ready:
                        self._silent_checks = 0
                        self._writer = writer
                        self._running.set()
                        group.create_task(self._send_services(dict(self._assigned), spread=not first))
                        first = False
                        await self._listen(reader, on_result)
            except* OSError as errors:
                log.warning("probe process connection failed", reason=str(errors.exceptions[0]))
            except* Exception:
                log.exception("probe process sent an unexpected message")
            finally:
                self._writer = None
                self._running.clear()
                for answer in self._on_demand.values():
                    if not answer.done():
                        answer.set_result(Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST_ANSWER))
            delay = (
                _MIN_RETRY_SECONDS
                if time.monotonic() - started > _MAX_RETRY_SECONDS
                else min(2 * delay, _MAX_RETRY_SECONDS)
            )
            log.error("probe process ended; restarting", delay_seconds=delay)
            await asyncio.sleep(delay)

    async def _send_services(self, services: dict[int, _AssignedService], *, spread: bool) -> None:
        """Send the existing services to a new worker; later ones are sent as they are assigned.

        Args:
            services: Services by number.
            spread: Whether they were probed before. If so, their probes are spread over one interval.
        """
        now = time.monotonic()
        for part in _slices(services.items()):
            self._schedule_flush()
            for number, service in part:
                if number in self._assigned:
                    interval = service.plan.interval
                    due = now + random.uniform(0, interval) if spread else service.last_result  # noqa: S311 - jitter, not a secret
                    self._commands.assign.append((number, service.plan, due))
            await asyncio.sleep(0)

    async def _listen(self, reader: asyncio.StreamReader, on_result: ResultListener) -> None:
        while (frame := await read_frame(reader)) is not None:
            for i, (number, *outcome, started, late) in enumerate(json.loads(frame)):
                if i % _RESULTS_PER_SLICE == _RESULTS_PER_SLICE - 1:
                    await asyncio.sleep(0)
                if late is None:
                    answer = self._on_demand.get(number)
                    if answer is not None and not answer.done():
                        answer.set_result(_outcome(*outcome))
                elif (service := self._assigned.get(number)) is not None:
                    service.last_result = started
                    on_result(Result(service.name, service.plan, _outcome(*outcome), started, late))
                else:
                    on_result(Result(None, None, _outcome(*outcome), started, late))
            self._silent_checks = 0

    async def _watch_worker(self, on_result: ResultListener) -> None:
        """Report INCONCLUSIVE for due services of a silent worker, which renews their leases; replace a dead one."""
        while True:
            await asyncio.sleep(self._check_interval_seconds)
            self._silent_checks += 1  # counted, not timed: a pause of this process must not count
            if self._silent_checks < _SILENT_CHECKS:
                continue
            if self._silent_checks >= self._dead_checks and self._writer is not None:
                log.error("probe process not responding")
                self._writer.transport.abort()
                self._writer = None
                self._running.clear()
            lost = Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST_ANSWER if self._writer is not None else NOT_READY)
            now = time.monotonic()
            for part in _slices(self._assigned.items()):
                for number, service in part:
                    if now - service.last_result >= service.plan.interval and number in self._assigned:
                        service.last_result = now
                        on_result(Result(service.name, service.plan, lost, now, None))
                await asyncio.sleep(0)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Run a worker, which exits when its connection closes."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                # -P: do not import modules from the directory in which the registry was started.
                *(sys.executable, "-P", "-m", self._worker_module, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ProcessLookupError):
                process.kill()  # the worker holds no state
            await process.wait()


def _slices(services: Iterable[tuple[int, _AssignedService]]) -> Iterator[list[tuple[int, _AssignedService]]]:
    each = list(services)
    return (each[start : start + _SERVICES_PER_SLICE] for start in range(0, len(each), _SERVICES_PER_SLICE))


def _outcome(kind: str, response_time: float, error: str, details: str | None) -> Outcome:
    struct = None if details is None else Struct.FromString(details.encode("latin-1"))
    return Outcome(OutcomeKind(kind), response_time, error, struct)
