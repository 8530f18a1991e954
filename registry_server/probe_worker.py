"""The probe process: ``python -m registry_server.probe_worker FD``, which ``ProbeProcess`` starts."""

import asyncio
import json
import os
import pickle
import resource
import signal
import socket
import sys
from typing import Any, Final

from registry_server.health.network import NetworkPolicy
from registry_server.health.probes import Outcome, OutcomeKind, Plan, Prober
from registry_server.health.probes.frames import Setup, framed, read_frame
from registry_server.health.standstill import Standstill
from registry_server.telemetry.logs import configure_logging

_GATHER: Final = 0.005
"""Seconds in which answers gather: that late they come, and that much fewer are the messages."""


class Worker:
    """Makes the probes that come over a connection, and answers in the order in which they end."""

    def __init__(self, prober: Prober, writer: asyncio.StreamWriter) -> None:
        self._prober = prober
        self._writer = writer
        self._answers: list[tuple[Any, ...]] = []
        self._standstill = Standstill(lambda _: None)

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Works until the connection ends: then nobody wants to know the rest."""
        self._flush()  # says that it is ready
        self._standstill.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._standstill.run(), name="standstill")
            while (frame := await read_frame(reader)) is not None:
                for number, plan in pickle.loads(frame):  # noqa: S301 - from our own parent
                    group.create_task(self._probe(number, plan))
            os._exit(0)  # at once, though threads may look up names

    async def _probe(self, number: int, plan: Plan) -> None:
        stood_still = self._standstill.look()
        outcome = await self._prober.probe(plan)
        if self._standstill.look() != stood_still and outcome.kind is not OutcomeKind.OK:
            outcome = outcome._replace(kind=OutcomeKind.INCONCLUSIVE)
        self._answers.append((number, *_plain(outcome)))
        if len(self._answers) == 1:
            asyncio.get_running_loop().call_later(_GATHER, self._flush)

    def _flush(self) -> None:
        """Sends what ended; the reader is our parent, who asked for no more than it takes."""
        answers, self._answers = self._answers, []
        self._writer.write(framed(json.dumps(answers).encode()))


def _plain(outcome: Outcome) -> tuple[str, float, str, str | None]:
    details = None if outcome.details is None else outcome.details.SerializeToString().decode("latin-1")
    return outcome.kind.value, outcome.response_time, outcome.error, details


async def _main(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    frame = await read_frame(reader)
    if frame is None:
        return
    setup: Setup = pickle.loads(frame)  # noqa: S301 - from our own parent
    configure_logging(setup.logs)
    async with Prober(NetworkPolicy(setup.allowed, setup.denied)) as prober:
        await Worker(prober, writer).run(reader)


def main() -> None:
    """Serves the connection on the file descriptor that is the argument."""
    # Whoever stops the registry stops all its processes; it decides when this one has to go, by closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each probe takes a file
    connection = socket.socket(fileno=int(sys.argv[1]))
    if sys.implementation.name == "cpython":
        import uvloop  # noqa: PLC0415 - only there on CPython

        uvloop.run(_main(connection))
    else:
        asyncio.run(_main(connection))


if __name__ == "__main__":
    main()
