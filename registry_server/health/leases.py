"""``LeaseSweeper``: removes services whose lease has expired."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.audit import REGISTRY, Audit
from registry_server.store import Position, RedisStore, StoreSizes

log = structlog.get_logger(__name__)

_MIN_PAUSE_SECONDS = 0.01
"""Leases that end within this time of each other are removed by one sweep."""
_BATCH_PAUSE_SECONDS = 0.1
"""Pause between two batches of documents to restore."""


class LeaseSweeper:
    """Sweeps every ``interval`` seconds, or earlier if a lease ends earlier.

    Every process sweeps; a single script makes concurrent sweeps safe. The script records the time of the newest sweep
    in Redis, so that leases only run while at least one process sweeps.
    """

    def __init__(
        self,
        store: RedisStore,
        *,
        interval: float,
        restore: Callable[[Sequence[str]], Awaitable[None]],
        applied_position: Callable[[], Position | None],
        audit: Audit,
        compare_sizes: Callable[[str, StoreSizes], Awaitable[None]] | None = None,
    ) -> None:
        """Create the sweeper.

        Args:
            store: Holds the leases.
            interval: Seconds between two sweeps.
            restore: Rewrites the documents of services that Redis expired while no process swept.
            applied_position: Returns the position that this process has applied. No lease expires in a store that is
                behind it.
            audit: Records every removal.
            compare_sizes: Compares the numbers of entries in the store with what this process holds of its epoch.
        """
        self._store = store
        self._interval = interval
        self._restore = restore
        self._applied_position = applied_position
        self._audit = audit
        self._compare_sizes = compare_sizes

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                pause = await self._sweep()
            except StoreUnavailable:  # logged by the follower
                pause = self._interval
            await asyncio.sleep(pause)

    async def _sweep(self) -> float:
        """Sweep once and return the seconds until the next sweep."""
        applied = self._applied_position()
        sweep = await self._store.writer.sweep_leases(EventReason.EVENT_REASON_LEASE_EXPIRED, applied)
        if sweep.shift_seconds:
            log.warning("lease clock adjusted", shift_seconds=round(sweep.shift_seconds, 3))
        if sweep.removed:
            log.info("leases expired", count=len(sweep.removed), first=sweep.removed[0])
            self._audit.record_removals("expire", sweep.removed, by=REGISTRY)
        if applied is not None and sweep.sizes is not None and self._compare_sizes is not None:
            await self._compare_sizes(applied.epoch, sweep.sizes)
        if sweep.missing_documents:
            await self._restore(sweep.missing_documents)
            return min(self._interval, _BATCH_PAUSE_SECONDS)
        if sweep.next_expiry_seconds is None:
            return self._interval
        return min(self._interval, max(sweep.next_expiry_seconds, _MIN_PAUSE_SECONDS))
