"""``Drain``: lets calls under way finish, and long streams end."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from registry_server.errors import ShuttingDown

_T = TypeVar("_T")


class Drain:
    """Knows which calls are under way and whether the server shuts down."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._calls = 0

    def enter(self) -> None:
        """Counts a call as under way."""
        self._calls += 1
        self._idle.clear()

    def leave(self) -> None:
        """Counts it as done."""
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    def begin(self) -> None:
        """Ends the streams that wait for their client."""
        self._begun.set()

    async def finished(self, within: float) -> bool:
        """Waits until no call is under way, for some seconds at the most; tells whether that is so."""
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def until_drained(self, requests: AsyncIterator[_T]) -> AsyncIterator[_T]:
        """Passes on what a client streams.

        Raises:
            ShuttingDown: The server shuts down and the client has sent nothing that waits.
        """
        begun = asyncio.create_task(self._begun.wait())
        following: asyncio.Future[_T] | None = None
        try:
            while True:
                following = asyncio.ensure_future(anext(requests))
                await asyncio.wait((following, begun), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise ShuttingDown
                try:
                    request = following.result()
                except StopAsyncIteration:
                    return
                yield request
        finally:
            begun.cancel()
            if following is not None:
                following.cancel()
