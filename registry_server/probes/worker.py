"""The probe process: ``python -m registry_server.probes.worker FD``, which ``ProbeProcess`` starts."""

import asyncio
import json
import os
import pickle
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from registry_server.instrumentation.logs import configure_logging
from registry_server.probes import Outcome, Plan, Prober, Rounds
from registry_server.probes.rounds import ProbeSender
from registry_server.runtime.frames import encode_frame, read_frame
from registry_server.security.egress import EgressPolicy

if TYPE_CHECKING:
    from registry_server.probes.messages import WorkerCommands, WorkerSetup

_BATCH_SECONDS: Final = 0.01
"""How long to collect answers for one message: a delay in exchange for fewer messages."""
_MAX_SILENCE_SECONDS: Final = 1.0
"""Maximum time between two messages; the registry replaces a silent worker."""


class Worker:
    """Runs the commands received over a connection and sends results in the order in which probes end."""

    def __init__(self, prober: ProbeSender, writer: asyncio.StreamWriter, *, concurrency: int) -> None:
        self._rounds = Rounds(prober, concurrency=concurrency, on_result=self._answer)
        self._writer = writer
        self._answers: list[tuple[Any, ...]] = []
        self._wakeup = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Serve until the connection closes, then exit immediately."""
        self._writer.write(encode_frame(b"[]"))  # reports that the worker is ready
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rounds.run(), name="rounds")
            group.create_task(self._send_answers(), name="answers")
            while (frame := await read_frame(reader)) is not None:
                commands: WorkerCommands = pickle.loads(frame)  # noqa: S301 - from our own parent
                for number in commands.drop:
                    self._rounds.drop_service(number)
                for number, plan, due in commands.assign:
                    self._rounds.assign_service(number, plan, due)
                for number, plan in commands.once:
                    group.create_task(self._probe_once(number, plan))
            os._exit(0)  # without waiting for threads that resolve names

    async def _probe_once(self, number: int, plan: Plan) -> None:
        self._answer(number, await self._rounds.probe_now(plan), 0.0, None)

    def _answer(self, number: int, outcome: Outcome, started: float, late: float | None) -> None:
        self._answers.append((number, *_encode(outcome), started, late))
        self._wakeup.set()

    async def _send_answers(self) -> None:
        """Send answers at the pace at which the registry reads them."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_MAX_SILENCE_SECONDS):
                    await self._wakeup.wait()
                    await asyncio.sleep(_BATCH_SECONDS)
            self._wakeup.clear()
            answers, self._answers = self._answers, []
            self._writer.write(encode_frame(json.dumps(answers).encode()))
            self._rounds.pause()
            await self._writer.drain()
            self._rounds.resume()


def _encode(outcome: Outcome) -> tuple[str, float, str, str | None]:
    details = None if outcome.details is None else outcome.details.SerializeToString().decode("latin-1")
    return outcome.kind.value, outcome.response_time, outcome.error, details


async def _main(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    frame = await read_frame(reader)
    if frame is None:
        return
    setup: WorkerSetup = pickle.loads(frame)  # noqa: S301 - from our own parent
    configure_logging(setup.logs)
    async with Prober(EgressPolicy(setup.allowed, setup.denied)) as prober:
        await Worker(prober, writer, concurrency=setup.concurrency).run(reader)


def main() -> None:
    """Serve the connection on the file descriptor given as argument."""
    # Signals to the process group also reach this process; the registry ends it by closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))  # each probe opens a file
    connection = socket.socket(fileno=int(sys.argv[1]))
    if sys.implementation.name == "cpython":
        import uvloop  # noqa: PLC0415 - a dependency on CPython only

        uvloop.run(_main(connection))
    else:
        asyncio.run(_main(connection))


if __name__ == "__main__":
    main()
