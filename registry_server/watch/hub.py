"""``WatchHub``: opens watches, publishes changes to them and ends them."""

import weakref
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from ossa_common.cursors import Cursor
from registry_server.catalog.change import Change, WatchEvent
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.errors import CursorExpired, Overloaded, RevisionNotReached, ShuttingDown
from registry_server.model.filters import Filter
from registry_server.runtime.pacing import Wakeups
from registry_server.security.identity import current_caller_key
from registry_server.store import Position
from registry_server.watch.groups import WatchGroup, WatchGroups, match_event
from registry_server.watch.messages import EventBatch, Snapshot, WatchLimits, fits_one_message
from registry_server.watch.watcher import WatchCounters, Watcher

if TYPE_CHECKING:
    import asyncio

_REST_TURNS: Final = 3
"""With 100 changes a second, a thousand streams always have events to send; calls are accepted in these turns."""


class WatchHub:
    """All open watches of this process."""

    def __init__(self, replica: Replica, discovery: Discovery, limits: WatchLimits) -> None:
        self.replica = replica
        self.limits = limits
        self._discovery = discovery
        self._groups = WatchGroups(replica, limits)
        self._group_of: dict[Watcher, WatchGroup] = {}
        # The group that the next watcher of a caller with a filter joins.
        self._joinable: dict[tuple[Hashable, bytes], WatchGroup] = {}
        self._wakeups = Wakeups(rest_turns=_REST_TURNS)
        self._snapshots: WeakValueDictionary[tuple[bytes, Position], Snapshot] = WeakValueDictionary()
        self.snapshot_records = 0
        """Number of services referenced by all open snapshots."""
        self._last_batch: EventBatch | None = None
        self._draining = False
        self.counters = WatchCounters()

    @property
    def watchers(self) -> int:
        """Number of open watches."""
        return len(self._group_of)

    async def open_watch(
        self,
        filter_: Filter,
        *,
        types: Collection[int] = (),
        cursor: Cursor | None = None,
        snapshot: bool = False,
        bookmark_interval: float = 30.0,
    ) -> Watcher:
        """Open a watch. Its first message is ready immediately; the caller must use the watcher as a context manager.

        Args:
            filter_: Services to watch.
            types: ``EventType`` values; empty = all.
            cursor: Position to resume after; ``None`` = start now.
            snapshot: Without a cursor: send the matching services first.
            bookmark_interval: Seconds after which a quiet stream gets an empty message.

        Raises:
            CursorExpired: The changes after the cursor are no longer all kept.
            ShuttingDown: The server is draining.
            Overloaded: Too many snapshots are being sent, or too many clients wait for a revision.
        """
        if cursor is not None and cursor.epoch == self.replica.position.epoch:
            with suppress(RevisionNotReached):
                await self.replica.wait_for_client(cursor.revision, self.limits.cursor_wait_seconds)
        try:
            past = await self._past_events(cursor, filter_) if cursor else ()
        except CursorExpired:
            self.counters.cursors_expired += 1
            raise
        names = await self._discovery.matching_names(filter_) if snapshot and cursor is None else None
        # No await from here on: the state, the earlier changes and the new watcher belong to one position.
        if self._draining:
            raise ShuttingDown
        opening = self._snapshot(filter_, names) if names is not None else None
        group = self._join_group(filter_)
        watcher = Watcher(self, group, types, bookmark_interval)
        if opening is not None:
            watcher.open_with_snapshot(opening)
        else:
            watcher.open_with_events(past, self.replica.position)
        group.watchers[watcher] = None
        self._group_of[watcher] = group
        self.counters.started["cursor" if cursor else "now" if names is None else "snapshot"] += 1
        return watcher

    def remove_watcher(self, watcher: Watcher) -> None:
        """Stop offering events to a watcher."""
        group = self._group_of.pop(watcher, None)
        if group is None:
            return
        del group.watchers[watcher]
        if not group.watchers:
            self._groups.remove_group(group)
            key = group.caller, group.filter.key
            if self._joinable.get(key) is group:
                del self._joinable[key]

    def wake(self, watcher: Watcher, waiter: "asyncio.Future[None]") -> None:
        """Resolve the future that a watcher waits for, in this turn of the event loop or a later one."""
        group = self._group_of.get(watcher)
        self._wakeups.wake(waiter, None if group is None else group.caller)

    def shared_batch(self, events: list[WatchEvent], position: Position, scope: str) -> EventBatch:
        """Return a batch, built once for all watchers that send the same events."""
        last = self._last_batch
        if last is None or last.position != position or last.scope != scope or last.events != events:
            last = self._last_batch = EventBatch(events, position, scope=scope, shared=True)
        return last

    def prepare_resync(self, changes: Sequence[Change]) -> None:
        """Expire all watches if one message cannot carry the difference that a resync is about to apply."""
        if not fits_one_message(changes):
            self.expire_all()

    def expire_all(self) -> None:
        """End every watch with ``CursorExpired``."""
        for watcher in list(self._group_of):
            watcher.end(CursorExpired("the store was replaced"), immediately=True)

    def drain(self) -> None:
        """End every watch once its buffer was sent, and refuse new ones."""
        self._draining = True
        for watcher in list(self._group_of):
            watcher.end(ShuttingDown())

    def _snapshot(self, filter_: Filter, names: Sequence[str]) -> Snapshot:
        """Return the services of these names, which match the filter now; kept while a watcher is sending it."""
        key = filter_.key, self.replica.position
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            max_records = self.limits.snapshot_records
            if (referenced := self.snapshot_records) and referenced + len(names) > max_records:
                raise Overloaded("snapshots", max_records, f"snapshots of {referenced} services are being sent")
            snapshot = Snapshot([self.replica.records[name] for name in names], key[1], filter_.scope)
            self._snapshots[key] = snapshot
            self.snapshot_records += len(names)
            weakref.finalize(snapshot, self._release_records, len(names)).atexit = False
        return snapshot

    def _release_records(self, count: int) -> None:
        self.snapshot_records -= count

    def _join_group(self, filter_: Filter) -> WatchGroup:
        """Return a group of the caller for a watcher that starts at the replica's position."""
        key = current_caller_key(), filter_.key
        group = self._joinable.get(key)
        # Events may end its last watcher, which removes the group.
        if group is None or not self._groups.catch_up(group) or not group.watchers:
            group = self._joinable[key] = self._groups.add_group(key[0], filter_)
        return group

    async def _past_events(self, cursor: Cursor, filter_: Filter) -> Sequence[WatchEvent]:
        """Return the events after a cursor, up to the replica's position on return.

        Raises:
            CursorExpired: The changes after it are not all kept.
        """
        events: list[WatchEvent] = []

        def match_past() -> Iterator[None]:
            reached = cursor.revision
            while self._require_resumable(cursor, reached, filter_.scope):
                reached += 1
                if (change := self.replica.history.at(reached)) is None:
                    raise CursorExpired(f"changes after revision {cursor.revision} are no longer all kept")
                if event := match_event(filter_, change):
                    events.append(event)
                yield

        await self._discovery.slices.run(match_past())
        return events

    def _require_resumable(self, cursor: Cursor, reached: int, scope: str) -> bool:
        """Return whether changes follow the revision up to which the changes after a cursor were matched."""
        position = self.replica.position
        if not cursor.resumable:
            raise CursorExpired("the cursor belongs to an unfinished snapshot")
        if cursor.epoch != position.epoch:
            raise CursorExpired("the cursor belongs to another epoch of the store")
        if cursor.scope != scope:
            raise CursorExpired("what this caller may see has changed since the cursor was issued")
        if cursor.revision > position.revision:
            raise CursorExpired(f"revision {cursor.revision} was not reached")
        return reached < position.revision
