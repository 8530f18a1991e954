"""A worker: ``python -m registry_server.workers.worker FD``, which ``Supervisor`` starts."""

import asyncio
import itertools
import json
import os
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

import structlog

from registry_server.app import WorkerContext
from registry_server.errors import ConfigurationError
from registry_server.instrumentation.logs import configure_logging
from registry_server.process import ROLL_SIGNAL, run_loop, serve_until, stop_on_signals
from registry_server.runtime.frames import encode_frame, read_frame
from registry_server.runtime.tasks import cancel
from registry_server.telemetry.merging import merge_metrics
from registry_server.workers import messages

if TYPE_CHECKING:
    from registry_server.app import MetricsText
    from registry_server.workers.messages import Message, Setup

_SPEAK_EVERY: Final = 1.0
"""Seconds: who is silent for long is replaced."""
_COLLECT_WITHIN: Final = 5.0
"""Seconds that the supervisor has to collect metrics; then only our own are told."""
_BAD_CONFIGURATION: Final = 2


class Worker:
    """Serves until SIGTERM, or until its supervisor is gone, and tells that how it is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._own_metrics: MetricsText | None = None
        self._asked: dict[int, asyncio.Future[list[str]]] = {}
        self._ids = itertools.count()

    async def run(self, setup: "Setup") -> int:
        """Serves; gives the exit code of the process."""
        structlog.contextvars.bind_contextvars(worker=setup.number)
        stop = stop_on_signals(signal.SIGTERM)
        tasks = [
            asyncio.create_task(self._listen(stop), name="supervisor"),
            asyncio.create_task(self._speak(), name="sign-of-life"),
        ]
        try:
            await serve_until(
                stop,
                setup.settings,
                on_ready=lambda: self._say({"kind": messages.READY}),
                worker=WorkerContext(setup.number, self._join),
            )
        except ConfigurationError as error:
            self._say({"kind": messages.REFUSED, "why": str(error)})
            return _BAD_CONFIGURATION
        finally:
            await cancel(tasks)
            self._writer.close()
        return 0

    def _join(self, own: "MetricsText") -> "MetricsText":
        """Makes of the metrics of this worker those of all."""
        self._own_metrics = own

        async def all_metrics() -> bytes:
            texts = await self._collected()
            return await own() if texts is None else merge_metrics(texts)

        return all_metrics

    async def _collected(self) -> list[str] | None:
        """Has the supervisor collect the metrics of all; ``None`` if it does not answer."""
        number = next(self._ids)
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._say({"kind": messages.COLLECT, "id": number})
        try:
            async with asyncio.timeout(_COLLECT_WITHIN):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    async def _listen(self, stop: asyncio.Event) -> None:
        try:
            while (frame := await read_frame(self._reader)) is not None:
                message: Message = json.loads(frame)
                match message["kind"]:
                    case messages.TELL if self._own_metrics is not None:
                        text = (await self._own_metrics()).decode()
                        self._say({"kind": messages.TOLD, "id": message["id"], "text": text})
                    case messages.COLLECTED if (answer := self._asked.get(message["id"])) and not answer.done():
                        answer.set_result(message["texts"])
        finally:
            stop.set()  # the supervisor is gone, or will not be heard any more: nobody would end us

    async def _speak(self) -> None:
        while True:
            # A supervisor that stands still finds at most a few kilobytes of these when it goes on.
            if self._writer.transport.get_write_buffer_size() == 0:
                self._say({"kind": messages.ALIVE})
            await asyncio.sleep(_SPEAK_EVERY)

    def _say(self, message: "Message") -> None:
        self._writer.write(encode_frame(json.dumps(message).encode()))


async def _main(connection: socket.socket) -> int:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    frame = await read_frame(reader)
    if frame is None:
        return 0
    setup: Setup = pickle.loads(frame)  # noqa: S301 - from our own parent
    configure_logging(setup.settings.log)
    return await Worker(reader, writer).run(setup)


def main() -> int:
    """Serves as the connection on the file descriptor that is the argument says."""
    # What a terminal sends to all processes of a group is for the supervisor, which passes on what concerns us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(ROLL_SIGNAL, signal.SIG_IGN)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return run_loop(_main(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
