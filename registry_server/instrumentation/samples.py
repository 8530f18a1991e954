"""``Samples``: values that must be sampled periodically, because they have no counter."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from registry_server.instrumentation.stalls import StallMonitor
from registry_server.runtime.tasks import raise_if_cancelled

# Prometheus usually scrapes every 10 to 15 seconds.
_MEMORY_SAMPLE_SECONDS: Final = 5.0


class Samples:
    """Samples the lag of the event loop and the memory of Redis."""

    def __init__(self, sample_store: Callable[[], Awaitable[None]]) -> None:
        """Initialise the samples; ``sample_store`` reads the memory usage of Redis into its counters."""
        self.loop = StallMonitor()
        """Lag and stalls of the event loop."""
        self._sample_store = sample_store

    async def run(self) -> None:
        """Take samples until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.loop.run(), name="loop-lag")
            group.create_task(self._sample_store_memory(), name="store-memory")

    async def _sample_store_memory(self) -> None:
        while True:
            await self._sample_store()
            raise_if_cancelled()
            await asyncio.sleep(_MEMORY_SAMPLE_SECONDS)
