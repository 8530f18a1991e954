"""A TCP proxy that can do to a connection what networks do."""

import asyncio
from contextlib import suppress
from typing import Self

from tests.support.redis_process import free_port

_CHUNK = 16 * 1024


class Proxy:
    """Stands between somebody and a port of this machine; healthy until it is told otherwise.

    Attributes:
        delay: Seconds that every piece waits.
        rate: Bytes a second in each direction; 0 = all that come.
        refuses: New connections are reset.
        swallows: Bytes are taken and go nowhere, as on a connection whose other end is gone without a word.
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
        self.port = free_port()  # not an ephemeral one: nobody's outgoing connection is to have it
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        """Resets all connections."""
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
            with suppress(OSError, asyncio.CancelledError):  # it ends with the task, which nobody else awaits
                there_reader, there = await asyncio.open_connection("127.0.0.1", self._target)
                self._connections[task] = (writer, there)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, there))
                    group.create_task(self._pass(there_reader, writer))
        except* OSError:
            pass
        finally:
            for end in self._connections.pop(task):
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(min(self.rate or _CHUNK, _CHUNK)):
            if self.swallows:
                continue
            if self.rate:
                await asyncio.sleep(len(piece) / self.rate)
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(piece)
            await writer.drain()
        raise ConnectionResetError  # ends the other direction too
