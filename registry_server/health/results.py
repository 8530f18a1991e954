"""``ResultWriter``: results of many probes in few round trips."""

import asyncio
from contextlib import suppress
from typing import Final

from registry_server.errors import StoreUnavailable
from registry_server.runtime.tasks import raise_if_cancelled
from registry_server.store import ProbeResult, RedisStore

_PAUSE: Final = 0.02
"""Seconds in which results gather: that late they can be read, and that much fewer are the writes."""
_MOST_WAITING: Final = 200_000


class ResultWriter:
    """Writes results of probes: the newest of each service, without a revision each."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._waiting: dict[str, ProbeResult] = {}
        self._news = asyncio.Event()

    def add(self, name: str, health: bytes, *, renew: bool) -> None:
        """Takes a result; it replaces one that waits of the same service, but not the renewal that that one earned."""
        waiting = self._waiting.get(name)
        if waiting is not None or len(self._waiting) < _MOST_WAITING:
            self._waiting[name] = ProbeResult(name, health, renew or (waiting is not None and waiting.renew))
            self._news.set()

    def discard(self, name: str) -> None:
        """Drops what waits of a service: something newer is known."""
        self._waiting.pop(name, None)

    async def flush(self) -> None:
        """Writes what waits. What cannot be written is dropped: the next probe tells newer.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        waiting, self._waiting = self._waiting, {}
        if waiting:
            await self._store.writer.write_checks(list(waiting.values()))

    async def run(self) -> None:
        """Writes what waits, until cancelled."""
        while True:
            await self._news.wait()
            await asyncio.sleep(_PAUSE)
            self._news.clear()
            with suppress(StoreUnavailable):
                await self.flush()
            raise_if_cancelled()
