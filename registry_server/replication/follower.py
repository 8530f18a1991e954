"""``Follower``: applies the store's event stream to the replica and detects breaks in its history."""

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, Protocol, get_args

import structlog

from ossa.registry.v1.event_pb2 import EventReason
from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.errors import ConfigurationError, StoreFault, StoreUnavailable
from registry_server.instrumentation.counters import Histogram
from registry_server.instrumentation.problems import Problems
from registry_server.replication.changes import change_from_event, resync_changes
from registry_server.replication.loading import State, read_state, start_retention
from registry_server.replication.repair import Repairer
from registry_server.runtime.clock import Clock
from registry_server.runtime.pacing import Turn
from registry_server.store import DamagedEvent, Position, RedisStore, StoredEvent

_LOAD_SLICE_RECORDS: Final = 1_000
"""Records indexed before other tasks run, about 10 ms: liveness probes must be answered while a million are loaded."""
_MAX_LOGGED_REASONS: Final = 20
"""Reasons of one disconnection that are logged: attempts may fail alternately for several reasons."""
_MAX_SHOWN_NAME: Final = 100
_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. Two clocks are compared, so finer buckets would have no meaning."""

log = structlog.get_logger(__name__)


FollowerState = Literal["loading", "following", "resyncing", "disconnected"]
FOLLOWER_STATES: Final[tuple[FollowerState, ...]] = get_args(FollowerState)


class ConnectionListener(Protocol):
    """Callback for changes of the connection to the store."""

    def __call__(self, *, connected: bool) -> None:
        """Handle a connect or disconnect; must not block."""


class _HistoryBroken(Exception):
    """The store's stream does not continue from the replica's position."""


class Follower:
    """Keeps the replica equal to the store.

    One task runs it. Revisions are consecutive, so a gap is detected at once; every event carries its epoch, so another
    history with the same revisions is detected too. In both cases the repairer first restores the state that the store
    has lost. If the store's history still does not continue from the replica's position, the follower reloads the state
    and publishes the difference.
    """

    def __init__(
        self,
        store: RedisStore,
        replica: Replica,
        *,
        clock: Clock,
        on_connection: ConnectionListener,
        on_resync: Callable[[list[Change]], None],
        repairer: Repairer | None = None,
        problems: Problems | None = None,
        retry_seconds: tuple[float, float] = (0.05, 1.0),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Create a follower.

        Args:
            store: Store to follow.
            replica: Replica to update.
            clock: Wall clock, for the time of changes found by a resync.
            on_connection: Called when the store connects or disconnects.
            on_resync: Called with the difference of a resync before the replica applies it.
            repairer: Restores state that the store has lost; ``None`` = follow the store as it is.
            problems: Problems of the process, for the cause of a lost connection and for damaged records.
            retry_seconds: First and longest delay between connection attempts; the delay doubles each time.
            monotonic: Clock for the time since the last contact with the store.
            sleep: Waits for the delay.
            jitter: Returns a random number between its two arguments, by which each delay is multiplied.
        """
        self._store = store
        self._replica = replica
        self._clock = clock
        self._on_connection = on_connection
        self._on_resync = on_resync
        self.repairer = repairer
        self._problems = problems or Problems()
        self._first_retry, self._last_retry = retry_seconds
        self._monotonic, self._sleep, self._jitter = monotonic, sleep, jitter
        self._behind_once = False  # the previous idle check found the replica behind the store
        self._last_contact = self._monotonic()
        self._connected_at = 0.0
        self._broken: str | None = None  # reason of a break in the history that is not reconciled yet
        self._consistent = asyncio.Event()  # cleared while _broken is set
        self._consistent.set()
        self._rewritten = False  # the store has other changes under revisions that the replica has applied
        self._must_reload = False  # the history continues, but the state must be read again
        self._logged_reasons: set[str] = set()  # of the current disconnection
        self._newest: StoredEvent | None = None  # as read from the stream
        self.damaged: frozenset[str] = frozenset()
        """Names in the store whose records cannot be decoded, and which the replica does not hold."""
        self.loaded = False
        """The replica holds the state of the store, so reads can be answered."""
        self.connected = False
        """The last request to the store succeeded and the replica continues its history."""
        self.connections = 0
        """Number of connects so far: a different number means that the store was disconnected in between."""
        self.resyncs = 0
        """Number of reloads after a break in the history."""
        self.epoch_changes = 0
        """Number of reloads that changed the epoch."""
        self.event_lag = Histogram(_LAG_BOUNDS)
        """Seconds from an event's commit, by the clock of Redis, until it was applied, by the clock of this process."""

    @property
    def lag(self) -> float:
        """Seconds since the replica was last known to be caught up; 0 while connected."""
        return 0.0 if self.connected else self._monotonic() - self._last_contact

    def connection_since(self, monotonic_seconds: float) -> int:
        """Return the number of the current connection, from 1, if it was open at that time; otherwise 0."""
        return self.connections if self.connected and self._connected_at <= monotonic_seconds else 0

    @property
    def state(self) -> "FollowerState":
        """Current activity."""
        if not self.loaded:
            return "loading"
        if not self.connected:
            return "disconnected"
        return "following" if self._broken is None else "resyncing"

    def report_inconsistency(self, reason: str, *, reload: bool = False) -> None:
        """Report a possible break in the history that another part has detected; the follower then reconciles.

        Args:
            reason: What was found.
            reload: Read the state of the store again even if its history continues.
        """
        self._broken = reason
        self._must_reload = self._must_reload or reload
        self._consistent.clear()

    async def wait_consistent(self) -> None:
        """Wait until no break in the history is known or being reconciled."""
        await self._consistent.wait()

    async def run(self) -> None:
        """Follow the store until cancelled, whatever it answers.

        Raises:
            ConfigurationError: Before the catalog is loaded: the registry cannot work with this store. Afterwards: the
                store holds data of a newer version.
        """
        delay = self._first_retry
        while True:
            before = self.connections
            try:
                await self._follow()
            except StoreUnavailable as error:
                fault = error.fault
                if fault is not None and not fault.temporary and not self.loaded:
                    raise self._store.start_error(fault) from error
                self._set_disconnected(reason=str(error.__cause__ or error), shown=str(fault or error))
            except ConfigurationError:
                raise
            except Exception as error:  # a bug must not end the process: the next attempt starts from a known state
                text = f"unexpected {type(error).__name__}; see the log"
                if self._set_disconnected(reason=str(error), shown=text):
                    log.exception("store not followed")
                self.report_inconsistency(text, reload=True)
            if self.connections > before and self._monotonic() - self._connected_at > self._last_retry:
                delay = self._first_retry
            await self._sleep(delay * self._jitter(0.5, 1.0))
            delay = min(delay * 2, self._last_retry)

    async def _follow(self) -> None:
        if not self.loaded:
            await self._store.open()
            await self._share_values()
            await self._load()
        else:
            await self._store.reconnect()
            await self._share_values()
            await self._verify_newest()
        while True:
            await self._follow_once()
            self._set_connected()

    async def _share_values(self) -> None:
        """Take over the registry's secret and verify the format of its data, or write what a store has lost."""
        reader, secret = self._store.reader, self._store.keys.secret
        self._replica.secret = await reader.share_value(secret, self._replica.secret)
        await self._store.share_format()

    async def _verify_newest(self) -> None:
        """Check, after a reconnect, that our newest revision is still the same change in the store.

        A store that returned with older data may have accepted more changes since than it had lost, so comparing
        revision numbers is not enough.
        """
        if self._newest is None:
            return
        stored = await self._store.reader.read_event(self._newest.revision)
        if stored != self._newest:
            self.report_inconsistency(f"revision {self._newest.revision} is a different change in the store")
            # A missing event means that the stream was trimmed, which breaks only our history, or that the store is
            # behind, which the store detects itself.
            self._rewritten = stored is not None

    async def _follow_once(self) -> None:
        """Wait for events and apply them; without events, check that the history continues. Recover from a break."""
        if self._broken is None:
            # The first read after a connect does not wait: it shows whether the store permits all that following needs.
            await self._read_events(wait=self.connected)
        if self._broken is not None:  # also if the store disconnected during the previous attempt
            await self._recover(self._broken)
            await self._share_values()
            self._broken, self._rewritten, self._must_reload = None, False, False
            await self._read_events(wait=False)
            if self._broken is not None:  # reading it again and again would not help
                fault = StoreFault("XREAD", self._store.keys.events, self._broken, temporary=False)
                raise StoreUnavailable("the store's event stream is damaged", fault)
            self._consistent.set()

    async def _read_events(self, *, wait: bool) -> None:
        try:
            events = await self._store.reader.wait_for_events(self._replica.revision, wait=wait)
            turn = Turn()
            for event in events:
                self._apply(event)
                await turn.yield_if_over()  # records may be large, and watched by many groups
            if not events:
                await self._check_continuity()
        except _HistoryBroken as error:
            self.report_inconsistency(str(error))
        except DamagedEvent as error:
            # The state has the change, unless another program wrote the event.
            head = await self._store.reader.read_position()
            self.report_inconsistency(str(error), reload=error.revision <= head.revision)

    async def _recover(self, reason: str) -> None:
        certain = True
        if self.repairer is not None:
            if await self.repairer.find_divergence():
                self._set_disconnected("the store lost state or is being repaired")
                certain = await self.repairer.repair_store()
            if not self._must_reload and await self._continues_history():
                return
        await self._resync(reason)
        if not certain:
            await self._store.writer.publish_notice(
                "the store returned with another history: unregistered services may have reappeared",
                seen=Position(self._replica.position.epoch, 0),
                reason=EventReason.EVENT_REASON_RESYNC,
            )

    async def _continues_history(self) -> bool:
        """Return whether the store has our newest change and every change after it."""
        known, head = self._replica.position, await self._store.reader.read_position()
        if head.epoch != known.epoch or head.revision < known.revision:
            return False
        if self._newest is not None and await self._store.reader.read_event(known.revision) != self._newest:
            return False
        if head.revision == known.revision:
            return True
        next_event = await self._store.reader.read_event(known.revision + 1)
        return next_event is not None and next_event.epoch == known.epoch

    async def _check_continuity(self) -> None:
        known = self._replica.position
        head = await self._read_head()
        if head.epoch != known.epoch:
            raise _HistoryBroken(f"epoch {known.epoch} was followed by {head.epoch}")
        if head.revision < known.revision:
            raise _HistoryBroken(f"revision went back from {known.revision} to {head.revision}")
        # The revision may have been committed after the read of the stream; the next read must then return it.
        behind = head.revision > known.revision
        if behind and self._behind_once:
            raise _HistoryBroken(f"revisions {known.revision + 1} to {head.revision} are missing from the stream")
        self._behind_once = behind

    async def _read_head(self) -> Position:
        """Return the store's position. Without a repairer, the store starts a new epoch if it is behind ours."""
        if not self.loaded:
            return await self._store.reader.resolve_head()
        known, head = self._replica.position, await self._store.reader.read_position()
        if self.repairer is not None or (
            head.epoch == known.epoch and head.revision >= known.revision and not self._rewritten
        ):
            return head
        return await self._store.reader.resolve_head(known, rewritten=self._rewritten)

    def _apply(self, event: StoredEvent) -> None:
        position = self._replica.position
        if event.epoch != position.epoch or event.revision != position.revision + 1:
            raise _HistoryBroken(f"{position} was followed by revision {event.revision} of epoch {event.epoch}")
        change = change_from_event(event, self._replica.records.get(event.name))
        self._behind_once = False
        self._newest = event
        self._replica.apply_change(change)
        if event.name in self.damaged:  # it was written again
            self._set_damaged(self.damaged - {event.name})
        self.event_lag.observe(max(self._clock() / 1_000_000 - event.at_ms, 0.0) / 1000)

    async def _load(self) -> None:
        # Loading allocates millions of long-lived objects. Traversing them took 40 % of the load time and then 0.1 s of
        # every full collection with 100,000 services, so they are excluded from collection.
        gc.disable()
        try:
            state = await self._read_state()
            records, position = state.records, state.position
            for start in range(0, len(records), _LOAD_SLICE_RECORDS):
                self._replica.load_records(records[start : start + _LOAD_SLICE_RECORDS])
                await asyncio.sleep(0)
            self._replica.start_at(state.past, position, state.owners)
        finally:
            gc.enable()
        gc.freeze()
        self.loaded = True
        log.info("catalog loaded", services=len(records), revision=position.revision, epoch=position.epoch)

    async def _resync(self, reason: str) -> None:
        before = self._replica.position
        state = await self._read_state()
        position = state.position
        changes = resync_changes(self._replica.records, state.records, position, self._clock() // 1_000_000)
        log.warning(
            "resynchronised with the store",
            reason=reason,
            before=before.revision,
            after=position.revision,
            same_epoch=before.epoch == position.epoch,
            differences=len(changes),
        )
        self._on_resync(changes)
        self._replica.resync(changes, position, state.owners)
        self.resyncs += 1
        self.epoch_changes += before.epoch != position.epoch

    async def _read_state(self) -> State:
        # A repair restores a damaged record from the replica; without repairs, the store is accepted as it is.
        held = self._replica.records if self.repairer is not None else {}
        length = self._replica.history.max_changes
        state = await read_state(self._store.reader, self._read_head, held, length)
        await start_retention(self._store, state.past)
        self._newest = state.newest
        self._set_damaged(state.damaged)
        return state

    def _set_damaged(self, names: frozenset[str]) -> None:
        self.damaged = names
        if names:
            example = ascii(min(names))[:_MAX_SHOWN_NAME]
            self._problems.report(
                "store_damaged_records",
                f"{len(names)} services in {self._store.keys.records} cannot be decoded, such as {example}: register "
                "them again, or delete these fields",
            )
        else:
            self._problems.resolve("store_damaged_records")

    def _set_connected(self) -> None:
        self._last_contact = self._monotonic()
        if self.connected:
            return
        self.connected = True
        self.connections += 1
        self._connected_at = self._last_contact
        self._problems.resolve("store")
        self._logged_reasons.clear()
        log.info("store connected", revision=self._replica.revision)
        self._on_connection(connected=True)

    def _set_disconnected(self, reason: str, shown: str = "") -> bool:
        """Serve reads as stale; return whether the reason, which may name hosts, is new. ``shown`` names none."""
        text = f"Redis cannot be followed: {shown or reason}"
        self._problems.report("store", text)
        if new := reason not in self._logged_reasons and len(self._logged_reasons) < _MAX_LOGGED_REASONS:
            self._logged_reasons.add(reason)
            log.warning("store disconnected" if self.connected else "store not reachable", reason=reason)
        if self.connected:
            self.connected = False
            self._on_connection(connected=False)
        return new
