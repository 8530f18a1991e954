"""The probe process: ``python -m registry_server.probes.worker FD``, which ``ProbeProcess`` starts."""

import asyncio
import os
import pickle
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from registry_server.instrumentation.logs import configure_logging
from registry_server.probes import Outcome, Plan
from registry_server.probes.prober import Prober
from registry_server.probes.rounds import Rounds, SendProbe
from registry_server.runtime.child import serve_child
from registry_server.runtime.connection import Connection
from registry_server.runtime.open_files import raise_open_files_limit
from registry_server.security.egress import EgressPolicy

if TYPE_CHECKING:
    from registry_server.probes.messages import WorkerCommands, WorkerSetup

_BATCH_SECONDS: Final = 0.01
"""How long to collect answers for one message: a delay in exchange for fewer messages."""


class Worker:
    """Runs the commands received over a connection and sends results in the order in which probes end."""

    def __init__(self, send_probe: SendProbe, connection: Connection, *, concurrency: int) -> None:
        self._rounds = Rounds(send_probe, concurrency=concurrency, on_result=self._answer)
        self._connection = connection
        self._answers: list[tuple[Any, ...]] = []
        self._on_demand: dict[int, asyncio.Task[None]] = {}
        self._wakeup = asyncio.Event()

    async def run(self) -> None:
        """Serve until the connection closes, then exit immediately."""
        self._connection.send_json([])  # reports that the worker is ready
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rounds.run(), name="rounds")
            group.create_task(self._send_answers(), name="answers")
            async for frame in self._connection:
                commands: WorkerCommands = pickle.loads(frame)  # noqa: S301 - from our own parent
                for number in commands.drop:
                    self._rounds.drop_service(number)
                for number, plan, due in commands.assign:
                    self._rounds.assign_service(number, plan, due)
                for number, plan in commands.once:
                    probe = self._on_demand[number] = group.create_task(self._probe_once(number, plan))
                    probe.add_done_callback(partial(self._forget_probe, number))
                for number in commands.cancel:
                    if number in self._on_demand:
                        self._on_demand[number].cancel()
            os._exit(0)  # without waiting for threads that resolve names

    async def _probe_once(self, number: int, plan: Plan) -> None:
        self._answer(number, await self._rounds.probe_now(plan), 0.0, None)

    def _forget_probe(self, number: int, _: asyncio.Task[None]) -> None:
        del self._on_demand[number]

    def _answer(self, number: int, outcome: Outcome, started: float, late: float | None) -> None:
        self._answers.append((number, *_encode(outcome), started, late))
        self._wakeup.set()

    async def _send_answers(self) -> None:
        """Send answers at the pace at which the registry reads them."""
        while True:
            await self._wakeup.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            self._wakeup.clear()
            answers, self._answers = self._answers, []
            self._connection.send_json(answers)
            self._rounds.pause()
            await self._connection.drain()
            self._rounds.resume()


def _encode(outcome: Outcome) -> tuple[str, float, str, str | None]:
    details = None if outcome.details is None else outcome.details.SerializeToString().decode("latin-1")
    return outcome.kind.value, outcome.response_time, outcome.error, details


async def _main(connection: Connection, setup: "WorkerSetup") -> None:
    configure_logging(setup.level, setup.format)
    async with Prober(EgressPolicy(setup.allowed, setup.denied)) as prober:
        await Worker(prober.send_probe, connection, concurrency=setup.concurrency).run()


def main() -> None:
    """Serve as configured by the registry."""
    raise_open_files_limit()
    serve_child(_main, ignored_signals=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


if __name__ == "__main__":
    main()
