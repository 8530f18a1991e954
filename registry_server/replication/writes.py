"""``Writes``: how a change is made that rests on what this process knows.

A write reads the replica, decides, and commits on the condition that the service is still at the revision that was read
(compare and set). If it is not, it waits until the replica has caught up and decides again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Service
from registry_server.catalog import Replica
from registry_server.errors import (
    Overloaded,
    RevisionMismatch,
    RevisionNotReached,
    ServiceExists,
    ServiceNotFound,
    StoreUnavailable,
    WriteConflict,
)
from registry_server.model.normal import ttl_seconds
from registry_server.model.record import Record
from registry_server.replication import Follower
from registry_server.security.identity import NO_CLAIM, Claim
from registry_server.store import Conflict, EpochChanged, RedisStore

REPLICA_WAIT_SECONDS: Final = 5.0
"""Seconds that a write waits for this process to see what the store has, and that it tries again after conflicts."""

_MOST: Final = 5_000
"""Writes under way. Fewer than the calls that a process takes: if Redis hangs, there is room for those that read."""

_T = TypeVar("_T")


class Writes:
    """Makes changes one service at a time, each when its turn has come."""

    def __init__(self, store: RedisStore, replica: Replica, follower: Follower, *, default_ttl: float) -> None:
        self._store = store
        self._replica = replica
        self._follower = follower
        self._default_ttl = default_ttl
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.in_flight = 0
        """Writes that wait for their turn or for the store."""

    async def change_service(
        self, name: str, attempt: Callable[[Record | None], Awaitable[_T | Conflict | EpochChanged]]
    ) -> _T:
        """Tries a write on what this process knows of a service until its knowledge was true when it was committed.

        Writes of this process to one service take turns, in the order in which they came: only those of other
        processes can make an attempt fail.

        Args:
            name: The service.
            attempt: Makes the write, given what this process knows of the service; gives its result, or why the store
                refused it. May raise ``ServiceExists``, ``ServiceNotFound`` or ``RevisionMismatch``.

        Raises:
            WriteConflict: Others changed the service each time.
            StoreUnavailable: Redis does not answer.
            NotReplicated: The write was made, but too few replicas have it.
            Overloaded: Too many writes are under way.
        """
        self.require_loaded()
        self.require_capacity()
        # Held by those who wait for it, and gone with the last of them.
        turn = self._turns.get(name)
        if turn is None:
            turn = self._turns[name] = asyncio.Lock()
        self.in_flight += 1
        try:
            async with turn:
                return await self._in_turn(name, attempt)
        finally:
            self.in_flight -= 1

    async def _in_turn(
        self, name: str, attempt: Callable[[Record | None], Awaitable[_T | Conflict | EpochChanged]]
    ) -> _T:
        level = False
        give_up = asyncio.get_running_loop().time() + REPLICA_WAIT_SECONDS
        while True:
            epoch = self._replica.position.epoch
            try:
                outcome = await attempt(self._replica.records.get(name))
            except (ServiceExists, ServiceNotFound, RevisionMismatch):
                if level:
                    raise
                # What this process knows may be milliseconds old: refuse only on what is true.
                level = True
                await self.catch_up()
                continue
            match outcome:
                case Conflict(newest):
                    await self.wait_applied(newest)
                case EpochChanged():
                    await self._whole_again(epoch)
                case _:
                    return outcome
            # By time and not by number: another process may win many rounds in a row.
            if asyncio.get_running_loop().time() > give_up:
                raise WriteConflict(name)

    async def write_service(
        self,
        before: Service | None,
        after: Service,
        type_: EventType.ValueType,
        *,
        renew: bool,
        reason: EventReason.ValueType = EventReason.EVENT_REASON_CLIENT_REQUEST,
        claim: Claim = NO_CLAIM,
    ) -> Service | Conflict | EpochChanged:
        """Commits a service in place of what it was before (``None``: nothing), and waits until this process has it."""
        outcome = await self._store.put(
            after,
            epoch=self._replica.position.epoch,
            seen=self._replica.revision,
            expected=before.revision if before else 0,
            type=type_,
            reason=reason,
            ttl=ttl_seconds(after, self._default_ttl),
            renew=renew,
            # What was checked before is no longer how the service is.
            forget_check=before is not None and (before.endpoint != after.endpoint or before.health != after.health),
            claim=claim,
        )
        if not isinstance(outcome, int):
            return outcome
        await self._made(after.name, outcome)
        after.revision = outcome
        return after

    async def touch_service(
        self, service: Service, *, renew: bool, claim: Claim = NO_CLAIM, confirm: bool = True
    ) -> Service | Conflict | EpochChanged:
        """Writes the document of a service again, and with ``renew`` renews its lease; nothing else changes.

        Somebody who was told that too few replicas have a change may ask again, and ends here: so replicas are waited
        for as with a change, unless ``confirm`` is false.
        """
        outcome = await self._store.touch(
            service,
            epoch=self._replica.position.epoch,
            seen=self._replica.revision,
            expected=service.revision,
            ttl=ttl_seconds(service, self._default_ttl),
            renew=renew,
            claim=claim,
            confirm=confirm,
        )
        if not isinstance(outcome, int):
            return outcome
        if claim.exclusive:  # it may have become theirs just now, of which no event tells
            self._replica.owners[service.name] = claim.owner
        return service

    async def delete_service(self, record: Record, claim: Claim = NO_CLAIM) -> Service | Conflict | EpochChanged:
        """Removes a service, and waits until this process has removed it; gives its last state."""
        outcome = await self._store.delete(
            record.name,
            epoch=self._replica.position.epoch,
            seen=self._replica.revision,
            expected=record.revision,
            reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
            claim=claim,
        )
        if not isinstance(outcome, int):
            return outcome
        await self._made(record.name, outcome, gone=True)
        return record.message()

    async def publish_notice(self, error: str, reason: EventReason.ValueType) -> None:
        """Tells every watcher, of all processes, that something is wrong with the registry itself.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        epoch, revision = self._replica.position
        await self._store.notice(error, epoch=epoch, reason=reason, seen=revision)

    async def wait_applied(self, revision: int) -> None:
        """Waits until this process holds a revision that is committed.

        Raises:
            StoreUnavailable: It does not come: this process has lost the store.
        """
        try:
            await self._replica.wait_for_revision(revision, REPLICA_WAIT_SECONDS)
        except RevisionNotReached:
            raise StoreUnavailable(f"the store is at revision {revision}, but this process cannot follow it") from None

    async def _made(self, name: str, revision: int, *, gone: bool = False) -> None:
        """Waits until this process holds a change of a service that it has committed itself.

        Raises:
            StoreUnavailable: It does not come; or the store has lost it before this process held it, and gave its
                revision to another change.
        """
        await self.wait_applied(revision)
        change, record = self._replica.history.at(revision), self._replica.records.get(name)
        if change is not None:
            is_ours = change.name == name and (change.after is None) == gone
        else:  # the state was loaded anew meanwhile
            is_ours = record is None if gone else record is not None and record.revision == revision
        if not is_ours:
            raise StoreUnavailable("the store was replaced: whether it has the change is not known")

    async def catch_up(self) -> None:
        """Waits until this process holds all that was committed when the call arrived."""
        await self.wait_applied(await self.read_head())

    async def read_head(self) -> int:
        """Reads the newest revision, in the epoch that this process is in by then."""
        known = self._replica.position
        head = await self._store.position()
        if head.epoch != known.epoch or head.revision < known.revision:
            await self._whole_again(known.epoch)
        return head.revision

    async def _whole_again(self, epoch: str) -> None:
        """Waits until the follower has looked at a store that is in another epoch than this process, or behind it."""
        if self._replica.position.epoch != epoch:
            return
        self._follower.report_inconsistency("a write found the store in another epoch, or behind")
        try:
            async with asyncio.timeout(REPLICA_WAIT_SECONDS):
                await self._follower.wait_consistent()
        except TimeoutError:
            raise StoreUnavailable("the store was replaced and is being read again") from None

    def require_loaded(self) -> None:
        """Refuses while this process does not know yet what is registered."""
        if not self._follower.loaded:
            raise StoreUnavailable("the registry has not reached its store yet")

    def require_capacity(self, count: int = 1) -> None:
        """Refuses while so many more writes are too many."""
        if self.in_flight + count > _MOST:
            raise Overloaded("writes", _MOST, f"{self.in_flight} writes wait for the store here")


def require_existing(name: str, record: Record | None, expected_revision: int = 0) -> Record:
    """Gives the record that a write rests on.

    Raises:
        ServiceNotFound: There is none.
        RevisionMismatch: It is not at ``expected_revision`` (0 = any).
    """
    if record is None:
        raise ServiceNotFound(name)
    if expected_revision and record.revision != expected_revision:
        raise RevisionMismatch(name, expected_revision, record.revision)
    return record
