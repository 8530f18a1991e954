"""``ResultWriter``: writes probe results in batches."""

import asyncio
from contextlib import suppress
from typing import Final

from registry_server.errors import StoreUnavailable
from registry_server.runtime.tasks import raise_if_cancelled
from registry_server.store import ProbeResult, RedisStore

_BATCH_SECONDS: Final = 0.02
"""How long to collect results for one write: a delay in exchange for fewer round trips."""
_MAX_PENDING_RESULTS: Final = 200_000
"""Bounds memory while the store is slow; further results are dropped."""


class ResultWriter:
    """Writes the newest probe result of each service, without a revision."""

    def __init__(self, store: RedisStore, *, max_pending: int = _MAX_PENDING_RESULTS) -> None:
        """Create a writer.

        Args:
            store: Stores the results.
            max_pending: Maximum number of services with a pending result.
        """
        self._store = store
        self._max_pending = max_pending
        self._pending: dict[str, ProbeResult] = {}
        self._wakeup = asyncio.Event()

    def add_result(self, name: str, health: bytes, *, renew: bool) -> None:
        """Queue a result. It replaces a pending result of the same service, whose lease renewal is kept.

        An empty ``health`` only renews the lease.
        """
        pending = self._pending.get(name)
        if pending is not None or len(self._pending) < self._max_pending:
            if pending is not None:
                health, renew = health or pending.health, renew or pending.renew
            self._pending[name] = ProbeResult(name, health, renew)
            self._wakeup.set()

    def discard_result(self, name: str) -> None:
        """Drop the pending result of a service, because a newer one exists."""
        self._pending.pop(name, None)

    async def flush(self) -> None:
        """Write pending results. Results that cannot be written are dropped: the next probe replaces them.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        pending, self._pending = self._pending, {}
        if pending:
            await self._store.writer.write_checks(list(pending.values()))

    async def run(self) -> None:
        """Write pending results until cancelled."""
        while True:
            await self._wakeup.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            self._wakeup.clear()
            with suppress(StoreUnavailable):
                await self.flush()
            raise_if_cancelled()
