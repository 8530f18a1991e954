"""``NameLookups``: resolves the host names of endpoints in threads that the owners of services share fairly."""

import asyncio
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from registry_server.runtime.fair_slots import FairSlots, TooManyWaiters

_MAX_CONCURRENT: Final = 128
"""Threads. With a DNS server that does not answer, each look-up takes 10 s or more, and cannot be cancelled."""
_MAX_WAITING: Final = 10_000


class LookupNotStarted(Exception):
    """No thread became free: too many look-ups of this owner are in flight."""


class NameLookups:
    """Looks up names with the resolver of this host, in threads of its own.

    A slow DNS server would otherwise block the few threads of the event loop's default executor. A look-up that is
    given up keeps its thread, and its owner's slot, until the resolver returns.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_MAX_CONCURRENT, thread_name_prefix="probe-lookup")
        self._slots = FairSlots(_MAX_CONCURRENT, _MAX_WAITING)

    def close(self) -> None:
        """Abandon look-ups in flight."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look_up(self, host: str, port: int, owner: str, max_seconds: float | None) -> tuple[list[Any], float]:
        """Wait for a thread, and then for the answer, each for at most ``max_seconds``.

        Returns:
            The result of ``socket.getaddrinfo``, and how long the look-up waited for a thread in seconds.

        Raises:
            LookupNotStarted: No thread became free in time.
            TimeoutError: The resolver did not return in time.
            OSError, UnicodeError: The look-up failed.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout(max_seconds):
                await self._slots.acquire(owner)
        except (TimeoutError, TooManyWaiters):
            raise LookupNotStarted from None
        waited = time.monotonic() - began
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        running = asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        running.add_done_callback(lambda ended: self._end(ended, owner))
        async with asyncio.timeout(max_seconds):
            return await asyncio.shield(running), waited

    def _end(self, ended: asyncio.Future[Any], owner: str) -> None:
        self._slots.release(owner)
        if not ended.cancelled():
            ended.exception()  # asyncio logs the error of a look-up that was given up, unless it is retrieved
