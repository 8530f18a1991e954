"""Messages between a process and its child over a socket pair, and answers that repeat the number of their request."""

import asyncio
import itertools
import json
import pickle
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, Self, TypeVar

_LENGTH: Final = struct.Struct("!I")

_T = TypeVar("_T")


class Connection:
    """Sends and receives messages in frames: a length (4 bytes, big-endian) and the content.

    Iteration yields the content of each received frame that is not empty, and ends with the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.on_frame: Callable[[], None] = lambda: None
        """Called for each received frame, also for an empty one."""

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """Return the connection on one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, content: bytes) -> None:
        """Send one frame; do nothing if the connection has ended."""
        if not self._writer.is_closing():  # then uvloop raises RuntimeError
            self._writer.write(_LENGTH.pack(len(content)) + content)

    def send_json(self, message: Any) -> None:
        """Send a message as JSON: the form for a sender that has parsed untrusted input."""
        self.send(json.dumps(message).encode())

    def send_pickle(self, message: Any) -> None:
        """Send a message as a pickle."""
        self.send(pickle.dumps(message))

    async def drain(self) -> None:
        """Wait while the peer does not read what was sent; return if the connection has ended."""
        with suppress(ConnectionError):
            await self._writer.drain()

    def close(self) -> None:
        """Send what is still buffered, then close."""
        self._writer.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                content = await self._reader.readexactly(length)
                self.on_frame()
                if content:
                    return content
        # After a failed write, reading raises the error of the write, such as BrokenPipeError.
        except (asyncio.IncompleteReadError, ConnectionError):
            raise StopAsyncIteration from None


class PendingAnswers(Generic[_T]):
    """Requests in flight, each with a number that its answer repeats."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[_T | None]] = {}

    async def request(self, send: Callable[[int], None], timeout_seconds: float) -> _T | None:
        """Send a request and return its answer; ``None`` if it is late or was abandoned.

        Args:
            send: Sends the request with the given number.
            timeout_seconds: How long to wait for the answer.
        """
        number = next(self._numbers)
        answer: asyncio.Future[_T | None] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            send(number)
            async with asyncio.timeout(timeout_seconds):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._answers[number]

    def resolve(self, number: int, answer: _T | None) -> None:
        """Pass an answer to its request, unless that has ended."""
        pending = self._answers.get(number)
        if pending is not None and not pending.done():
            pending.set_result(answer)

    def abandon(self) -> None:
        """End all requests without an answer: the peer that should answer has ended."""
        for number in self._answers:
            self.resolve(number, None)
