"""``ProbeProcess``: a prober in a process of its own, seen from the registry.

An HTTP probe takes about 0.4 ms of Python. In the loop that answers calls a thousand of them a second would make calls
wait for several times as long as they take; beside it they cost what it takes to hand over a plan and an outcome. And
the response time is that of the service alone, however busy the registry is.
"""

import asyncio
import itertools
import json
import pickle
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Final, Self

import structlog
from google.protobuf.struct_pb2 import Struct

from registry_server.config import LogSettings, Network
from registry_server.health.probes.frames import Setup, framed, read_frame
from registry_server.health.probes.outcome import LOST, NOT_READY, Outcome, OutcomeKind
from registry_server.health.probes.plan import Plan
from registry_server.tasks import cancel

_WORKER: Final = "registry_server.probe_worker"
_START_WITHIN: Final = 30.0
"""Seconds that a probe waits for the process to run."""
_SLACK: Final = 0.5
"""Seconds by which an answer may be later than the timeout of its probe, until it is the process that is late."""
_LOST_AFTER: Final = 2.0
"""Seconds after the timeout of a probe at which its answer is given up."""
_DEAF_AFTER: Final = 10.0
"""Seconds without any answer after which a worker that owes some is replaced."""
_IN_ONE_TURN: Final = 4
"""Answers that are passed on between two turns of other tasks: what follows from them must not hold up calls."""
_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0

log = structlog.get_logger(__name__)


class ProbeProcess:
    """Makes probes; any number at once. Between start and close it runs a worker, and another one if that dies.

    To be started and closed, or used as a context manager.
    """

    def __init__(self, allowed: Sequence[Network], denied: Sequence[Network], logs: LogSettings) -> None:
        """Prepares it.

        Args:
            allowed: See ``NetworkPolicy``.
            denied: See ``NetworkPolicy``.
            logs: How the worker logs.
        """
        self._setup = Setup(tuple(allowed), tuple(denied), logs)
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[Outcome]] = {}
        self._outgoing: list[tuple[int, Plan]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._heard = 0.0
        self._running = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to run a worker."""
        self._supervisor = asyncio.create_task(self._supervise(), name="probe-process")

    async def close(self) -> None:
        """Ends the worker; probes under way are given up."""
        if self._supervisor is not None:
            await cancel([self._supervisor])

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def probe(self, plan: Plan) -> Outcome:
        """Probes a service once; raises nothing but ``CancelledError``.

        An answer that comes later than it may proves nothing: the outcome is ``INCONCLUSIVE``.
        """
        if not self._running.is_set() and not await self._runs():
            return Outcome(OutcomeKind.INCONCLUSIVE, 0.0, NOT_READY)
        started = time.monotonic()
        number = next(self._ids)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        self._send(number, plan)
        try:
            async with asyncio.timeout(plan.timeout + _LOST_AFTER):
                outcome = await answer
        except TimeoutError:
            if self._writer is not None and time.monotonic() - self._heard > _DEAF_AFTER:
                self._writer.transport.abort()
                self._writer = None
                self._running.clear()
            return Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST)
        finally:
            del self._pending[number]
        if outcome.kind is OutcomeKind.FAILED and time.monotonic() - started > plan.timeout + _SLACK:
            return outcome._replace(kind=OutcomeKind.INCONCLUSIVE)
        return outcome

    async def _runs(self) -> bool:
        try:
            async with asyncio.timeout(_START_WITHIN):
                await self._running.wait()
        except TimeoutError:
            return False
        return True

    def _send(self, number: int, plan: Plan) -> None:
        """Sends a plan, together with the others of this turn of the loop."""
        self._outgoing.append((number, plan))
        if len(self._outgoing) == 1:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        plans, self._outgoing = self._outgoing, []
        # What waits for the worker is bounded by the number of probes under way.
        if self._writer is not None:
            self._writer.write(framed(pickle.dumps(plans)))

    async def _supervise(self) -> None:
        delay = _FIRST_RETRY
        while True:
            started = time.monotonic()
            try:
                async with self._worker() as (reader, writer):
                    writer.write(framed(pickle.dumps(self._setup)))
                    while (frame := await read_frame(reader)) is not None:
                        self._heard = time.monotonic()
                        for i, answer in enumerate(json.loads(frame)):
                            if i % _IN_ONE_TURN == _IN_ONE_TURN - 1:
                                await asyncio.sleep(0)
                            self._take(*answer)
                        if not self._running.is_set():  # the first frame, which is empty, says that it is ready
                            self._writer = writer
                            self._running.set()
            except OSError as error:
                log.warning("the probe process cannot be talked to", why=str(error))
            except Exception:
                log.exception("the probe process says what it should not")  # the next one may know better
            finally:
                self._writer = None
                self._running.clear()
                for answer in self._pending.values():
                    if not answer.done():
                        answer.set_result(Outcome(OutcomeKind.INCONCLUSIVE, 0.0, LOST))
            delay = _FIRST_RETRY if time.monotonic() - started > _LAST_RETRY else min(2 * delay, _LAST_RETRY)
            log.error("the probe process ended; another one follows", seconds=delay)
            await asyncio.sleep(delay)

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

    def _take(self, number: int, kind: str, response_time: float, error: str, details: str | None) -> None:
        answer = self._pending.get(number)
        if answer is not None and not answer.done():
            struct = None if details is None else Struct.FromString(details.encode("latin-1"))
            answer.set_result(Outcome(OutcomeKind(kind), response_time, error, struct))
