"""``WatchGroups``: matches changes to the filters of all watches, in slices of the event loop's time."""

import asyncio
import time
from collections.abc import Collection, Hashable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ossa.registry.v1.event_pb2 import EventReason
from registry_server.catalog.change import Change, WatchEvent
from registry_server.catalog.replica import Replica
from registry_server.errors import WatcherTooSlow
from registry_server.model.filters import Filter
from registry_server.runtime.pacing import FairQueue, Turn
from registry_server.store import Position
from registry_server.watch.messages import WatchLimits

if TYPE_CHECKING:
    from registry_server.watch.watcher import Watcher


class WatchGroup:
    """The watchers of one caller with the same filter: each change is matched once for all of them.

    ``WatchGroups`` changes the attributes.
    """

    def __init__(self, caller: Hashable, filter_: Filter, replica: Replica) -> None:
        """Create a group without watchers at the replica's position."""
        self.caller = caller
        self.filter = filter_
        self.anchors = replica.anchors.subscribe(filter_, notices=True)
        self.watchers: dict[Watcher, None] = {}
        self.behind = False
        """Whether it is queued for matching."""
        self.tick = 0
        """While it is behind: the newest tick whose changes were offered to the watchers."""
        self.events: list[WatchEvent] = []
        """Events of the next tick; offered when ``matched_changes`` reaches the number of its changes."""
        self.matched_changes = 0
        self._replica = replica
        self._reached = replica.position

    @property
    def position(self) -> Position:
        """Position up to which all matching changes were offered to the watchers."""
        return self._reached if self.behind else self._replica.position

    def fall_behind(self, tick: int, reached: Position) -> None:
        """Hold the position at a tick until ``offer_events`` and ``catch_up`` advance it."""
        self.behind, self.tick, self._reached = True, tick, reached

    def offer_events(self, position: Position) -> None:
        """Offer the events of the next tick, which are complete."""
        events, self.events, self.matched_changes = self.events, [], 0
        self.tick += 1
        self._reached = position
        for event in events:
            offered = position, event  # one for all buffers: a tuple in each would use eight times the memory
            for watcher in list(self.watchers):  # a copy: a watcher that is too slow removes itself
                watcher.offer(offered)


class WatchGroups:
    """All groups, and the changes that some of them have not matched yet.

    The groups of each caller take turns with those of the others. While matching does not keep up, it runs at most half
    of the time. A change that little work precedes in its turn of the event loop is offered at once.
    """

    def __init__(self, replica: Replica, limits: WatchLimits) -> None:
        """Create an empty set of groups that receives the changes of a replica."""
        self._replica = replica
        self._limits = limits
        self._turn = Turn(limits.slice_seconds)
        # Groups that are not behind: those that are need not be found when a change arrives.
        self._by_anchor: dict[str, dict[WatchGroup, None]] = {}
        self._behind: FairQueue[WatchGroup] = FairQueue()
        self._backlog: list[tuple[Position, Sequence[Change]]] = []
        self._backlog_tick = 0  # of the first entry
        self._backlog_bytes = 0
        self._position = replica.position
        self._scheduled = False
        replica.on_published.append(self._on_published)

    def add_group(self, caller: Hashable, filter_: Filter) -> WatchGroup:
        """Add a group, which receives the changes from now on."""
        group = WatchGroup(caller, filter_, self._replica)
        self._await_changes(group)
        return group

    def remove_group(self, group: WatchGroup) -> None:
        """Remove a group."""
        self._replica.anchors.unsubscribe(group.anchors)
        if not group.behind:
            self._forget(group)

    def catch_up(self, group: WatchGroup) -> bool:
        """Match what a group has missed, as far as time permits; return whether it is not behind now."""
        if group.behind:
            self._advance(group, self._turn.deadline())
        return not group.behind

    def _await_changes(self, group: WatchGroup) -> None:
        for anchor in group.anchors:
            self._by_anchor.setdefault(anchor, {})[group] = None

    def _forget(self, group: WatchGroup) -> None:
        for anchor in group.anchors:
            groups = self._by_anchor[anchor]
            del groups[group]
            if not groups:
                del self._by_anchor[anchor]

    def _on_published(self, changes: Sequence[Change], anchors: Collection[str]) -> None:
        previous, self._position = self._position, self._replica.position
        tick = self._replica.anchors.tick
        affected = [group for anchor in anchors for group in self._by_anchor.get(anchor, ())]
        if not affected and not self._behind:
            return
        if not self._backlog:
            self._backlog_tick = tick
        self._backlog.append((self._position, changes))
        self._backlog_bytes += sum(change.size for change in changes)
        if len(self._backlog) > self._limits.backlog_changes or self._backlog_bytes > self._limits.backlog_bytes:
            self._shorten_backlog()
        for group in affected:
            if not group.behind:  # it may have several of the anchors
                self._forget(group)
                group.fall_behind(tick - 1, previous)
                self._behind.push(group.caller, group)
        if not self._scheduled:
            self._match()

    def _shorten_backlog(self) -> None:
        """Drop an eighth of the backlog; groups that have not matched it end."""
        count = len(self._backlog) // 8 + 1
        self._backlog_bytes -= sum(change.size for _, changes in self._backlog[:count] for change in changes)
        del self._backlog[:count]
        self._backlog_tick += count

    def _match(self) -> None:
        """Match for the rest of this turn's time, and continue later if that is not enough."""
        deadline = self._turn.deadline()
        self._scheduled = False
        while self._behind:
            group = self._behind.pop()
            self._advance(group, deadline)
            if group.behind:
                self._behind.push(group.caller, group)
            if self._behind and time.perf_counter() >= deadline:
                self._scheduled = True
                # The pause leaves time to calls, which need several turns each.
                asyncio.get_running_loop().call_later(self._limits.slice_seconds, self._match)
                return
        self._backlog.clear()
        self._backlog_bytes = 0

    def _advance(self, group: WatchGroup, deadline: float) -> None:
        """Match what a group has missed until a deadline; at least one change."""
        newest = self._replica.anchors.tick
        while group.behind and group.watchers and group.tick < newest:
            entry = group.tick + 1 - self._backlog_tick
            if entry < 0:
                for watcher in list(group.watchers):
                    watcher.end(WatcherTooSlow(f"{newest - group.tick} changes were not matched"), immediately=True)
                break
            position, changes = self._backlog[entry]
            for change in islice(changes, group.matched_changes, None):
                if event := match_event(group.filter, change):
                    group.events.append(event)
                group.matched_changes += 1
                if group.matched_changes < len(changes) and time.perf_counter() >= deadline:
                    return
            group.offer_events(position)
            if group.tick < newest and time.perf_counter() >= deadline:
                return
        group.behind = False
        if group.watchers:  # otherwise it was removed
            self._await_changes(group)


def match_event(filter_: Filter, change: Change) -> WatchEvent | None:
    """Return the event of a change for watchers with a filter; ``None`` if it does not concern them."""
    if change.is_notice:
        # A notice about services goes to those that see all of them, to their owner and to operators.
        hidden = (
            filter_.notices_of not in (None, change.about) and change.reason == EventReason.EVENT_REASON_HEALTH_CHECK
        )
        return None if hidden else change.event(matches=False)
    before, after = change.before, change.after
    matched, matches = filter_.match_change(before, after)
    if filter_.visible is not None and before is not None and after is not None:
        if matched and not filter_.visible(after):
            return change.departure()
        if matches and not filter_.visible(before):
            return change.arrival()
    return change.event(matches=matches) if matched or matches else None
