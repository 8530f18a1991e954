"""A worker: ``python -m registry_server.workers.worker FD``, which ``Supervisor`` starts."""

import asyncio
import json
import os
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

import structlog

from registry_server.app import run_loop, serve_until, stop_on_signals
from registry_server.errors import ConfigurationError
from registry_server.frames import framed, read_frame
from registry_server.tasks import cancel
from registry_server.telemetry.logs import configure_logging
from registry_server.workers.messages import ALIVE, READY, REFUSED

if TYPE_CHECKING:
    from registry_server.workers.messages import Message, Setup

_SPEAK_EVERY: Final = 1.0
"""Seconds: who is silent for long is replaced."""
_BAD_CONFIGURATION: Final = 2


class Worker:
    """Serves until SIGTERM, or until its supervisor is gone, and tells that how it is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def run(self, setup: "Setup") -> int:
        """Serves; gives the exit code of the process."""
        structlog.contextvars.bind_contextvars(worker=setup.number)
        stop = stop_on_signals(signal.SIGTERM)
        tasks = [
            asyncio.create_task(self._listen(stop), name="supervisor"),
            asyncio.create_task(self._speak(), name="sign-of-life"),
        ]
        try:
            await serve_until(stop, setup.settings, shared_ports=True, on_ready=lambda: self._say({"kind": READY}))
        except ConfigurationError as error:
            self._say({"kind": REFUSED, "why": str(error)})
            return _BAD_CONFIGURATION
        finally:
            await cancel(tasks)
            self._writer.close()
        return 0

    async def _listen(self, stop: asyncio.Event) -> None:
        while await read_frame(self._reader) is not None:
            pass
        stop.set()  # the supervisor is gone: nobody would end us

    async def _speak(self) -> None:
        while True:
            self._say({"kind": ALIVE})
            await asyncio.sleep(_SPEAK_EVERY)

    def _say(self, message: "Message") -> None:
        # A supervisor that stands still finds at most a few kilobytes when it goes on; beyond, it is told less.
        if self._writer.transport.get_write_buffer_size() == 0:
            self._writer.write(framed(json.dumps(message).encode()))


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
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return run_loop(_main(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
