"""``Replica``: this process's copy of the registry."""

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

HISTORY_BYTES = 64 << 20
NOBODY: Final[Mapping[str, str]] = MappingProxyType({})


class Replica:
    """Records, index and history at one position.

    Changed by the follower alone, in revision order, without an await in between: whoever reads it without awaiting
    sees one revision.
    """

    def __init__(self, history_length: int) -> None:
        self.records: dict[str, Record] = {}
        self.owners: dict[str, str] = {}
        """Names of services that somebody owns, as far as is known: for a store that has to be told of it again."""
        self.index = Index()
        self.interests = InterestTable(self.index)
        self.history = History(history_length, HISTORY_BYTES)
        self.position = Position("", 0)
        self.total_capabilities = 0
        self.on_moved: list[Callable[[], None]] = []
        """Called after every move of ``position``."""
        self.on_applied: list[Callable[[Change], None]] = []
        """Called with every change, also with those that a resync finds."""
        self._waiters: list[tuple[int, int, asyncio.Future[bool]]] = []
        self._order = count()

    @property
    def revision(self) -> int:
        """Newest revision that is applied."""
        return self.position.revision

    def enter(self, records: Collection[Record]) -> None:
        """Takes in some of the services of the state that ``begin`` begins with."""
        for record in records:
            self.records[record.name] = record
            self.index.add(record)
            self.total_capabilities += _capabilities(record)

    def begin(self, past: Sequence[Change], position: Position, owners: Mapping[str, str] = NOBODY) -> None:
        """Begins with the state that was entered: no one is told of it.

        Args:
            past: The changes that led there, the newest of them at ``position``; for cursors older than this process.
            position: Where the state stands.
            owners: Who owns which service.
        """
        self.owners = dict(owners)
        self.history.restart(past[0].revision - 1 if past else position.revision)
        for change in past:
            self.history.append(change)
        self._move(position)

    def apply(self, change: Change) -> None:
        """Applies the change of the next revision."""
        self._change_state(change)
        self.history.append(change)
        # Before interests are told, so that a watcher woken by a change finds its revision here.
        self.position = Position(self.position.epoch, change.revision)
        self._tell(change)
        self._move(self.position)

    def resync(self, changes: Sequence[Change], position: Position, owners: Mapping[str, str] = NOBODY) -> None:
        """Jumps to a position by a difference; watches cannot go on from before it.

        Args:
            changes: What differs between this state and that at ``position``.
            position: Where the store stands.
            owners: Who owns which service there.
        """
        for change in changes:
            self._change_state(change)
        self.owners = dict(owners)
        self.history.restart(position.revision)
        self.position = position
        for change in changes:
            self._tell(change)
        self._move(position)

    async def reached(self, revision: int, within: float) -> None:
        """Waits until a revision is applied.

        Args:
            revision: The revision.
            within: Seconds to wait at the most.

        Raises:
            RevisionNotReached: It was not applied in time.
        """
        if revision <= self.revision:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        entry = (revision, next(self._order), waiter)
        heapq.heappush(self._waiters, entry)
        timer = loop.call_later(within, _end, waiter, False)  # noqa: FBT003 - every write waits here: cheaper than a timeout
        reached = False
        try:
            reached = await waiter
        finally:
            timer.cancel()
            if not reached and entry in self._waiters:  # a far revision must not keep it for ever
                self._waiters.remove(entry)
                heapq.heapify(self._waiters)
        if not reached:
            raise RevisionNotReached(revision, self.revision)

    def _change_state(self, change: Change) -> None:
        before, after = self.records.get(change.name), change.after
        if before is not None and after is not None:
            self.index.replace(before, after)
        elif before is not None:
            self.index.remove(before)
        elif after is not None:
            self.index.add(after)
        if after is None:
            self.records.pop(change.name, None)
        else:
            self.records[after.name] = after
        if change.owner:
            self.owners[change.name] = change.owner
        else:
            self.owners.pop(change.name, None)
        self.total_capabilities += _capabilities(after) - _capabilities(before)

    def _tell(self, change: Change) -> None:
        for callback in self.on_applied:
            callback(change)
        self.interests.publish(change)

    def _move(self, position: Position) -> None:
        self.position = position
        while self._waiters and self._waiters[0][0] <= position.revision:
            _end(heapq.heappop(self._waiters)[2], reached=True)
        for callback in self.on_moved:
            callback()


def _end(waiter: "asyncio.Future[bool]", reached: bool) -> None:  # noqa: FBT001 - called by a timer
    if not waiter.done():
        waiter.set_result(reached)


def _capabilities(record: Record | None) -> int:
    return sum(term[0] == "k" for term in record.terms) if record else 0
