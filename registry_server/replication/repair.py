"""``Repairer``: puts back into the store what this process holds in memory and the store has lost.

A store that comes back empty or older than what was acknowledged (failover to a replica that lagged, a restored backup,
a lost disk) is given its services again by the processes that remember them, one at a time, those that know most first.
ADR 0022 tells what that can promise.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple, TypeVar, get_args

import structlog

from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.model.normal import ttl_of
from registry_server.model.record import Record
from registry_server.runtime.tasks import end_if_cancelled
from registry_server.store import Position, RedisStore, Remembered, StoredEvent, Turn, TurnLost
from registry_server.store.repairs import BATCH

_POLL: Final = 0.1
"""Seconds between two looks at a store that another process repairs."""
_BATCH_BYTES: Final = 1 << 20

RepairOutcome = Literal["continued", "merged", "unneeded", "lost"]
REPAIR_OUTCOMES: Final[tuple[RepairOutcome, ...]] = get_args(RepairOutcome)
T = TypeVar("T")

log = structlog.get_logger(__name__)


class RepairCounters:
    """What was put back; all since the process started."""

    def __init__(self) -> None:
        self.repairs: Counter[RepairOutcome] = Counter()
        """``continued``: the store has its history again; ``merged``: services were put back under another epoch;
        ``unneeded``: the store lacked nothing, others were first; ``lost``: another process took the turn."""
        self.put_back = 0
        """Services."""
        self.removed_again = 0
        """Services whose removal the store had lost."""


class _Agreement(NamedTuple):
    """How the store, as it was found, and this process have a past in common."""

    common: int
    """Newest revision up to which both have the same history; 0 if that is not known."""
    exact: bool
    """The store has nothing beyond it: made equal to this process, it goes on with its history."""
    known: bool = True
    """Whether it could be told at all."""
    given: int = 0
    """Revision of this process's epoch up to which others have put services back already."""

    def plan(self, epoch: str) -> str:
        """For whoever goes on with a repair that was given up, when the store no longer tells."""
        return f"{epoch} {self.common} {int(self.exact)}"


class _Difference:
    """What is to be done to the store."""

    def __init__(self) -> None:
        self.put: list[str] = []
        self.remove: list[str] = []
        self.kept: list[str] = []
        """Services that stay as they are in the store."""


