"""``Replica``: this process's in-memory copy of the registry."""

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from registry_server.catalog.anchors import Anchors
from registry_server.catalog.budgets import ChangeBudgets
from registry_server.catalog.change import Change
from registry_server.catalog.history import History
from registry_server.catalog.index import Index
from registry_server.catalog.tombstones import Tombstones
from registry_server.errors import Overloaded, RevisionNotReached
from registry_server.model.record import Record
from registry_server.runtime.pacing import Wakeups
from registry_server.security.identity import current_caller_key
from registry_server.security.limits import Shares
from registry_server.store import Position

MAX_HISTORY_BYTES: Final = 96 << 20
"""One owner may fill 72 MiB in a minute: a burst of 32 MiB, the removal of what it registered, and 128 KiB a second."""
MAX_OLD_HISTORY_BYTES: Final = MAX_HISTORY_BYTES // 2
"""What one owner fills must not add up over many minutes."""
MAX_WAITING_CLIENTS: Final = 5_000
"""Clients that wait for a revision. Below the limit on calls, so that other calls are still admitted."""
NO_OWNERS: Final[Mapping[str, str]] = MappingProxyType({})


class Publication(Protocol):
    """Callback for each published state."""

    def __call__(self, changes: Sequence[Change], anchors: Collection[str]) -> None:
        """Handle the changes that led to the replica's position, and the anchors that they have; must not block."""


