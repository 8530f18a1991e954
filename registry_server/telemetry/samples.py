"""``Samples``: what has to be looked at again and again to be known."""

import asyncio
import time
from typing import Final

from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.counters import Histogram
from registry_server.runtime.tasks import raise_if_cancelled
from registry_server.store import RedisStore

_TICK: Final = 0.1
"""Seconds."""
_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LOOK_EVERY: Final = 5.0
"""Seconds: twice in the usual time between two scrapes."""


class Samples:
    """How late the event loop is, and how full Redis is."""

    def __init__(self, store: RedisStore) -> None:
        self.loop_lag = Histogram(_LAG_BOUNDS)
        """How much later than it was due a task had its turn, in seconds: so long every call waited too."""
        self._store = store

    async def run(self) -> None:
        """Looks for ever; cancel it to stop."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_at_loop(), name="loop-lag")
            group.create_task(self._look_at_store(), name="store-memory")

    async def _look_at_loop(self) -> None:
        while True:
            due = time.perf_counter() + _TICK
            await asyncio.sleep(_TICK)
            self.loop_lag.observe(max(time.perf_counter() - due, 0.0))

    async def _look_at_store(self) -> None:
        while True:
            try:
                await self._store.sample_memory()
            except StoreUnavailable:  # the follower logs it once for all
                self._store.counters.memory = None
            raise_if_cancelled()
            await asyncio.sleep(_LOOK_EVERY)