class Repairer:
    """Repairs the store from the replica; while it runs nothing else may change the replica."""

    def __init__(self, store: RedisStore, replica: Replica, *, default_ttl: float) -> None:
        """Prepares it.

        Args:
            store: What may have lost something.
            replica: What is remembered.
            default_ttl: Seconds that leases of services last that do not say.
        """
        self._store = store
        self._replica = replica
        self._default_ttl = default_ttl
        self.counters = RepairCounters()

    async def needed(self) -> Position | None:
        """Tells where the store stands if it lacks something that this process holds, or is being repaired."""
        known, found = self._replica.position, await self._store.position()
        if not found.epoch:
            return found
        if found.epoch != known.epoch:
            _, given = await self._store.repairs.merged(known.epoch)
            return found if self._replica.records and given < known.revision else None
        if found.revision < known.revision:
            return found
        newest = self._replica.history.newest
        if newest is None:
            return None
        stored = await self._store.event(newest.revision)
        # If it is gone, the stream was trimmed, which takes no service away.
        return found if stored is not None and stored != _stored(newest, known.epoch) else None

    async def run(self) -> bool:
        """Returns once the store lacks nothing that this process holds.

        Returns:
            Whether what this process did rests on a past that could be told from that of the store: else services that
            were removed may be back.

        Raises:
            StoreUnavailable: Redis does not answer; to be run again.
        """
        certain = True
        while (found := await self.needed()) is not None:
            turn = await self._store.repairs.turn(self._replica.position, found.epoch)
            if isinstance(turn, Turn):
                try:
                    certain = await self._repair(turn) and certain
                except TurnLost:
                    self.counters.repairs["lost"] += 1
                    log.warning("another process goes on with the repair of the store")
            else:
                await asyncio.sleep(min(turn, _POLL))
            end_if_cancelled()
        return certain

    async def _repair(self, turn: Turn) -> bool:
        known = self._replica.position
        log.info("repairing the store from memory", found=turn.found.revision, revision=known.revision)
        agreement = await self._agreement(turn)
        difference = _Difference()
        if agreement.common < known.revision or turn.plan:
            difference = await self._difference(agreement)
            await self._put_services(difference, agreement.plan(known.epoch))
        outcome: RepairOutcome = "merged"
        end = Position(secrets.token_hex(8), max(turn.found.revision, known.revision))
        if agreement.exact:
            outcome, end = "continued", known
            await self._put_events(agreement.common, restart=bool(turn.plan))
        elif not (difference.put or difference.remove or turn.plan or self._is_fork(turn, agreement)):
            outcome, end = "unneeded", Position(turn.found.epoch or known.epoch, turn.found.revision)
        await self._store.repairs.end(end, restart=outcome == "merged", known=known, common=agreement.common)
        self.counters.repairs[outcome] += 1
        self.counters.put_back += len(difference.put)
        self.counters.removed_again += len(difference.remove)
        log.warning(
            "the store was repaired from memory",
            outcome=outcome,
            put_back=len(difference.put),
            removed_again=len(difference.remove),
            found=turn.found.revision,
            common=agreement.common if agreement.known else None,
            revision=end.revision,
        )
        return agreement.known

    def _is_fork(self, turn: Turn, agreement: _Agreement) -> bool:
        """Whether the numbers of one epoch stand for other changes in the store: then it cannot go on in any case."""
        known = self._replica.position
        return turn.found.epoch in {"", known.epoch} and agreement.common < known.revision

    async def _agreement(self, turn: Turn) -> _Agreement:
        known, found = self._replica.position, turn.found
        if turn.plan:  # what the store holds now is partly what the other one has put back
            return self._agreement_of(turn.plan)
        if found.revision == 0:
            return _Agreement(0, exact=True)
        if found.epoch not in {"", known.epoch}:
            common, given = await self._store.repairs.merged(known.epoch)
            return _Agreement(common, exact=False, given=given)
        forked = await self._newest_in_common(min(found.revision, known.revision))
        if forked is None:
            return _Agreement(0, exact=False, known=False)
        return _Agreement(forked, exact=forked == found.revision)

    def _agreement_of(self, plan: str) -> _Agreement:
        epoch, common, exact = plan.split()
        if epoch != self._replica.position.epoch:
            return _Agreement(0, exact=False, known=False)
        known = self._replica.revision
        return _Agreement(min(int(common), known), exact=exact == "1" and int(common) <= known)

    async def _newest_in_common(self, revision: int) -> int | None:
        """Looks for the newest event that the store and this process share, from a revision downwards."""
        history, epoch = self._replica.history, self._replica.position.epoch
        oldest = history.oldest
        if oldest is None:
            return None
        async for page in self._store.repairs.events_before(revision):
            for event in page:
                ours = history.at(event.revision)
                if ours is not None and event == _stored(ours, epoch):
                    return event.revision
                # What took the place of changes that were lost was committed after all of them.
                if ours is None and event.epoch == epoch and event.at_ms <= oldest.at_ms:
                    return event.revision
            end_if_cancelled()
        return None

    async def _difference(self, agreement: _Agreement) -> _Difference:
        """Compares the store with the replica."""
        difference = _Difference()
        owners = await self._store.repairs.owners()
        seen: set[str] = set()
        async for page in self._store.repairs.records():
            for name, wire in page.items():
                if name in seen:
                    continue
                seen.add(name)
                ours = self._replica.records.get(name)
                if ours is None:
                    if agreement.exact or Record(wire).revision <= agreement.common:
                        difference.remove.append(name)
                elif wire != ours.wire and self._is_ours(ours, Record(wire), owners.get(name), agreement):
                    difference.put.append(name)
                else:
                    difference.kept.append(name)
            end_if_cancelled()
        after = max(agreement.common, agreement.given)
        for name, ours in self._replica.records.items():
            if name not in seen and (agreement.exact or ours.revision > after):
                difference.put.append(name)
        return difference

    def _is_ours(self, ours: Record, theirs: Record, owner: str | None, agreement: _Agreement) -> bool:
        """Whether this process's state of a service is put in place of that in the store."""
        if agreement.exact:
            return True
        if ours.revision <= max(agreement.common, agreement.given):
            return False
        if theirs.revision <= agreement.common:
            return True
        mine = self._replica.owners.get(ours.name)
        if mine is not None and mine != owner:  # nobody becomes the owner because the store was emptied
            return True
        return _updated(ours) > _updated(theirs)

    async def _put_services(self, difference: _Difference, plan: str) -> None:
        def remembered() -> Iterator[Remembered]:
            for name in difference.put:
                record = self._replica.records[name]
                ttl = ttl_of(record.message(), self._default_ttl)
                yield Remembered(name, record.wire, ttl, self._replica.owners.get(name, ""))
            for name in difference.remove:
                yield Remembered(name, b"", 0, "")

        for batch in _batches(remembered(), lambda each: len(each.record)):
            await self._store.repairs.put_services(batch, plan)
            end_if_cancelled()
        if difference.kept:  # their heartbeats since then were lost
            await self._store.renew(difference.kept)

    async def _put_events(self, common: int, *, restart: bool) -> None:
        """Gives the stream the changes after a revision, or all that are kept if it cannot go on from there."""
        history, epoch = self._replica.history, self._replica.position.epoch
        past = history.since(common)
        restart = restart or past is None or not await self._stream_ends_at(common)
        if restart:
            past = history.since(history.oldest.revision - 1) if history.oldest else ()
        events = (_stored(change, epoch) for change in past or ())
        for batch in _batches(events, lambda event: len(event.after) + len(event.before)):
            await self._store.repairs.put_events(batch, restart=restart)
            restart = False
            end_if_cancelled()

    async def _stream_ends_at(self, revision: int) -> bool:
        async for page in self._store.repairs.events_before(2**53):
            return page[0].revision == revision
        return False


def _batches(items: Iterator[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Cuts into batches of bounded length and bytes."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if len(batch) == BATCH or total > _BATCH_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _updated(record: Record) -> tuple[int, int]:
    time = record.message().updated_at
    return time.seconds, time.nanos


def _stored(change: Change, epoch: str) -> StoredEvent:
    """The event of which a change was made."""
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
