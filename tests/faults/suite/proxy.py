"""A TCP proxy that injects network faults."""

import asyncio
from contextlib import suppress
from typing import Self

from tests.support.redis_process import free_port

_CHUNK = 16 * 1024


class Proxy:
    """Forwards connections to a port of this machine. Injects no fault by default.

    Attributes:
        delay: Delay of every chunk in seconds.
        rate: Bytes per second in each direction; 0 = unlimited.
        refuses: Whether new connections are reset.
        swallows: Whether bytes are read and discarded, as on a half-open connection.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self.port = 0
        self.delay = 0.0
        self.rate = 0
        self.refuses = False
        self.swallows = False

    async def __aenter__(self) -> Self:
        self.port = free_port()  # not an ephemeral port, which an outgoing connection could take
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections."""
        for task, ends in list(self._connections.items()):
            for end in ends:
                end.transport.abort()
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self.refuses:
            writer.transport.abort()
            return
        self._connections[task] = (writer,)
        try:
            with suppress(OSError, asyncio.CancelledError):  # no other task awaits this one
                target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
                self._connections[task] = (writer, target_writer)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._forward(reader, target_writer))
                    group.create_task(self._forward(target_reader, writer))
        except* OSError:
            pass
        finally:
            for end in self._connections.pop(task):
                end.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(min(self.rate or _CHUNK, _CHUNK)):
            if self.swallows:
                continue
            if self.rate:
                await asyncio.sleep(len(chunk) / self.rate)
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError  # ends the other direction too
