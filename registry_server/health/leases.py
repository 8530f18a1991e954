"""``LeaseSweeper``: removes services whose lease has run out."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from registry_server.errors import StoreUnavailable
from registry_server.store import RedisStore

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE = 0.01


class LeaseSweeper:
    """Sweeps every ``interval`` seconds, sooner when a lease ends sooner.

    Every process sweeps: one script does it, so it does not matter who comes first. What matters is that the time of
    the newest sweep is in Redis: leases only run while somebody sweeps.
    """

    def __init__(
        self, store: RedisStore, *, interval: float, restore: Callable[[Sequence[str]], Awaitable[None]]
    ) -> None:
        """Prepares the sweeper.

        Args:
            store: Where leases are.
            interval: Seconds between two sweeps.
            restore: Writes the documents of services again that Redis dropped while nobody swept.
        """
        self._store = store
        self._interval = interval
        self._restore = restore

    async def run(self) -> None:
        """Sweeps for ever; cancel it to stop."""
        while True:
            pause = self._interval
            try:
                removed, following = await self._sweep()
                if removed or following is not None:
                    pause = min(self._interval, max(following or 0.0, _SHORTEST_PAUSE))
            except StoreUnavailable:
                pass  # the follower logs it once for all
            await asyncio.sleep(pause)

    async def _sweep(self) -> tuple[int, float | None]:
        sweep = await self._store.sweep(EventReason.EVENT_REASON_LEASE_EXPIRED)
        if sweep.moved:
            log.warning("nobody swept for a while: all leases moved", seconds=round(sweep.moved, 3))
        if sweep.removed:
            log.info("leases expired", count=len(sweep.removed), first=sweep.removed[0])
        if sweep.bare:
            await self._restore(sweep.bare)
        return len(sweep.removed), sweep.next_in
