"""``ProbeProcess``: rounds of probes in a process of their own, seen from the registry.

An HTTP probe takes about 0.4 ms of Python. In the loop that answers calls a thousand of them a second would make calls
wait for several times as long as they take; beside it they cost what it takes to read their results. And the response
time is that of the service alone, however busy the registry is.
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
from registry_server.probes.messages import Logs, Orders, Setup
from registry_server.probes.outcome import LOST, NOT_READY, Outcome, OutcomeKind
from registry_server.probes.plan import Plan
from registry_server.runtime.frames import encode_frame, read_frame
from registry_server.runtime.tasks import cancel

if TYPE_CHECKING:  # the worker, which imports this package, has no settings: it would start half a second later
    from registry_server.config import LogSettings

_WORKER: Final = "registry_server.probes.worker"
_START_WITHIN: Final = 30.0
"""Seconds that a worker has until it is ready, and that a probe on demand waits for it."""
_LOST_AFTER: Final = 2.0
"""Seconds after the timeout of a probe on demand at which its answer is given up."""
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks whether the worker still speaks, which it does each second."""
_SILENT: Final = 3
"""Looks without a word of the worker in between, after which we answer in its place."""
_DEAF: Final = 10
"""Looks without a word of the worker in between, after which it is replaced."""
_IN_ONE_TURN: Final = 4
"""Results that are passed on between two turns of other tasks: what follows from them must not hold up calls."""
_SLICE: Final = 200
"""Services that are handed over between two turns of other tasks; about 2 ms."""
_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0

log = structlog.get_logger(__name__)


class Result(NamedTuple):
    """What came of a service that was due."""

    name: str | None
    """Of the service; ``None`` if it was dropped, or is probed otherwise, since the probe began."""
    plan: Plan | None
    """How it was probed; ``None`` with the name."""
    outcome: Outcome
    began: float
    """When the probe began, in monotonic seconds."""
    late: float | None
    """How many seconds after it was due that was; ``None`` if there was no probe, because the worker is away."""


ResultListener = Callable[[Result], None]
"""Takes results. It must raise nothing."""


class _Assigned:
    """A service that is probed in rounds."""

    __slots__ = ("heard", "name", "plan")

    def __init__(self, name: str, plan: Plan, heard: float) -> None:
        self.name = name
        self.plan = plan
        self.heard = heard
        """When its last result came; before there is one, when its first probe is due. Monotonic seconds."""


