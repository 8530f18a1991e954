"""``Drain``: lets calls under way finish, and long streams end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, TypeVar

from registry_server.errors import LimitExceeded, RegistryError, ShuttingDown
from registry_server.security.guard import Session

_T = TypeVar("_T")

_FIRST_MESSAGE: Final = 60.0
"""Seconds for the first message of a stream."""


class Drain:
    """Knows which calls are under way and whether the server shuts down."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._idle: asyncio.Event | None = None  # made by who waits for it: every call passes here
        self._calls = 0

    def enter(self) -> None:
        """Counts a call as under way."""
        self._calls += 1

    def leave(self) -> None:
        """Counts it as done."""
        self._calls -= 1
        if self._idle is not None and not self._calls:
            self._idle.set()

    def begin(self) -> None:
        """Ends the streams that wait for their client."""
        self._begun.set()

    async def finished(self, within: float) -> bool:
        """Waits until no call is under way, for some seconds at the most; tells whether that is so."""
        idle = self._idle = self._idle or asyncio.Event()
        try:
            async with asyncio.timeout(within):
                while self._calls:
                    idle.clear()
                    await idle.wait()
        except TimeoutError:
            return False
        return True

    async def until_drained(
        self, requests: AsyncIterator[_T], session: Session, *, idle: float
    ) -> AsyncGenerator[_T, None]:
        """Passes on what a client streams.

        Args:
            requests: What it streams.
            session: Of the stream.
            idle: Seconds that it may send nothing; a client that has sent nothing yet has less of them.

        Raises:
            ShuttingDown: The server shuts down and the client has sent nothing that waits.
            LimitExceeded: It sends nothing for too long.
            RegistryError: The session is over.
        """
        begun = asyncio.create_task(self._begun.wait())
        over: asyncio.Future[RegistryError] = asyncio.get_running_loop().create_future()
        session.on_end(over.set_result)
        following: asyncio.Future[_T] | None = None
        patience = min(idle, _FIRST_MESSAGE)
        try:
            while True:
                following = asyncio.ensure_future(anext(requests))
                await asyncio.wait((following, begun, over), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                patience = idle
                if over.done():
                    raise over.result()
                if not following.done():
                    raise ShuttingDown if begun.done() else _too_quiet(idle)
                try:
                    request = following.result()
                except StopAsyncIteration:
                    return
                yield request
        finally:
            begun.cancel()
            if following is not None:
                following.cancel()


def _too_quiet(idle: float) -> LimitExceeded:
    return LimitExceeded("stream_idle_seconds", round(idle), "nothing came on this stream for too long")
