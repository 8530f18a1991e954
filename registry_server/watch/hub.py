"""``WatchHub``: opens watches, publishes changes to them and ends them."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

from registry_server.catalog.change import Change, WatchEvent
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.errors import CursorExpired, Overloaded, RevisionNotReached, ShuttingDown
from registry_server.model.filters import Filter
from registry_server.model.tokens import Cursor
from registry_server.store import Position
from registry_server.watch.messages import EventBatch, Snapshot, WatchLimits, fits_one_message
from registry_server.watch.watcher import WatchCounters, Watcher


class WatchGroup:
    """All watchers with the same filter, which is evaluated once for them."""

    def __init__(self, filter_: Filter, replica: Replica) -> None:
        self.filter = filter_
        self._replica = replica
        self.watchers: dict[Watcher, None] = {}

    def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
        """Offer a change to every watcher."""
        del matched  # true unless it matches now: only such changes and notices are published
        event = change.event(matches=matches)
        position = self._replica.position
        for watcher in list(self.watchers):  # a copy: a watcher that is too slow removes itself
            watcher.offer(position, event)

    def events_of(self, changes: Sequence[Change]) -> Iterator[WatchEvent]:
        """Yield the event of each change that concerns this group."""
        for change in changes:
            matches = change.after is not None and self.filter.matches(change.after)
            if matches or change.is_notice or (change.before is not None and self.filter.matches(change.before)):
                yield change.event(matches=matches)


class WatchHub:
    """All open watches of this process."""

    def __init__(self, replica: Replica, discovery: Discovery, limits: WatchLimits) -> None:
        self.replica = replica
        self.limits = limits
        self._discovery = discovery
        self._groups: dict[bytes, WatchGroup] = {}
        self._group_of: dict[Watcher, WatchGroup] = {}
        self._snapshots: WeakValueDictionary[tuple[bytes, Position], Snapshot] = WeakValueDictionary()
        self._last_batch: EventBatch | None = None
        self._draining = False
        self.counters = WatchCounters()
        replica.on_applied.append(self._on_applied)

    @property
    def watchers(self) -> int:
        """Number of open watches."""
        return sum(len(group.watchers) for group in self._groups.values())

    @property
    def position(self) -> Position:
        """Newest position that this process has applied."""
        return self.replica.position

    @property
    def snapshot_records(self) -> int:
        """Number of services referenced by all open snapshots."""
        return sum(len(snapshot.records) for snapshot in self._snapshots.values())

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
            Overloaded: Too many snapshots are being sent.
        """
        if cursor is not None and cursor.epoch == self.replica.position.epoch:
            with suppress(RevisionNotReached):
                await self.replica.wait_for_revision(cursor.revision, self.limits.cursor_wait_seconds)
        names = await self._discovery.matching_names(filter_) if snapshot and cursor is None else None
        # No await from here on: the state, the earlier changes and the new watcher belong to one position.
        start = self.replica.position
        try:
            past = self._changes_since(cursor) if cursor else ()
        except CursorExpired:
            self.counters.cursors_expired += 1
            raise
        if self._draining:
            raise ShuttingDown
        opening = self._snapshot(filter_, names) if names is not None else None
        group = self._groups.get(filter_.key)
        if group is None:
            group = self._groups[filter_.key] = WatchGroup(filter_, self.replica)
            self.replica.interests.add_interest(group)
        watcher = Watcher(self, types, bookmark_interval)
        if opening is not None:
            watcher.open_with_snapshot(opening)
        else:
            watcher.open_with_events(group.events_of(past), start)
        group.watchers[watcher] = None
        self._group_of[watcher] = group
        self.counters.started["cursor" if cursor else "now" if names is None else "snapshot"] += 1
        return watcher

    def remove_watcher(self, watcher: Watcher) -> None:
        """Stop offering events to a watcher."""
        group = self._group_of.pop(watcher, None)
        if group is None:
            return
        group.watchers.pop(watcher, None)
        if not group.watchers and self._groups.get(group.filter.key) is group:
            del self._groups[group.filter.key]
            self.replica.interests.remove_interest(group)

    def shared_batch(self, events: list[WatchEvent], position: Position) -> EventBatch:
        """Return a batch, built once for all watchers that send the same events."""
        last = self._last_batch
        if last is None or last.position != position or last.events != events:
            last = self._last_batch = EventBatch(events, position)
        return last

    def prepare_resync(self, changes: Sequence[Change]) -> None:
        """Expire all watches if one message cannot carry the difference that a resync is about to apply."""
        if not fits_one_message(changes):
            self.expire_all()

    def expire_all(self) -> None:
        """End every watch with ``CursorExpired``."""
        for watcher in self._all_watchers():
            watcher.end(CursorExpired("the store was replaced"), immediately=True)

    def drain(self) -> None:
        """End every watch once its buffer was sent, and refuse new ones."""
        self._draining = True
        for watcher in self._all_watchers():
            watcher.end(ShuttingDown())

    def _snapshot(self, filter_: Filter, names: Sequence[str]) -> Snapshot:
        """Return the services of these names, which match the filter now; kept while a watcher is sending it."""
        key = filter_.key, self.replica.position
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            max_records = self.limits.snapshot_records
            if (referenced := self.snapshot_records) and referenced + len(names) > max_records:
                raise Overloaded("snapshots", max_records, f"snapshots of {referenced} services are being sent")
            snapshot = Snapshot([self.replica.records[name] for name in names], key[1])
            self._snapshots[key] = snapshot
        return snapshot

    def _on_applied(self, change: Change) -> None:
        if change.is_notice:  # it concerns no service, so the interest table does not route it
            for group in list(self._groups.values()):
                group.on_change(change, matched=False, matches=False)

    def _all_watchers(self) -> list[Watcher]:
        return [watcher for group in self._groups.values() for watcher in group.watchers]

    def _changes_since(self, cursor: Cursor) -> Sequence[Change]:
        position = self.replica.position
        if not cursor.resumable:
            raise CursorExpired("the cursor belongs to an unfinished snapshot")
        if cursor.epoch != position.epoch:
            raise CursorExpired("the cursor belongs to another epoch of the store")
        if cursor.revision > position.revision:
            raise CursorExpired(f"revision {cursor.revision} was not reached")
        past = self.replica.history.since(cursor.revision)
        if past is None:
            raise CursorExpired(f"changes after revision {cursor.revision} are no longer all kept")
        return past
