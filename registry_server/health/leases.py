"""``LeaseSweeper``: removes services whose lease has run out."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.audit import REGISTRY, Audit
from registry_server.store import Position, RedisStore

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE = 0.01
_BETWEEN_BATCHES = 0.1


class LeaseSweeper:
    """Sweeps every ``interval`` seconds, sooner when a lease ends sooner.

    Every process sweeps: one script does it, so it does not matter who comes first. What matters is that the time of
    the newest sweep is in Redis: leases only run while somebody sweeps.
    """

    def __init__(
        self,
        store: RedisStore,
        *,
        interval: float,
        restore: Callable[[Sequence[str]], Awaitable[None]],
        seen: Callable[[], Position | None] = lambda: None,
        audit: Audit | None = None,
    ) -> None:
        """Prepares the sweeper.

        Args:
            store: Where leases are.
            interval: Seconds between two sweeps.
            restore: Writes the documents of services again that Redis dropped while nobody swept.
            seen: Tells where this process stands: in a store that is behind it no lease runs out.
            audit: Is told of every service that is removed.
        """
        self._store = store
        self._interval = interval
        self._restore = restore
        self._seen = seen
        self._audit = audit or Audit()

    async def run(self) -> None:
        """Sweeps for ever; cancel it to stop."""
        while True:
            try:
                pause = await self._sweep()
            except StoreUnavailable:  # the follower logs it once for all
                pause = self._interval
            await asyncio.sleep(pause)

    async def _sweep(self) -> float:
        """Sweeps once; gives the seconds until the next time."""
        sweep = await self._store.writer.sweep_leases(EventReason.EVENT_REASON_LEASE_EXPIRED, self._seen())
        if sweep.shift_seconds:
            log.warning("nobody swept for a while: all leases moved", seconds=round(sweep.shift_seconds, 3))
        if sweep.removed:
            log.info("leases expired", count=len(sweep.removed), first=sweep.removed[0])
            self._audit.record_removals("expire", sweep.removed, by=REGISTRY)
        if sweep.missing_documents:
            await self._restore(sweep.missing_documents)
            return min(self._interval, _BETWEEN_BATCHES)
        if sweep.next_expiry_seconds is None:
            return self._interval
        return min(self._interval, max(sweep.next_expiry_seconds, _SHORTEST_PAUSE))
