"""``Repairer``: restores services that the store has lost from this process's memory.

A store can return empty, or older than the writes it has acknowledged: failover to a lagging replica, a restored
backup, a lost disk. The registry's processes then write the lost services back, one process at a time, the one with
the newest revision first. ADR 0022 describes the guarantees.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, TypeVar, get_args

import structlog

from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.model.normal import ttl_seconds
from registry_server.model.record import Record
from registry_server.replication.changes import read_record
from registry_server.runtime.tasks import raise_if_cancelled
from registry_server.store import Position, RedisStore, RestoredService, StoredEvent, Turn, TurnLost

_BATCH_BYTES: Final = 1 << 20
"""Size at which a batch is closed: Redis runs each batch as one script and answers nothing else meanwhile."""

RepairOutcome = Literal["continued", "merged", "unneeded", "lost"]
REPAIR_OUTCOMES: Final[tuple[RepairOutcome, ...]] = get_args(RepairOutcome)
T = TypeVar("T")

log = structlog.get_logger(__name__)


class RepairCounters:
    """Counters of repairs since the process started."""

    def __init__(self) -> None:
        self.repairs: Counter[RepairOutcome] = Counter()
        """``continued``: the store has its history again; ``merged``: services were restored under another epoch;
        ``unneeded``: another process had already repaired the store; ``lost``: another process took over."""
        self.restored = 0
        """Services written back to the store."""
        self.removed = 0
        """Services removed from the store again, because it had lost their removal."""


class _Agreement(NamedTuple):
    """The part of the history that the store and this process share."""

    common: int
    """Newest revision up to which both have the same history; 0 if unknown."""
    exact: bool
    """The store has nothing after ``common``: once it equals this process, it can continue that history."""
    known: bool = True
    """Whether ``common`` could be determined."""
    restored_to: int = 0
    """Revision of this process's epoch up to which other processes have already restored services."""

    def encode_plan(self, epoch: str) -> str:
        """Return the text kept in the store, from which another process can resume an abandoned repair."""
        return f"{epoch} {self.common} {int(self.exact)}"


class _Difference(NamedTuple):
    """Names of the services to restore, to remove and to leave as they are in the store."""

    restore: list[str]
    remove: list[str]
    keep: list[str]