class Replica:
    """Records, index and history at one position.

    Only the follower changes it, in revision order and without awaiting inside a change. Code that reads it without
    awaiting sees a single revision.
    """

    def __init__(
        self,
        history_length: int,
        *,
        history_seconds: int = 0,
        budgets: ChangeBudgets | None = None,
        max_waiting_clients: int = MAX_WAITING_CLIENTS,
    ) -> None:
        """Create an empty replica.

        Args:
            history_length: Number of changes to keep.
            history_seconds: Time for which all changes are kept, whatever their number.
            budgets: Limits of the changes of one owner.
            max_waiting_clients: Number of clients that may wait for a revision.
        """
        self.records: dict[str, Record] = {}
        self.owners: dict[str, str] = {}
        """Service name to owner, as in the store at ``position``: an owner changes only with a change of its service.
        Written by the methods below. A write reads it to decide whether its caller becomes the owner, and a repair
        writes it back to the store; the store's scripts authorise writes."""
        self.index = Index()
        self.anchors = Anchors(self.index)
        self.history = History(history_length, MAX_HISTORY_BYTES, history_seconds * 1000, MAX_OLD_HISTORY_BYTES)
        self.tombstones = Tombstones()
        self.budgets = budgets or ChangeBudgets()
        """Limits of the changes of one owner."""
        self.position = Position("", 0)
        self.secret = secrets.token_bytes(32)
        """Authenticates page tokens. The processes of one registry share it through the store."""
        self.total_capabilities = 0
        self.on_position_changed: list[Callable[[], None]] = []
        """Called after every change of ``position``."""
        self.on_applied: list[Callable[[Change], None]] = []
        """Called with every change, including the differences found by a resync."""
        self.on_published: list[Publication] = []
        """Called once for each change, and once for all changes of a resync."""
        self._wakeups = Wakeups()
        self._waiting_clients = Shares(max_waiting_clients)
        self._waiters: dict[int, dict[asyncio.Future[None], None]] = {}  # by revision

    @property
    def revision(self) -> int:
        """Newest applied revision."""
        return self.position.revision

    def load_records(self, records: Collection[Record]) -> None:
        """Add a part of the services of the initial state; ``start_at`` completes it."""
        for record in records:
            self.records[record.name] = record
            self.index.add_record(record)
            self.total_capabilities += count_capabilities(record)

    def start_at(self, past: Sequence[Change], position: Position, owners: Mapping[str, str] = NO_OWNERS) -> None:
        """Complete the initial state, without publishing changes.

        Args:
            past: The changes that led to it, the newest at ``position``; they serve cursors older than this process.
            position: Position of the loaded state.
            owners: Service name to owner.
        """
        self._set_owners(owners)
        self.history.restart(past[0].revision - 1 if past else position.revision)
        for change in past:
            self.history.append(change)
            self.tombstones.apply_change(change)
        self.position = position
        self._wake_all()
        self._notify_position()

    def apply_change(self, change: Change) -> None:
        """Apply the change of the next revision and publish it."""
        owner_before = self.owners.get(change.name, "")
        self._change_state(change)
        if owner_before or change.owner:
            self.budgets.charge_change(change, owner_before)
        self.history.append(change)
        self.position = Position(self.position.epoch, change.revision)
        self._publish((change,))
        if change.revision in self._waiters:
            self._wake(self._waiters.pop(change.revision))

    def resync(self, changes: Sequence[Change], position: Position, owners: Mapping[str, str] = NO_OWNERS) -> None:
        """Jump to a position by applying a difference; cursors from before it can no longer be resumed.

        Args:
            changes: Differences between the current state and the state at ``position``.
            position: Position of the store.
            owners: Service name to owner at that position.
        """
        for change in changes:
            self._change_state(change)
        self._set_owners(owners)
        self.history.restart(position.revision)
        self.position = position
        self._publish(changes)
        self._wake_all()

    async def wait_for_client(self, revision: int, wait_seconds: float) -> None:
        """Wait until a revision that a client has requested is applied; see ``wait_for_revision``.

        Raises:
            Overloaded: Too many clients are waiting, or the caller has more than its share of them.
        """
        if revision <= self.revision:
            return
        caller, limit = current_caller_key(), self._waiting_clients.limit
        if not self._waiting_clients.take(caller, 1):
            waiting = self._waiting_clients.held
            raise Overloaded("waits", limit, f"{waiting} of at most {limit} clients are waiting for a revision")
        try:
            await self.wait_for_revision(revision, wait_seconds)
        finally:
            self._waiting_clients.give_back(caller, 1)

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
        waiter: asyncio.Future[None] = loop.create_future()
        waiters = self._waiters.setdefault(revision, {})
        waiters[waiter] = None
        # asyncio.timeout costs more.
        timer = loop.call_later(wait_seconds, self._wakeups.wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            waiters.pop(waiter, None)
            if not waiters and self._waiters.get(revision) is waiters:
                del self._waiters[revision]
        if revision > self.revision:
            raise RevisionNotReached(revision, self.revision)

    def _set_owners(self, owners: Mapping[str, str]) -> None:
        self.owners = dict(owners)
        self.budgets.count_services(self.owners)

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
            self.tombstones.apply_change(change)
        else:
            self.records[after.name] = after
        if change.owner:
            self.owners[change.name] = change.owner
        else:
            self.owners.pop(change.name, None)
        self.total_capabilities += count_capabilities(after) - count_capabilities(before)

    def _publish(self, changes: Sequence[Change]) -> None:
        """Publish changes, once ``position`` is theirs."""
        for change in changes:
            for on_applied in self.on_applied:
                on_applied(change)
        anchors = self.anchors.mark_changes(changes)
        for on_published in self.on_published:
            on_published(changes, anchors)
        self._notify_position()

    def _notify_position(self) -> None:
        for callback in self.on_position_changed:
            callback()

    def _wake_all(self) -> None:
        """Wake the waiters for every revision that a jump has reached."""
        for revision in [each for each in self._waiters if each <= self.revision]:
            self._wake(self._waiters.pop(revision))

    def _wake(self, waiters: "Iterable[asyncio.Future[None]]") -> None:
        for waiter in waiters:
            self._wakeups.wake(waiter)


def count_capabilities(record: Record | None) -> int:
    """Return the number of capabilities of a service."""
    return sum(term[0] == "k" for term in record.terms) if record else 0
