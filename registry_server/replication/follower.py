"""``Follower``: carries the store's event stream into the replica, and notices when history breaks."""

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal, Protocol, get_args

import structlog

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.errors import StoreUnavailable
from registry_server.instrumentation.counters import Histogram
from registry_server.model.normal import update_type
from registry_server.model.record import Record
from registry_server.replication.repair import Repairer
from registry_server.runtime.clock import Clock
from registry_server.runtime.tasks import wait_until_idle
from registry_server.store import Position, RedisStore, StoredEvent

_ENTERED_AT_ONCE: Final = 1_000
"""Services that are indexed without a pause, about 10 ms: liveness is asked for also while a million are loaded."""
_GATHER: Final = 0.01
"""Seconds for which a busy process leaves events to gather: one read costs it more than one event does."""
_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds; by two clocks, so finer classes would tell nothing."""

log = structlog.get_logger(__name__)


FollowerState = Literal["loading", "following", "resyncing", "disconnected"]
FOLLOWER_STATES: Final[tuple[FollowerState, ...]] = get_args(FollowerState)


class ConnectionListener(Protocol):
    """Is told whether the store is connected."""

    def __call__(self, *, connected: bool) -> None:
        """Takes the news; must not block."""


class _HistoryBroken(Exception):
    """The store's stream does not go on where the replica stands."""