class Repairer:
    """Repairs the store from the replica, which nothing else may change in the meantime."""

    def __init__(self, store: RedisStore, replica: Replica, *, default_ttl: float, poll_seconds: float = 0.1) -> None:
        """Create a repairer.

        Args:
            store: Store to repair.
            replica: State to restore from.
            default_ttl: Lease duration in seconds of services that do not set one.
            poll_seconds: Maximum interval for checking a store that another process repairs.
        """
        self._store = store
        self._replica = replica
        self._default_ttl = default_ttl
        self._poll_seconds = poll_seconds
        self.counters = RepairCounters()

    async def find_divergence(self) -> Position | None:
        """Return the store's position if it lacks state that this process holds or is being repaired, else ``None``."""
        known, found = self._replica.position, await self._store.reader.read_position()
        if not found.epoch:
            return found
        if found.epoch != known.epoch:
            _, restored_to = await self._store.repairs.read_merge(known.epoch)
            return found if self._replica.records and restored_to < known.revision else None
        if found.revision < known.revision:
            return found
        newest = self._replica.history.newest
        if newest is None:
            return None
        stored = await self._store.reader.read_event(newest.revision)
        # A missing event means that the stream was trimmed, which loses no service.
        return found if stored is not None and stored != _stored_event(newest, known.epoch) else None

    async def repair_store(self) -> bool:
        """Repair until the store holds everything that this process holds.

        Returns:
            Whether the common history was known in every repair. If not, unregistered services may have reappeared.

        Raises:
            StoreUnavailable: Redis did not answer; call again.
        """
        certain = True
        while (found := await self.find_divergence()) is not None:
            turn = await self._store.repairs.request_turn(self._replica.position, found.epoch)
            if isinstance(turn, Turn):
                try:
                    certain = await self._repair(turn) and certain
                except TurnLost:
                    self.counters.repairs["lost"] += 1
                    log.warning("store repair taken over by another process")
            else:
                await asyncio.sleep(min(turn, self._poll_seconds))
            raise_if_cancelled()
        return certain

    async def _repair(self, turn: Turn) -> bool:
        known = self._replica.position
        log.info("repairing store from memory", found=turn.found.revision, revision=known.revision)
        agreement = await self._find_agreement(turn)
        difference = _Difference([], [], [])
        if agreement.common < known.revision or turn.plan:
            difference = await self._compare(agreement)
            await self._write_services(difference, agreement.encode_plan(known.epoch))
        outcome: RepairOutcome = "merged"
        end = Position(secrets.token_hex(8), max(turn.found.revision, known.revision))
        if agreement.exact:
            outcome, end = "continued", known
            await self._write_events(agreement.common, restart=bool(turn.plan))
        elif not (difference.restore or difference.remove or turn.plan or self._is_fork(turn, agreement)):
            outcome, end = "unneeded", Position(turn.found.epoch or known.epoch, turn.found.revision)
        await self._store.repairs.finish_repair(end, restart=outcome == "merged", known=known, common=agreement.common)
        self.counters.repairs[outcome] += 1
        self.counters.restored += len(difference.restore)
        self.counters.removed += len(difference.remove)
        log.warning(
            "store repaired from memory",
            outcome=outcome,
            restored=len(difference.restore),
            removed=len(difference.remove),
            found=turn.found.revision,
            common=agreement.common if agreement.known else None,
            revision=end.revision,
        )
        return agreement.known

    def _is_fork(self, turn: Turn, agreement: _Agreement) -> bool:
        """Return whether the store has other changes under the same epoch and revisions: it then needs a new epoch."""
        known = self._replica.position
        return turn.found.epoch in {"", known.epoch} and agreement.common < known.revision

    async def _find_agreement(self, turn: Turn) -> _Agreement:
        known, found = self._replica.position, turn.found
        if turn.plan:  # the store now holds some services that the abandoned repair restored
            return self._parse_plan(turn.plan)
        if found.revision == 0:
            return _Agreement(0, exact=True)
        if found.epoch not in {"", known.epoch}:
            common, restored_to = await self._store.repairs.read_merge(known.epoch)
            return _Agreement(common, exact=False, restored_to=restored_to)
        newest_common = await self._newest_common_revision(min(found.revision, known.revision))
        if newest_common is None:
            return _Agreement(0, exact=False, known=False)
        return _Agreement(newest_common, exact=newest_common == found.revision)

    def _parse_plan(self, plan: str) -> _Agreement:
        match plan.split():
            case [self._replica.position.epoch, common, exact] if common.isdigit():
                pass
            case _:  # of another epoch, or damaged
                return _Agreement(0, exact=False, known=False)
        known = self._replica.revision
        return _Agreement(min(int(common), known), exact=exact == "1" and int(common) <= known)

    async def _newest_common_revision(self, revision: int) -> int | None:
        """Return the newest revision, at most ``revision``, whose event is the same here and in the store."""
        history, epoch = self._replica.history, self._replica.position.epoch
        oldest = history.oldest
        if oldest is None:
            return None
        async for page in self._store.reader.scan_events(revision, newest_first=True):
            for event in page:
                local = history.at(event.revision)
                if local is not None and event == _stored_event(local, epoch):
                    return event.revision
                # Changes that took the revisions of lost ones were committed after those, so an event that is no newer
                # than our oldest change precedes the loss and is common.
                if local is None and event.epoch == epoch and event.at_ms <= oldest.at_ms:
                    return event.revision
            raise_if_cancelled()
        return None

    async def _compare(self, agreement: _Agreement) -> _Difference:
        """Return the services in which the store and the replica differ, and how to resolve each."""
        difference = _Difference([], [], [])
        owners = await self._store.reader.read_owners()
        seen: set[str] = set()
        async for page in self._store.reader.scan_records():
            for encoded_name, wire in page.items():
                name = encoded_name.decode(errors="replace")
                if name in seen:
                    continue
                seen.add(name)
                local, stored = self._replica.records.get(name), read_record(wire, name)
                if local is None:
                    if stored is not None and (agreement.exact or stored.revision <= agreement.common):
                        difference.remove.append(name)
                elif wire != local.wire and (
                    stored is None or self._should_restore(local, stored, owners.get(name), agreement)
                ):
                    difference.restore.append(name)
                else:
                    difference.keep.append(name)
            raise_if_cancelled()
        after = max(agreement.common, agreement.restored_to)
        for name, local in self._replica.records.items():
            if name not in seen and (agreement.exact or local.revision > after):
                difference.restore.append(name)
        return difference

    def _should_restore(self, local: Record, stored: Record, stored_owner: str | None, agreement: _Agreement) -> bool:
        """Return whether this process's state of a service replaces the store's."""
        if agreement.exact:
            return True
        if local.revision <= max(agreement.common, agreement.restored_to):
            return False
        if stored.revision <= agreement.common:
            return True
        local_owner = self._replica.owners.get(local.name)
        if local_owner is not None and local_owner != stored_owner:
            return True  # an emptied store must not let another caller take over the service
        return local.message().updated_at.ToNanoseconds() > stored.message().updated_at.ToNanoseconds()

    async def _write_services(self, difference: _Difference, plan: str) -> None:
        def lost_services() -> Iterator[RestoredService]:
            for name in difference.restore:
                yield restored_service(self._replica, name, self._default_ttl)
            for name in difference.remove:
                yield RestoredService(name, b"", 0, "")

        for batch in batches(lost_services(), lambda each: len(each.record), self._store.repairs.batch_size):
            await self._store.repairs.restore_services(batch, plan)
            raise_if_cancelled()
        if difference.keep:  # the store has lost their latest heartbeats
            await self._store.writer.renew_leases(difference.keep)

    async def _write_events(self, common: int, *, restart: bool) -> None:
        """Append the changes after a revision; rewrite the whole stream if it does not end there."""
        history, epoch = self._replica.history, self._replica.position.epoch
        past = history.since(common)
        restart = restart or past is None or not await self._stream_ends_at(common)
        if restart:
            past = history.since(history.oldest.revision - 1) if history.oldest else ()
        events = (_stored_event(change, epoch) for change in past or ())
        for batch in batches(
            events, lambda event: len(event.after) + len(event.before), self._store.repairs.batch_size
        ):
            await self._store.repairs.restore_events(batch, restart=restart)
            restart = False
            raise_if_cancelled()

    async def _stream_ends_at(self, revision: int) -> bool:
        async for page in self._store.reader.scan_events(2**53, newest_first=True):
            return page[0].revision == revision
        return False


def restored_service(replica: Replica, name: str, default_ttl: float) -> RestoredService:
    """Return a service of the replica as it is written back to the store."""
    record = replica.records[name]
    ttl = ttl_seconds(record.message(), default_ttl)
    return RestoredService(name, record.wire, ttl, replica.owners.get(name, ""))


def batches(items: Iterator[T], size: Callable[[T], int], length: int) -> Iterator[Sequence[T]]:
    """Split into batches of bounded length and size."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) == length or total > _BATCH_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _stored_event(change: Change, epoch: str) -> StoredEvent:
    """Return the stored event that a change was made from."""
    return StoredEvent(
        epoch=epoch,
        revision=change.revision,
        type=change.type,
        reason=change.reason,
        at_ms=change.at_ms,
        name=change.name,
        after=change.after.wire if change.after else b"",
        before=change.before.wire if change.before else b"",
        error=change.error,
        owner=change.owner,
    )
