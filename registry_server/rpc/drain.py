"""``Drain``: waits for calls in flight and ends long streams at shutdown."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, TypeVar

from registry_server.errors import LimitExceeded, RegistryError, ShuttingDown
from registry_server.security.guard import Session

_T = TypeVar("_T")

_FIRST_MESSAGE_SECONDS: Final = 60.0
"""Time limit for the first message of a stream."""


class Drain:
    """Counts the calls in flight and notifies streams of a shutdown."""

    def __init__(self) -> None:
        self._draining = asyncio.Event()
        self._idle: asyncio.Event | None = None  # created by wait_idle: until then, call_ended only decrements
        self._calls = 0

    def call_started(self) -> None:
        """Count a call as in flight."""
        self._calls += 1

    def call_ended(self) -> None:
        """Count a call as finished."""
        self._calls -= 1
        if self._idle is not None and not self._calls:
            self._idle.set()

    def begin(self) -> None:
        """End the streams that wait for a message from their client."""
        self._draining.set()

    async def wait_idle(self, max_seconds: float) -> bool:
        """Wait until no call is in flight; return False if that takes longer than ``max_seconds``."""
        idle = self._idle = self._idle or asyncio.Event()
        try:
            async with asyncio.timeout(max_seconds):
                while self._calls:
                    idle.clear()
                    await idle.wait()
        except TimeoutError:
            return False
        return True

    async def requests_until_drained(
        self, requests: AsyncIterator[_T], session: Session, *, idle_seconds: float
    ) -> AsyncGenerator[_T, None]:
        """Yield the messages that a client streams.

        Args:
            requests: The client's stream.
            session: Session of the stream.
            idle_seconds: Time limit for the next message; the first one must arrive within a minute.

        Raises:
            ShuttingDown: The server is shutting down and no message is pending.
            LimitExceeded: No message arrived in time.
            RegistryError: The session has ended.
        """
        draining = asyncio.create_task(self._draining.wait())
        session_end: asyncio.Future[RegistryError] = asyncio.get_running_loop().create_future()
        session.on_end(session_end.set_result)
        next_message: asyncio.Future[_T] | None = None
        timeout = min(idle_seconds, _FIRST_MESSAGE_SECONDS)
        try:
            while True:
                next_message = asyncio.ensure_future(anext(requests))
                await asyncio.wait(
                    (next_message, draining, session_end), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                timeout = idle_seconds
                if session_end.done():
                    raise session_end.result()
                if not next_message.done():
                    raise ShuttingDown if draining.done() else _idle_too_long(idle_seconds)
                try:
                    request = next_message.result()
                except StopAsyncIteration:
                    return
                yield request
        finally:
            draining.cancel()
            if next_message is not None:
                next_message.cancel()


def _idle_too_long(idle_seconds: float) -> LimitExceeded:
    return LimitExceeded(
        "stream_idle_seconds", round(idle_seconds), "the client sent no message on this stream in time"
    )