class Follower:
    """Keeps the replica equal to the store.

    One task owns it. Revisions are dense, so a missing one shows at once; epochs are in every event, so another history
    with the same numbers shows too. Either way the store is given back what it has lost; then, unless it goes on from
    here, the state is loaded anew and the difference is published.
    """

    def __init__(
        self,
        store: RedisStore,
        replica: Replica,
        *,
        clock: Clock,
        on_connection: ConnectionListener,
        on_resync_too_large: Callable[[], None],
        fits_one_message: Callable[[list[Change]], bool],
        repairer: Repairer | None = None,
        retry_seconds: tuple[float, float] = (0.05, 1.0),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Prepares the follower.

        Args:
            store: Where changes come from.
            replica: Where they go.
            clock: Wall clock, for changes that a resync finds.
            on_connection: Told whether the store is connected, each time that this changes.
            on_resync_too_large: Called when a resync's difference is too large to be told to watchers.
            fits_one_message: Decides on that.
            repairer: Gives a store back what it has lost; without one it is followed as it is.
            retry_seconds: First and longest delay between two attempts to connect; each is twice the one before.
            monotonic: Clock that measures how long the store has been away.
            sleep: Waits for the delay.
            jitter: Returns a random number between two; multiplies each delay.
        """
        self._store = store
        self._replica = replica
        self._clock = clock
        self._on_connection = on_connection
        self._on_start_over = on_resync_too_large
        self._fits_one_message = fits_one_message
        self.repairer = repairer
        self._first_retry, self._last_retry = retry_seconds
        self._monotonic, self._sleep, self._jitter = monotonic, sleep, jitter
        self._stands_still = False
        self._last_contact = self._monotonic()
        self._connected_at = 0.0
        self._waits_for = ""
        self._broken: str | None = None
        self._consistent = asyncio.Event()  # unless it is broken
        self._consistent.set()
        self._rewritten = False
        self._newest: StoredEvent | None = None  # as the stream had it
        self.loaded = False
        """The replica holds the state of the store: reads can be answered."""
        self.connected = False
        """The store answered last time, and the replica goes on from what it has."""
        self.connections = 0
        """How often it was connected: another number means that the store was away meanwhile."""
        self.resyncs = 0
        """How often the state was loaded anew because history broke."""
        self.epoch_changes = 0
        """How often that began another epoch."""
        self.event_lag = Histogram(_LAG_BOUNDS)
        """Seconds from an event's commit, by the clock of Redis, until it was applied, by the clock of this process."""

    @property
    def lag(self) -> float:
        """Seconds since the replica was last known to be level with the store; 0 while it follows."""
        return 0.0 if self.connected else self._monotonic() - self._last_contact

    def connection_since(self, then: float) -> int:
        """Number of the connection that has stood since a monotonic second, counted from 1; 0 if none has."""
        return self.connections if self.connected and self._connected_at <= then else 0

    @property
    def state(self) -> "FollowerState":
        """What it does now."""
        if not self.loaded:
            return "loading"
        if not self.connected:
            return "disconnected"
        return "following" if self._broken is None else "resyncing"

    def report_inconsistency(self, why: str) -> None:
        """Says that history may have broken, when somebody else notices first."""
        self._broken = why
        self._consistent.clear()

    async def wait_consistent(self) -> None:
        """Waits until the replica goes on with the history of the store, as far as is known."""
        await self._consistent.wait()

    async def run(self) -> None:
        """Follows for ever; cancel it to stop."""
        delay = self._first_retry
        while True:
            try:
                if not self.loaded:
                    await self._store.open()
                    await self._load()
                elif not self.connected:
                    await self._store.reconnect()
                    await self._verify()
                while True:
                    if self._broken is None:  # else what we hold is of the time before, as while the store was away
                        self._set_connected(connected=True)
                    delay = self._first_retry
                    await self._step()
            except StoreUnavailable as error:
                self._set_connected(connected=False, why=str(error.__cause__ or error))
                await self._sleep(delay * self._jitter(0.5, 1.0))
                delay = min(delay * 2, self._last_retry)

    async def _verify(self) -> None:
        """After the store was away: looks whether our newest revision is still the change that we know.

        A store that came back older may have taken other changes since, and more of them than it lost: then its newest
        revision alone tells nothing.
        """
        if self._newest is None:
            return
        stored = await self._store.event(self._newest.revision)
        if stored != self._newest:
            self.report_inconsistency(f"revision {self._newest.revision} is not the change that it was")
            # If it is gone, the stream was trimmed, which breaks our history alone; or the store is behind, and knows.
            self._rewritten = stored is not None

    async def _step(self) -> None:
        """Waits for events and applies them; looks whether history still goes on when there are none."""
        if self._broken is None:
            try:
                await wait_until_idle(_GATHER)
                events = await self._store.tail(self._replica.revision)
                for event in events:
                    self._apply(event)
                if not events:
                    await self._look()
            except _HistoryBroken as error:
                self.report_inconsistency(str(error))
        if self._broken is not None:  # also when the store went away before the resync was done
            await self._recover(self._broken)
            self._broken, self._rewritten = None, False
            self._consistent.set()

    async def _recover(self, why: str) -> None:
        certain = True
        if self.repairer is not None:
            if await self.repairer.find_divergence():
                self._set_connected(connected=False, why="it lacks what this process holds, or is being repaired")
                certain = await self.repairer.repair_store()
            if await self._goes_on():
                return
        await self._resync(why)
        if not certain:
            await self._store.notice(
                "the store came back with another past: services that were unregistered may be back",
                epoch=self._replica.position.epoch,
                reason=EventReason.EVENT_REASON_RESYNC,
            )

    async def _goes_on(self) -> bool:
        """Whether the store has our newest change, and all that came after it."""
        known, head = self._replica.position, await self._store.position()
        if head.epoch != known.epoch or head.revision < known.revision:
            return False
        if self._newest is not None and await self._store.event(known.revision) != self._newest:
            return False
        if head.revision == known.revision:
            return True
        following = await self._store.event(known.revision + 1)
        return following is not None and following.epoch == known.epoch

    async def _look(self) -> None:
        known = self._replica.position
        head = await self._head()
        if head.epoch != known.epoch:
            raise _HistoryBroken(f"epoch {known.epoch} was followed by {head.epoch}")
        if head.revision < known.revision:
            raise _HistoryBroken(f"revision went back from {known.revision} to {head.revision}")
        # A revision committed since the read is in the stream by now: not finding it twice means that it is not there.
        behind = head.revision > known.revision
        if behind and self._stands_still:
            raise _HistoryBroken(f"the stream lacks revisions {known.revision + 1} to {head.revision}")
        self._stands_still = behind

    async def _head(self) -> Position:
        """Where the store stands. Unless it is to be repaired, it is told what we know and may begin a new epoch."""
        if not self.loaded:
            return await self._store.head()
        if self.repairer is not None:
            return await self._store.position()
        return await self._store.head(self._replica.position, rewritten=self._rewritten)

    def _apply(self, event: StoredEvent) -> None:
        position = self._replica.position
        if event.epoch != position.epoch or event.revision != position.revision + 1:
            raise _HistoryBroken(f"{position} is followed by {event.epoch}, {event.revision}")
        self._stands_still = False
        self._newest = event
        self._replica.apply_change(_change(event, self._replica.records.get(event.name)))
        self.event_lag.observe(max(self._clock() / 1_000_000 - event.at_ms, 0.0) / 1000)

    async def _load(self) -> None:
        # Millions of objects are made and none dies: without this the collector looks at all of them again and again,
        # now (40 % of the time) and at every full collection from then on (0.1 s of standstill for 100,000 services).
        gc.disable()
        try:
            records, past, position, owners = await self._read_all()
            for start in range(0, len(records), _ENTERED_AT_ONCE):
                self._replica.load_records(records[start : start + _ENTERED_AT_ONCE])
                await asyncio.sleep(0)
            self._replica.start_at(past, position, owners)
        finally:
            gc.enable()
        gc.freeze()
        self.loaded = True
        log.info("catalog loaded", services=len(records), revision=position.revision, epoch=position.epoch)

    async def _resync(self, why: str) -> None:
        before = self._replica.position
        records, _, position, owners = await self._read_all()
        changes = self._difference(records, position)
        fits = self._fits_one_message(changes)
        log.warning(
            "resynchronised with the store",
            why=why,
            before=before.revision,
            after=position.revision,
            same_epoch=before.epoch == position.epoch,
            differences=len(changes),
        )
        if not fits:
            self._on_start_over()
        self._replica.resync(changes, position, owners)
        self.resyncs += 1
        self.epoch_changes += before.epoch != position.epoch

    async def _read_all(self) -> tuple[list[Record], list[Change], Position, dict[str, str]]:
        """Reads records, past and owners, all of one position, without stopping the store.

        Records are read in pages while changes go on; then the stream since the beginning brings each of them level.
        """
        while True:
            low = await self._head()
            if not low.epoch:
                raise StoreUnavailable("the store is being repaired")
            records: dict[str, Record] = {}
            async for page in self._store.records():
                for wire in page:
                    record = Record(wire)
                    if (other := records.get(record.name)) is None or other.revision < record.revision:
                        records[record.name] = record
                await asyncio.sleep(0)
            owners = await self._store.repairs.owners()
            high = await self._store.position()
            past = await self._read_past(high)
            first = past[0].revision if past else high.revision + 1
            if high.epoch != low.epoch or first > low.revision + 1:
                continue  # reading took longer than the stream keeps its events
            _bring_level(records, owners, [change for change in past if change.revision > low.revision])
            return list(records.values()), past, high, owners

    async def _read_past(self, high: Position) -> list[Change]:
        """Reads what the stream holds up to ``high``: the longest run without a gap."""
        past: list[Change] = []
        self._newest = None
        async for page in self._store.events(until=high.revision):
            for event in page:
                if event.epoch != high.epoch or (past and event.revision != past[-1].revision + 1):
                    past.clear()
                if event.epoch == high.epoch:
                    past.append(_change(event, None))
                    self._newest = event
        if past and past[-1].revision != high.revision:
            past.clear()
            self._newest = None
        return past

    def _difference(self, records: Iterable[Record], position: Position) -> list[Change]:
        at_ms = self._clock() // 1_000_000
        gone = dict(self._replica.records)
        changes: list[Change] = []

        def add(type_: EventType.ValueType, before: Record | None, after: Record | None) -> None:
            changes.append(
                Change(
                    revision=position.revision,
                    type=type_,
                    reason=EventReason.EVENT_REASON_RESYNC,
                    at_ms=at_ms,
                    before=before,
                    after=after,
                )
            )

        for record in records:
            before = gone.pop(record.name, None)
            if before is None:
                add(EventType.EVENT_TYPE_SERVICE_REGISTERED, None, record)
            elif before.framed != record.framed:
                add(update_type(before.message(), record.message()), before, record)
        for before in gone.values():
            add(EventType.EVENT_TYPE_SERVICE_UNREGISTERED, before, None)
        return changes

    def _set_connected(self, *, connected: bool, why: str = "") -> None:
        if connected:
            self._last_contact = self._monotonic()
        elif not self.loaded and why != self._waits_for:
            self._waits_for = why
            log.warning("store not reachable: calls fail until the catalog is loaded", why=why)
        if connected == self.connected:
            return
        self.connected = connected
        self.connections += connected
        if connected:
            self._connected_at = self._last_contact
            log.info("following the store", revision=self._replica.revision)
        else:
            log.warning("store disconnected: reads continue from memory, writes are refused", why=why)
        self._on_connection(connected=connected)


def _bring_level(records: dict[str, Record], owners: dict[str, str], past: Iterable[Change]) -> None:
    """Brings what was read during these changes to the newest of them."""
    for name, change in {change.name: change for change in past}.items():
        if change.owner:
            owners[name] = change.owner
        else:
            owners.pop(name, None)
        if change.after is None:
            if name in records and records[name].revision < change.revision:
                del records[name]
        elif name not in records or records[name].revision < change.revision:
            records[name] = change.after


def _change(event: StoredEvent, before: Record | None) -> Change:
    """Makes a change of an event; ``before`` is what the replica holds, if it holds anything."""
    if before is None and event.before:
        before = Record(event.before)
    return Change(
        revision=event.revision,
        type=event.type,
        reason=event.reason,
        at_ms=event.at_ms,
        before=before,
        after=Record(event.after) if event.after else None,
        error=event.error,
        owner=event.owner,
    )
