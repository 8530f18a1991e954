"""``Reconciler``: repairs what another program removed from the store, or changed in it, behind the registry's back.

Such a change has no revision and no event, so the follower cannot notice it. After each sweep the numbers of entries in
the store are compared with those of the replica at the same revision, and a write notices a service that the store
holds at another revision than the replica.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from registry_server.catalog.replica import Replica
from registry_server.errors import RevisionNotReached, StoreUnavailable
from registry_server.instrumentation.problems import Problems
from registry_server.replication.follower import Follower
from registry_server.replication.repair import batches, restored_service
from registry_server.runtime.tasks import raise_if_cancelled
from registry_server.store import RedisStore, StoreSizes

_WAIT_SECONDS: Final = 5.0
_CATCH_UP_SECONDS: Final = 0.2
"""How long the replica may lag behind a sweep, which waits for the comparison."""
_POLL_SECONDS: Final = 0.02
_RETRY_SECONDS: Final = (1.0, 60.0)
"""First and longest pause between two attempts: what an attempt does not repair, the next one hardly does."""

log = structlog.get_logger(__name__)


class Reconciler:
    """Makes the store and the replica agree again.

    With repairs, what the store lacks is restored from the replica. Otherwise, and for what only the store has, the
    follower reads the state again and publishes the difference.
    """

    def __init__(
        self,
        store: RedisStore,
        replica: Replica,
        follower: Follower,
        *,
        default_ttl: float,
        problems: Problems | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a reconciler.

        Args:
            store: Store to repair.
            replica: State to compare with and to restore from.
            follower: Follower of the replica; it restores nothing if it has no repairer.
            default_ttl: Lease duration in seconds of services that do not set one.
            problems: Problems of the process.
            monotonic: Clock for pauses between attempts.
        """
        self._store = store
        self._replica = replica
        self._follower = follower
        self._default_ttl = default_ttl
        self._problems = problems or Problems()
        self._monotonic = monotonic
        self._difference = asyncio.Event()
        self._retry_seconds = _RETRY_SECONDS[0]
        self._next_attempt = 0.0
        self.restored = 0
        """Services that were incomplete in the store and have been restored."""

    async def compare_sizes(self, epoch: str, sizes: StoreSizes) -> None:
        """Compare the store with the replica, and let ``run`` repair a difference.

        Args:
            epoch: Epoch of the store.
            sizes: Numbers of entries in the store.
        """
        if not self._follower.connected:
            return
        with suppress(RevisionNotReached):
            await self._replica.wait_for_revision(sizes.revision, _CATCH_UP_SECONDS)
        past = self._replica.history.since(sizes.revision)
        if past is None or self._replica.position.epoch != epoch:
            return  # the follower is reconciling the history
        services = len(self._replica.records) + len(self._follower.damaged)
        services -= sum((change.after is not None) - (change.before is not None) for change in past)
        owners = len(self._replica.owners)
        keys = self._store.keys
        if sizes.records != services:
            text = f"{keys.records} has {sizes.records} services, but this process {services}"
        elif min(sizes.leases, sizes.ttls) < services:
            text = f"{keys.leases} or {keys.ttls} lacks {services - min(sizes.leases, sizes.ttls)} services"
        elif not past and (sizes.owners < owners or bool(sizes.owners) != bool(sizes.owned)):
            text = f"{keys.owners} has {sizes.owners} services with an owner, but this process {owners}"
        else:
            self._problems.resolve("store_contents")
            self._retry_seconds, self._next_attempt = _RETRY_SECONDS[0], 0.0
            return
        self._problems.report("store_contents", f"another program changed Redis: {text}")
        if self._monotonic() >= self._next_attempt:
            self._difference.set()

    async def run(self) -> None:
        """Repair differences until cancelled."""
        while True:
            await self._difference.wait()
            with suppress(StoreUnavailable):  # the next sweep finds the difference again
                await self._reconcile()
            self._difference.clear()
            raise_if_cancelled()
            self._next_attempt = self._monotonic() + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, _RETRY_SECONDS[1])

    async def resolve_conflict(self, name: str) -> None:
        """Make store and replica agree about a service that the store holds at another revision than the replica.

        Raises:
            StoreUnavailable: Redis did not answer, or they did not agree in time.
        """
        if self._follower.repairer is None or not await self._restore([name]):
            await self._reload(f"service {name!r} was changed by another program")

    async def _reconcile(self) -> None:
        repairs = self._follower.repairer is not None
        names = list(self._replica.records)
        if not repairs or not await self._restore(names):
            await self._reload("the store was changed by another program")
        if not repairs:
            await self._restore(list(self._replica.records))  # what is missing beside the records
        await self._store.repairs.recount_owners()

    async def _reload(self, reason: str) -> None:
        self._follower.report_inconsistency(reason, reload=True)
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._follower.wait_consistent()
        except TimeoutError:
            raise StoreUnavailable("the store was changed by another program and is being reloaded") from None

    async def _restore(self, names: Sequence[str]) -> int:
        """Write what the store lacks of services; return the number of those that were incomplete."""
        restored = 0
        for batch in batches(iter(names), self._size_of, self._store.repairs.batch_size):
            restored += await self._restore_batch(batch)
            raise_if_cancelled()
        if restored:
            self.restored += restored
            log.warning("services restored in the store", count=restored)
        return restored

    async def _restore_batch(self, names: Sequence[str]) -> int:
        deadline = self._monotonic() + _WAIT_SECONDS
        while self._monotonic() < deadline:
            # No await between reading the records and the position.
            services = [
                restored_service(self._replica, name, self._default_ttl)
                for name in names
                if name in self._replica.records
            ]
            position, newest = self._replica.position, self._replica.history.newest
            restored = await self._store.repairs.restore_missing(services, position, newest.at_ms if newest else None)
            if restored is not None:
                return restored
            await asyncio.sleep(_POLL_SECONDS)  # until the follower has applied more
        raise StoreUnavailable("this process cannot follow the store")

    def _size_of(self, name: str) -> int:
        record = self._replica.records.get(name)
        return len(record.framed) if record is not None else 0


def contradicts(replica: Replica, name: str, epoch: str, newest: int, stored: int) -> bool:
    """Return whether the store held a service at a revision that its history, up to ``newest``, does not explain.

    Args:
        replica: A replica that has applied ``newest``.
        name: Name of the service.
        epoch: Epoch of the store.
        newest: Revision of the store at that time.
        stored: Revision of the service in the store at that time; 0 = not stored.
    """
    if replica.position.epoch != epoch:
        return False
    record = replica.records.get(name)
    if record is not None:
        return record.revision <= newest and record.revision != stored
    past = replica.history.since(newest)
    return stored != 0 and past is not None and all(change.name != name for change in past)
