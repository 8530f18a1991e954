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
from registry_server.probes.rounds import Probes
from registry_server.runtime.frames import encode_frame, read_frame
from registry_server.security.egress import EgressPolicy

if TYPE_CHECKING:
    from registry_server.probes.messages import Orders, Setup

_GATHER: Final = 0.01
"""Seconds in which answers gather: that late they come, and that much fewer are the messages."""
_SPEAK_EVERY: Final = 1.0
"""Seconds: who is silent for longer is taken for deaf."""


class Worker:
    """Makes the probes that come over a connection, and answers in the order in which they end."""

    def __init__(self, prober: Probes, writer: asyncio.StreamWriter, *, concurrency: int) -> None:
        self._rounds = Rounds(prober, concurrency=concurrency, on_result=self._answer)
        self._writer = writer
        self._answers: list[tuple[Any, ...]] = []
        self._news = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Works until the connection ends: then nobody wants to know the rest."""
        self._writer.write(encode_frame(b"[]"))  # says that it is ready
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rounds.run(), name="rounds")
            group.create_task(self._speak(), name="answers")
            while (frame := await read_frame(reader)) is not None:
                orders: Orders = pickle.loads(frame)  # noqa: S301 - from our own parent
                for number in orders.drop:
                    self._rounds.drop(number)
                for number, plan, due in orders.assign:
                    self._rounds.assign(number, plan, due)
                for number, plan in orders.once:
                    group.create_task(self._probe_once(number, plan))
            os._exit(0)  # at once, though threads may look up names

    async def _probe_once(self, number: int, plan: Plan) -> None:
        self._answer(number, await self._rounds.probe(plan), 0.0, None)

    def _answer(self, number: int, outcome: Outcome, began: float, late: float | None) -> None:
        self._answers.append((number, *_plain(outcome), began, late))
        self._news.set()

    async def _speak(self) -> None:
        """Sends what ended, at the pace of the reader."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SPEAK_EVERY):
                    await self._news.wait()
                    await asyncio.sleep(_GATHER)
            self._news.clear()
            answers, self._answers = self._answers, []
            self._writer.write(encode_frame(json.dumps(answers).encode()))
            self._rounds.pause()
            await self._writer.drain()
            self._rounds.resume()


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
    async with Prober(EgressPolicy(setup.allowed, setup.denied)) as prober:
        await Worker(prober, writer, concurrency=setup.concurrency).run(reader)


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
