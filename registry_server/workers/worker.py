"""``Worker``: the process that ``Supervisor`` starts as ``python -m registry_server.workers.worker FD``."""

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

_ALIVE_INTERVAL_SECONDS: Final = 1.0
"""Interval of ``ALIVE`` messages. The supervisor kills a worker that is silent for 30 s."""
_COLLECT_TIMEOUT_SECONDS: Final = 5.0
"""Afterwards a scrape returns only the metrics of this worker."""
_EXIT_CONFIGURATION_ERROR: Final = 2


class Worker:
    """Serves until SIGTERM or until the supervisor closes the connection, and reports to the supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._own_metrics: MetricsText | None = None
        self._pending: dict[int, asyncio.Future[list[str]]] = {}
        self._ids = itertools.count()

    async def run(self, setup: "Setup") -> int:
        """Serve, and return the exit code of the process."""
        structlog.contextvars.bind_contextvars(worker=setup.number)
        stop = stop_on_signals(signal.SIGTERM)
        tasks = [
            asyncio.create_task(self._listen(stop), name="supervisor"),
            asyncio.create_task(self._send_alive_messages(), name="alive-messages"),
        ]
        try:
            await serve_until(
                stop,
                setup.settings,
                on_ready=lambda: self._send({"kind": messages.READY}),
                worker=WorkerContext(setup.number, self._join_metrics),
            )
        except ConfigurationError as error:
            self._send({"kind": messages.CONFIGURATION_ERROR, "error": str(error)})
            return _EXIT_CONFIGURATION_ERROR
        finally:
            await cancel(tasks)
            self._writer.close()
        return 0

    def _join_metrics(self, own: "MetricsText") -> "MetricsText":
        """Return a function that returns the metrics of all workers."""
        self._own_metrics = own

        async def all_metrics() -> bytes:
            texts = await self._collect_all()
            return await own() if texts is None else merge_metrics(texts)

        return all_metrics

    async def _collect_all(self) -> list[str] | None:
        """Return the metrics of all workers, which the supervisor collects; ``None`` if it does not answer in time."""
        number = next(self._ids)
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        self._send({"kind": messages.GET_ALL_METRICS, "id": number})
        try:
            async with asyncio.timeout(_COLLECT_TIMEOUT_SECONDS):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._pending[number]

    async def _listen(self, stop: asyncio.Event) -> None:
        try:
            while (frame := await read_frame(self._reader)) is not None:
                message: Message = json.loads(frame)
                match message["kind"]:
                    case messages.COLLECT_METRICS if self._own_metrics is not None:
                        text = (await self._own_metrics()).decode()
                        self._send({"kind": messages.METRICS, "id": message["id"], "text": text})
                    case messages.ALL_METRICS if (answer := self._pending.get(message["id"])) and not answer.done():
                        answer.set_result(message["texts"])
        finally:
            stop.set()  # without this connection, no signal or message from the supervisor would stop this process

    async def _send_alive_messages(self) -> None:
        while True:
            # While the supervisor does not read, the buffer must not fill with these messages.
            if self._writer.transport.get_write_buffer_size() == 0:
                self._send({"kind": messages.ALIVE})
            await asyncio.sleep(_ALIVE_INTERVAL_SECONDS)

    def _send(self, message: "Message") -> None:
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
    """Serve as configured by the supervisor, whose connection is the file descriptor in the first argument."""
    # A terminal signals the whole process group; the supervisor forwards what workers must handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(ROLL_SIGNAL, signal.SIG_IGN)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return run_loop(_main(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