class ProbeProcess:
    """Probes services once an interval, and others on demand. Between start and close it runs a worker for that.

    A worker that dies is replaced. While there is none that speaks, services get ``INCONCLUSIVE`` when they are due.
    """

    def __init__(
        self, allowed: Sequence[Network], denied: Sequence[Network], *, concurrency: int, logs: "LogSettings"
    ) -> None:
        """Prepares it.

        Args:
            allowed: See ``EgressPolicy``.
            denied: See ``EgressPolicy``.
            concurrency: Most probes under way at once of those that are due.
            logs: How the worker logs.
        """
        self._setup = Setup(tuple(allowed), tuple(denied), concurrency, Logs(logs.level, logs.format))
        self._numbers = itertools.count()
        self._assigned: dict[int, _Assigned] = {}
        self._number_of: dict[str, int] = {}
        self._on_demand: dict[int, asyncio.Future[Outcome]] = {}
        self._orders = Orders([], [], [])
        self._writer: asyncio.StreamWriter | None = None
        self._running = asyncio.Event()
        self._looks = 0  # since the worker last said something
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, on_result: ResultListener) -> None:
        """Begins to run a worker.

        Args:
            on_result: Takes the results of the rounds.
        """
        self._looks = 0
        self._tasks = [
            asyncio.create_task(self._supervise(on_result), name="probe-process"),
            asyncio.create_task(self._stand_in(on_result), name="probe-process-watch"),
        ]

    async def close(self) -> None:
        """Ends the worker; probes under way are given up, and services are forgotten."""
        tasks, self._tasks = self._tasks, []
        await cancel(tasks)
        self._assigned.clear()
        self._number_of.clear()

    def assign(self, name: str, plan: Plan, due: float) -> None:
        """Takes on a service, or probes it otherwise from now on.

        Args:
            name: Of the service.
            plan: How it is probed from now on.
            due: When first, in monotonic seconds.
        """
        self.drop(name)
        number = self._number_of[name] = next(self._numbers)
        self._assigned[number] = _Assigned(name, plan, due)
        if self._writer is not None:
            self._soon()
            self._orders.assign.append((number, plan, due))

    def drop(self, name: str) -> None:
        """Probes a service no longer, if it does."""
        number = self._number_of.pop(name, None)
        if number is not None:
            del self._assigned[number]
            if self._writer is not None:
                self._soon()
                self._orders.drop.append(number)

    async def probe(self, plan: Plan) -> Outcome:
        """Probes a service once, on demand; raises nothing but ``CancelledError``.

        An answer that comes later than it may proves nothing: the outcome is ``INCONCLUSIVE``.
        """
        if not self._running.is_set() and not await self._runs():
            return Outcome(OutcomeKind.INCONCLUSIVE, 0.0, NOT_READY)
        number = next(self._numbers)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._on_demand[number] = answer
        self._soon()
        self._orders.once.append((number, plan))
        try:
            async with asyncio.timeout(plan.timeout + _LOST_AFTER):
                return await answer
        except TimeoutError:
            return Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST)
        finally:
            del self._on_demand[number]

    async def _runs(self) -> bool:
        try:
            async with asyncio.timeout(_START_WITHIN):
                await self._running.wait()
        except TimeoutError:
            return False
        return True

    def _soon(self) -> None:
        """Has orders sent at the end of this turn of the loop, all together."""
        if not any(self._orders):
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        orders, self._orders = self._orders, Orders([], [], [])
        # What waits for the worker is bounded by what changes until it is replaced.
        if self._writer is not None:
            self._writer.write(encode_frame(pickle.dumps(orders)))

    async def _supervise(self, on_result: ResultListener) -> None:
        """Runs one worker after the other."""
        delay = _FIRST_RETRY
        first = True
        while True:
            started = time.monotonic()
            try:
                async with self._worker() as (reader, writer), asyncio.TaskGroup() as group:
                    writer.write(encode_frame(pickle.dumps(self._setup)))
                    async with asyncio.timeout(_START_WITHIN):
                        ready = await read_frame(reader) is not None
                    if ready:
                        self._looks = 0
                        self._writer = writer
                        self._running.set()
                        group.create_task(self._hand_over(dict(self._assigned), spread=not first))
                        first = False
                        await self._listen(reader, on_result)
            except* OSError as errors:
                log.warning("the probe process cannot be talked to", why=str(errors.exceptions[0]))
            except* Exception:
                log.exception("the probe process says what it should not")  # the next one may know better
            finally:
                self._writer = None
                self._running.clear()
                for answer in self._on_demand.values():
                    if not answer.done():
                        answer.set_result(Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST))
            delay = _FIRST_RETRY if time.monotonic() - started > _LAST_RETRY else min(2 * delay, _LAST_RETRY)
            log.error("the probe process ended; another one follows", seconds=delay)
            await asyncio.sleep(delay)

    async def _hand_over(self, services: dict[int, _Assigned], *, spread: bool) -> None:
        """Gives a new worker what there is; those that come from now on are given to it as they come.

        Args:
            services: By number.
            spread: Whether they have been probed before: then all are due within an interval, but not at once.
        """
        now = time.monotonic()
        for some in _slices(services.items()):
            self._soon()
            for number, service in some:
                if number in self._assigned:
                    interval = service.plan.interval
                    due = now + random.uniform(0, interval) if spread else service.heard  # noqa: S311 - no secret
                    self._orders.assign.append((number, service.plan, due))
            await asyncio.sleep(0)

    async def _listen(self, reader: asyncio.StreamReader, on_result: ResultListener) -> None:
        while (frame := await read_frame(reader)) is not None:
            for i, (number, *outcome, began, late) in enumerate(json.loads(frame)):
                if i % _IN_ONE_TURN == _IN_ONE_TURN - 1:
                    await asyncio.sleep(0)
                if late is None:
                    answer = self._on_demand.get(number)
                    if answer is not None and not answer.done():
                        answer.set_result(_outcome(*outcome))
                elif (service := self._assigned.get(number)) is not None:
                    service.heard = began
                    on_result(Result(service.name, service.plan, _outcome(*outcome), began, late))
                else:
                    on_result(Result(None, None, _outcome(*outcome), began, late))
            self._looks = 0

    async def _stand_in(self, on_result: ResultListener) -> None:
        """Answers for a worker that does not, so that no lease runs out for what is wrong with us."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self._looks += 1  # they stand still when this process does
            if self._looks < _SILENT:
                continue
            if self._looks >= _DEAF and self._writer is not None:
                log.error("the probe process does not speak")
                self._writer.transport.abort()
                self._writer = None
                self._running.clear()
            lost = Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST if self._writer is not None else NOT_READY)
            now = time.monotonic()
            for some in _slices(self._assigned.items()):
                for number, service in some:
                    if now - service.heard >= service.plan.interval and number in self._assigned:
                        service.heard = now
                        on_result(Result(service.name, service.plan, lost, now, None))
                await asyncio.sleep(0)

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Runs a worker, which ends when its connection does."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                # -P: what lies in the directory from which somebody started the registry is not ours to import.
                *(sys.executable, "-P", "-m", _WORKER, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ProcessLookupError):
                process.kill()  # it has nothing to finish
            await process.wait()


def _slices(services: Iterable[tuple[int, _Assigned]]) -> Iterator[list[tuple[int, _Assigned]]]:
    each = list(services)
    return (each[start : start + _SLICE] for start in range(0, len(each), _SLICE))


def _outcome(kind: str, response_time: float, error: str, details: str | None) -> Outcome:
    struct = None if details is None else Struct.FromString(details.encode("latin-1"))
    return Outcome(OutcomeKind(kind), response_time, error, struct)
