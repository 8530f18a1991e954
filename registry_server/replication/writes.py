"""``Writes``: optimistic compare-and-set writes.

A write reads the replica, decides, and commits on the condition that the service is still at the revision that it has
read. On a conflict it waits until the replica has caught up and decides again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import (
    EVENT_REASON_CLIENT_REQUEST,
    EVENT_REASON_HEALTH_CHECK,
    EVENT_TYPE_SERVICE_HEALTH_CHANGED,
    EVENT_TYPE_SERVICE_REGISTERED,
    EventReason,
    EventType,
)
from ossa.registry.v1.service_pb2 import Health, Service
from registry_server.catalog import Replica
from registry_server.catalog.change import change_size
from registry_server.errors import (
    InstanceSuperseded,
    Overloaded,
    RevisionMismatch,
    RevisionNotReached,
    ServiceExists,
    ServiceNotFound,
    StoreUnavailable,
    WriteConflict,
)
from registry_server.model import normal
from registry_server.model.record import Record
from registry_server.replication.follower import Follower
from registry_server.replication.large_writes import LargeWrites
from registry_server.replication.reconcile import Reconciler, contradicts
from registry_server.security.identity import NO_CLAIM, Claim, current_caller_key, current_identity
from registry_server.security.limits import Shares
from registry_server.store import FORGET_CHECK, KEEP_CHECK, CheckChange, Conflict, EpochChanged, RedisStore

REPLICA_WAIT_SECONDS: Final = 5.0
"""How long a call waits for this replica to reach a committed revision, and a write retries after conflicts."""

MAX_IN_FLIGHT_WRITES: Final = 5_000
"""Writes that wait, which callers share. Below the limit on calls, so that reads are admitted while Redis hangs."""

_NO_BUDGET: Final = nullcontext()
"""Reservation of a change that has no owner."""

_T = TypeVar("_T")


class Writes:
    """Commits changes; writes of this process to one service run one at a time, in order of arrival."""

    def __init__(
        self,
        store: RedisStore,
        replica: Replica,
        follower: Follower,
        *,
        default_ttl: float,
        reconciler: Reconciler | None = None,
        max_in_flight: int = MAX_IN_FLIGHT_WRITES,
    ) -> None:
        """Start without writes.

        Args:
            store: Store to write to.
            replica: Source of the current state.
            follower: Applies committed changes to the replica.
            default_ttl: Lease duration in seconds of services that do not set one.
            reconciler: Repairs a service that another program changed in the store.
            max_in_flight: Maximum number of writes in flight.
        """
        self._store = store
        self._replica = replica
        self._follower = follower
        self._default_ttl = default_ttl
        self._reconciler = reconciler or Reconciler(store, replica, follower, default_ttl=default_ttl)
        self._places = Shares(max_in_flight)
        self._large_writes = LargeWrites(replica)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def in_flight(self) -> int:
        """Writes that are waiting for another write to the same service or for the store."""
        return self._places.held

    async def change_service(
        self, name: str, attempt: Callable[[Record | None], Awaitable[_T | Conflict | EpochChanged]]
    ) -> _T:
        """Attempt a write until it commits.

        Writes of this process to one service run one at a time, so only another process can cause a conflict.

        Args:
            name: Name of the service.
            attempt: Attempts the write, given this process's record of the service; returns its result or why the
                store refused it. May raise ``ServiceExists``, or an error of ``require_existing``.

        Raises:
            WriteConflict: Other processes kept changing the service.
            StoreUnavailable: Redis did not answer.
            NotReplicated: The write was committed, but too few Redis replicas have confirmed it.
            Overloaded: Too many writes are in flight.
        """
        self.require_loaded()
        caller = current_caller_key()
        self._take_places(caller, 1)
        # Referenced only by the writes that wait for it, so it is freed with the last of them.
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                return await self._attempt_until_committed(name, attempt)
        finally:
            self._places.give_back(caller, 1)

    async def _attempt_until_committed(
        self, name: str, attempt: Callable[[Record | None], Awaitable[_T | Conflict | EpochChanged]]
    ) -> _T:
        caught_up = False
        deadline = asyncio.get_running_loop().time() + REPLICA_WAIT_SECONDS
        while True:
            await self._large_writes.wait_for_turn(name)
            epoch = self._replica.position.epoch
            try:
                outcome = await attempt(self._replica.records.get(name))
            except (ServiceExists, ServiceNotFound, RevisionMismatch, InstanceSuperseded):
                if caught_up:
                    raise
                # The replica may lag by milliseconds: catch up before refusing the write.
                caught_up = True
                await self.catch_up()
                continue
            match outcome:
                case Conflict(newest, stored):
                    await self.wait_applied(newest)
                    if contradicts(self._replica, name, epoch, newest, stored):
                        await self._reconciler.resolve_conflict(name)
                case EpochChanged():
                    await self._wait_consistent(epoch)
                case _:
                    return outcome
            # Limited by time, not by attempts: another process may win many times in a row.
            if asyncio.get_running_loop().time() > deadline:
                raise WriteConflict(name)

    async def put_service(
        self,
        before: Service | None,
        after: Service,
        now: Timestamp,
        *,
        renew: bool,
        claim: Claim,
        check: CheckChange | None = None,
    ) -> Service | Conflict | EpochChanged:
        """Write what a client sent: replace the service, or touch it if neither its content nor its owner changes.

        Args:
            before: The service in this replica; ``None`` if there is none.
            after: The new state in normal form. Equal to ``before`` if the content does not change.
            now: Time of the change.
            renew: Whether to renew the lease.
            claim: Ownership that the caller claims.
            check: As for ``write_service``.
        """
        becomes_owner = claim.exclusive and after.name not in self._replica.owners
        if before is not None and after == before and not becomes_owner:
            # The replica may be stale.
            return await self.touch_service(before, renew=renew, claim=claim, check=check or KEEP_CHECK)
        type_ = normal.update_type(before, after) if before else EVENT_TYPE_SERVICE_REGISTERED
        after = normal.set_change_time(after, now)
        return await self.write_service(before, after, type_, renew=renew, claim=claim, check=check)

    async def write_service(
        self,
        before: Service | None,
        after: Service,
        type_: EventType.ValueType,
        *,
        renew: bool,
        reason: EventReason.ValueType = EVENT_REASON_CLIENT_REQUEST,
        claim: Claim = NO_CLAIM,
        check: CheckChange | None = None,
    ) -> Service | Conflict | EpochChanged:
        """Replace a service (``before`` is ``None`` if there is none) and wait until this replica has the change.

        Args:
            before: The service in this replica.
            after: Its new state.
            type_: Event type.
            renew: Whether to renew the lease.
            reason: Event reason.
            claim: Ownership that the caller claims.
            check: What becomes of the newest probe result; by default it is deleted if it no longer describes the
                service.

        Raises:
            RateLimited: The owner of the service has no budget for changes left.
        """
        if check is None:
            outdated = before is not None and (
                before.endpoint != after.endpoint or before.health != after.health or normal.takes_over(after, before)
            )
            check = FORGET_CHECK if outdated else KEEP_CHECK
        seen = self._replica.position
        with self._reserve_budget(after, reason, claim):
            await self._large_writes.wait_for_turn(after.name)
            outcome = await self._store.writer.write_service(
                after,
                seen=seen,
                expected=before.revision if before else 0,
                type=type_,
                reason=reason,
                ttl=normal.ttl_seconds(after, self._default_ttl),
                renew=renew,
                check=check,
                claim=claim,
            )
            if not isinstance(outcome, int):
                return outcome
            await self._wait_committed(after.name, outcome, after.SerializeToString())
        after.revision = outcome
        return after

    def _reserve_budget(
        self, after: Service, reason: EventReason.ValueType, claim: Claim
    ) -> AbstractContextManager[None]:
        """Reserve a change in the budget of its owner: an agent that makes it, or whose service was probed."""
        if claim.exclusive:
            owner = claim.owner
        elif reason == EVENT_REASON_HEALTH_CHECK:
            owner = self._replica.owners.get(after.name, "")
        else:
            owner = ""
        if not owner:
            return _NO_BUDGET
        size = change_size(self._replica.records.get(after.name), after.ByteSize())
        return self._replica.budgets.reserve(owner, size, claim.max_services)

    async def replace_health(
        self,
        before: Service,
        health: Health,
        now: Timestamp,
        *,
        reason: EventReason.ValueType,
        renew: bool,
        claim: Claim = NO_CLAIM,
    ) -> Service | Conflict | EpochChanged:
        """Replace the health of a service with one of another status; see ``write_service``."""
        after = normal.set_change_time(normal.replace_health(before, health, now), now)
        type_ = EVENT_TYPE_SERVICE_HEALTH_CHANGED
        return await self.write_service(before, after, type_, reason=reason, renew=renew, claim=claim)

    async def touch_service(
        self,
        service: Service,
        *,
        renew: bool,
        claim: Claim = NO_CLAIM,
        confirm: bool = True,
        check: CheckChange = KEEP_CHECK,
    ) -> Service | Conflict | EpochChanged:
        """Rewrite the JSON document of an unchanged service; with ``renew``, renew its lease.

        A client retries after ``NotReplicated`` and, since the service is then unchanged, reaches this method. So it
        waits for Redis replicas like a change, unless ``confirm`` is false.
        """
        outcome = await self._store.writer.touch_service(
            service,
            seen=self._replica.position,
            expected=service.revision,
            ttl=normal.ttl_seconds(service, self._default_ttl),
            renew=renew,
            check=check,
            claim=claim,
            confirm=confirm,
        )
        return service if isinstance(outcome, int) else outcome

    async def delete_service(self, record: Record, claim: Claim = NO_CLAIM) -> Service | Conflict | EpochChanged:
        """Remove a service, wait until this replica has removed it, and return its last state."""
        outcome = await self._store.writer.delete_service(
            record.name,
            seen=self._replica.position,
            expected=record.revision,
            reason=EVENT_REASON_CLIENT_REQUEST,
            claim=claim,
        )
        if not isinstance(outcome, int):
            return outcome
        await self._wait_committed(record.name, outcome, None)
        return record.message()

    async def publish_notice(self, error: str, reason: EventReason.ValueType, *, owner: str = "") -> None:
        """Publish an error of the registry itself to the watchers of all processes; see ``match_event``.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        await self._store.writer.publish_notice(error, seen=self._replica.position, reason=reason, owner=owner)

    async def wait_applied(self, revision: int) -> None:
        """Wait until this replica has applied a committed revision.

        Raises:
            StoreUnavailable: It was not applied in time: this process has lost the store.
        """
        try:
            await self._replica.wait_for_revision(revision, REPLICA_WAIT_SECONDS)
        except RevisionNotReached:
            raise StoreUnavailable(f"the store is at revision {revision}, but this process cannot follow it") from None

    async def _wait_committed(self, name: str, revision: int, wire: bytes | None) -> None:
        """Wait until this replica has applied this process's change: ``wire`` without its revision, or a removal.

        Raises:
            StoreUnavailable: It was not applied in time, or the store lost it and reused its revision.
        """
        await self.wait_applied(revision)
        change, record = self._replica.history.at(revision), self._replica.records.get(name)
        if change is not None:
            record, is_ours = change.after, change.name == name
        else:  # the state was reloaded in the meantime
            is_ours = record is None or record.revision == revision
        # The revision is the last field of a record.
        same = record is None if wire is None else record is not None and record.wire.startswith(wire)
        if not (is_ours and same):
            raise StoreUnavailable("the store was replaced: whether it has the change is not known")

    async def catch_up(self) -> None:
        """Wait until this replica has applied everything that was committed when the call arrived."""
        await self.wait_applied(await self.read_head())

    async def read_head(self) -> int:
        """Return the store's newest revision, after waiting until this process is in the same epoch."""
        known = self._replica.position
        head = await self._store.reader.read_position()
        if head.epoch != known.epoch or head.revision < known.revision:
            await self._wait_consistent(known.epoch)
        return head.revision

    async def _wait_consistent(self, epoch: str) -> None:
        """Wait until the follower has reconciled with a store that is behind this process or in another epoch."""
        if self._replica.position.epoch != epoch:
            return
        self._follower.report_inconsistency("a write found the store in another epoch, or behind")
        try:
            async with asyncio.timeout(REPLICA_WAIT_SECONDS):
                await self._follower.wait_consistent()
        except TimeoutError:
            raise StoreUnavailable("the store was replaced and is being reloaded") from None

    def require_loaded(self) -> None:
        """Refuse the call until the catalog is loaded.

        Raises:
            StoreUnavailable: It is not loaded yet.
        """
        if not self._follower.loaded:
            raise StoreUnavailable("the registry has not reached its store yet")

    def require_capacity(self, count: int = 1) -> None:
        """Refuse ``count`` more writes if they exceed the limit or the caller's share of it.

        Raises:
            Overloaded: Too many writes are in flight.
        """
        caller = current_caller_key()
        self._take_places(caller, count)
        self._places.give_back(caller, count)

    def _take_places(self, caller: Hashable, count: int) -> None:
        if not self._places.take(caller, count):
            limit = self._places.limit
            raise Overloaded("writes", limit, f"{self.in_flight} of at most {limit} writes are waiting for the store")


def require_existing(name: str, record: Record | None, expected_revision: int = 0, *, instance_id: str = "") -> Record:
    """Return the record if it exists at the expected revision and belongs to the expected instance.

    Raises:
        ServiceNotFound: The service is not registered, or the caller does not see it.
        InstanceSuperseded: Its instance is not ``instance_id`` ('' = any).
        RevisionMismatch: Its revision is not ``expected_revision`` (0 = any).
    """
    if record is None or not current_identity.get().sees(record):
        raise ServiceNotFound(name)
    if instance_id and record.instance_id != instance_id:
        raise InstanceSuperseded(name)
    if expected_revision and record.revision != expected_revision:
        raise RevisionMismatch(name, expected_revision, record.revision)
    return record
