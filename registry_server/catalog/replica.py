"""``Replica``: this process's in-memory copy of the registry."""

import asyncio
import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import Final

from registry_server.catalog.change import Change
from registry_server.catalog.history import History
from registry_server.catalog.index import Index
from registry_server.catalog.interests import InterestTable
from registry_server.errors import RevisionNotReached
from registry_server.model.record import Record
from registry_server.store import Position

MAX_HISTORY_BYTES = 64 << 20
NO_OWNERS: Final[Mapping[str, str]] = MappingProxyType({})


class Replica:
    """Records, index and history at one position.

    Only the follower changes it, in revision order and without awaiting inside a change. Code that reads it without
    awaiting sees a single revision.
    """

    def __init__(self, history_length: int) -> None:
        self.records: dict[str, Record] = {}
        self.owners: dict[str, str] = {}
        """Service name to owner, as in the store at ``position``: an owner changes only with a change of its service.
        Written by the methods below. A write reads it to decide whether its caller becomes the owner, and a repair
        writes it back to the store; the store's scripts authorise writes."""
        self.index = Index()
        self.interests = InterestTable(self.index)
        self.history = History(history_length, MAX_HISTORY_BYTES)
        self.position = Position("", 0)
        self.total_capabilities = 0
        self.on_position_changed: list[Callable[[], None]] = []
        """Called after every change of ``position``."""
        self.on_applied: list[Callable[[Change], None]] = []
        """Called with every change, including the differences found by a resync."""
        self._waiters: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._order = count()  # orders waiters for the same revision

    @property
    def revision(self) -> int:
        """Newest applied revision."""
        return self.position.revision

    def load_records(self, records: Collection[Record]) -> None:
        """Add a part of the services of the initial state; ``start_at`` completes it."""
        for record in records:
            self.records[record.name] = record
            self.index.add_record(record)
            self.total_capabilities += _count_capabilities(record)

    def start_at(self, past: Sequence[Change], position: Position, owners: Mapping[str, str] = NO_OWNERS) -> None:
        """Complete the initial state, without notifying interests.

        Args:
            past: The changes that led to it, the newest at ``position``; they serve cursors older than this process.
            position: Position of the loaded state.
            owners: Service name to owner.
        """
        self.owners = dict(owners)
        self.history.restart(past[0].revision - 1 if past else position.revision)
        for change in past:
            self.history.append(change)
        self._set_position(position)

    def apply_change(self, change: Change) -> None:
        """Apply the change of the next revision and notify interests."""
        self._change_state(change)
        self.history.append(change)
        # Set before interests are notified, so that a watcher woken by this change reads its revision.
        self.position = Position(self.position.epoch, change.revision)
        self._notify(change)
        self._set_position(self.position)

    def resync(self, changes: Sequence[Change], position: Position, owners: Mapping[str, str] = NO_OWNERS) -> None:
        """Jump to a position by applying a difference; cursors from before it can no longer be resumed.

        Args:
            changes: Differences between the current state and the state at ``position``.
            position: Position of the store.
            owners: Service name to owner at that position.
        """
        for change in changes:
            self._change_state(change)
        self.owners = dict(owners)
        self.history.restart(position.revision)
        self.position = position
        for change in changes:
            self._notify(change)
        self._set_position(position)

    async def wait_for_revision(self, revision: int, wait_seconds: float) -> None:
        """Wait until a revision is applied.

        Args:
            revision: The revision.
            wait_seconds: Seconds to wait at most.

        Raises:
            RevisionNotReached: It was not applied in time.
        """
        if revision <= self.revision:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        entry = (revision, next(self._order), waiter)
        heapq.heappush(self._waiters, entry)
        timer = loop.call_later(wait_seconds, _resolve, waiter, False)  # noqa: FBT003 - asyncio.timeout costs more
        reached = False
        try:
            reached = await waiter
        finally:
            timer.cancel()
            if not reached and entry in self._waiters:  # a distant revision would keep the entry indefinitely
                self._waiters.remove(entry)
                heapq.heapify(self._waiters)
        if not reached:
            raise RevisionNotReached(revision, self.revision)

    def _change_state(self, change: Change) -> None:
        before, after = self.records.get(change.name), change.after
        if before is not None and after is not None:
            self.index.replace_record(before, after)
        elif before is not None:
            self.index.remove_record(before)
        elif after is not None:
            self.index.add_record(after)
        if after is None:
            self.records.pop(change.name, None)
        else:
            self.records[after.name] = after
        if change.owner:
            self.owners[change.name] = change.owner
        else:
            self.owners.pop(change.name, None)
        self.total_capabilities += _count_capabilities(after) - _count_capabilities(before)

    def _notify(self, change: Change) -> None:
        for callback in self.on_applied:
            callback(change)
        self.interests.publish_change(change)

    def _set_position(self, position: Position) -> None:
        self.position = position
        while self._waiters and self._waiters[0][0] <= position.revision:
            _resolve(heapq.heappop(self._waiters)[2], reached=True)
        for callback in self.on_position_changed:
            callback()


def _resolve(waiter: "asyncio.Future[bool]", reached: bool) -> None:  # noqa: FBT001 - called by a timer
    if not waiter.done():
        waiter.set_result(reached)


def _count_capabilities(record: Record | None) -> int:
    return sum(term[0] == "k" for term in record.terms) if record else 0
