"""``Samples``: values that must be sampled periodically, because they have no counter."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from registry_server.instrumentation.counters import Histogram
from registry_server.runtime.tasks import raise_if_cancelled

_LAG_SAMPLE_SECONDS: Final = 0.1
_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Prometheus usually scrapes every 10 to 15 seconds.
_MEMORY_SAMPLE_SECONDS: Final = 5.0


class Samples:
    """Samples the lag of the event loop and the memory of Redis."""

    def __init__(self, sample_store: Callable[[], Awaitable[None]]) -> None:
        """Initialise the samples; ``sample_store`` reads the memory usage of Redis into its counters."""
        self.loop_lag = Histogram(_LAG_BOUNDS)
        """Delay in seconds until a scheduled task ran; every call was delayed by as much."""
        self._sample_store = sample_store

    async def run(self) -> None:
        """Take samples until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample_loop_lag(), name="loop-lag")
            group.create_task(self._sample_store_memory(), name="store-memory")

    async def _sample_loop_lag(self) -> None:
        while True:
            due = time.perf_counter() + _LAG_SAMPLE_SECONDS
            await asyncio.sleep(_LAG_SAMPLE_SECONDS)
            self.loop_lag.observe(max(time.perf_counter() - due, 0.0))

    async def _sample_store_memory(self) -> None:
        while True:
            await self._sample_store()
            raise_if_cancelled()
            await asyncio.sleep(_MEMORY_SAMPLE_SECONDS)
