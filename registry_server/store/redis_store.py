"""``RedisStore``: every question to Redis and every change of it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import ConfigurationError, LimitExceeded, NotReplicated, PermissionDenied, StoreUnavailable
from registry_server.instrumentation.tracing import Tracer
from registry_server.model.document import encode_document_prefix
from registry_server.security.identity import NO_CLAIM, Claim, of_another
from registry_server.store.commands import Commands, Confirmation
from registry_server.store.connecting import Connections
from registry_server.store.counters import CommitOutcome, Expiry, Memory, PoolStats, StoreCounters
from registry_server.store.failures import translated
from registry_server.store.groups import CommitGroups
from registry_server.store.keys import Keys
from registry_server.store.limits import DEFAULT_LIMITS, StoreLimits
from registry_server.store.lua import Scripts
from registry_server.store.repairs import Repairs
from registry_server.store.tls import NO_TLS_FILES, RedisTls
from registry_server.store.values import (
    Conflict,
    EpochChanged,
    Position,
    ProbeResult,
    StoredEvent,
    Sweep,
    Unconfirmed,
    stored_event,
)

OLDEST_REDIS: Final = (6, 2)  # SET with PXAT


class RedisStore:
    """The registry's data in Redis.

    Methods raise ``StoreUnavailable`` while Redis does not answer; a change that failed so may have been made.
    """

    def __init__(
        self,
        url: str,
        *,
        key_prefix: str = "ossa:services",
        timeout: float = 2.0,
        events_max_length: int = 10_000,
        sweep_interval: float = 1.0,
        tls: RedisTls = NO_TLS_FILES,
        tracer: Tracer | None = None,
        wait_replicas: int = 0,
        wait_timeout: float = 1.0,
        limits: StoreLimits = DEFAULT_LIMITS,
    ) -> None:
        """Prepares the clients; nothing is connected yet.

        Args:
            url: The setting ``redis.url``, but not ``embedded``.
            key_prefix: See ``Keys.under``.
            timeout: Seconds that one answer of Redis may take.
            events_max_length: How many events the stream keeps at the least.
            sweep_interval: Seconds between two sweeps.
            tls: Files for ``rediss://``.
            tracer: Times scripts that calls wait for, if calls are traced.
            wait_replicas: How many replicas must have a change before it is answered.
            wait_timeout: Seconds that this may take; less than ``timeout``.
            limits: Batch sizes, page sizes and waiting times.

        Raises:
            ConfigurationError: The URL is none that can be connected to, or the files are no good.
        """
        self.keys = Keys.under(key_prefix)
        self._script_keys = (
            self.keys.revision,
            self.keys.epoch,
            self.keys.records,
            self.keys.leases,
            self.keys.ttls,
            self.keys.events,
            self.keys.checks,
            self.keys.sweep,
            self.keys.bare,
            self.keys.owners,
            self.keys.owned,
        )
        self._events_max_length = events_max_length
        self._limits = limits
        self._sweep_ms = round(sweep_interval * 1000)
        self._connections = Connections(url, timeout=timeout, key=self.keys.revision, tls=tls)
        self._client = self._connections.client()
        # Reads of its own, since a blocking read holds its connection.
        self._tail = self._connections.client(patience=limits.tail_block_seconds, on_open=self._tail_opened)
        self._tail_opens = self._tail_trusted = 0
        self.counters = StoreCounters()
        """What was counted so far."""
        scripts = Scripts()
        self._commands = Commands(self._client, scripts, self.counters, tracer=tracer, limits=limits)
        self._wait_replicas = wait_replicas
        self._senders = [self._commands]
        self._commits = self._unconfirmed = self._groups(self._commands)
        if wait_replicas:
            # With a sender of their own, so that heartbeats and reads do not wait for replicas with them.
            confirmation = Confirmation(wait_replicas, round(wait_timeout * 1000))
            confirmed = Commands(
                self._client, scripts, self.counters, confirmation=confirmation, tracer=tracer, limits=limits
            )
            self._senders.append(confirmed)
            self._commits = self._groups(confirmed)
        self.repairs = Repairs(
            self._commands,
            self._senders[-1],
            self._tail,
            self.keys,
            self._script_keys,
            events_max_length=events_max_length,
            limits=limits,
        )
        """For a store that has lost what was in it."""

    @property
    def waiting_commands(self) -> int:
        """How many commands wait for their round trip."""
        return sum(sender.waiting for sender in self._all_senders())

    def pools(self) -> dict[str, PoolStats]:
        """Connections by what they are for: commands, and the follower's reading."""
        return {"commands": _pool(self._client), "follower": _pool(self._tail)}

    async def look(self) -> None:
        """Reads what Redis tells of its memory and its disk into ``counters``.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        with translated():
            try:
                info = {**await self._client.info("memory"), **await self._client.info("persistence")}
            except NoPermissionError:
                self.counters.memory = None
                return
        saves = info.get("rdb_last_bgsave_status") == "ok" and info.get("aof_last_write_status", "ok") == "ok"
        self.counters.memory = Memory(int(info["used_memory"]), int(info.get("maxmemory", 0)), saves=saves)

    async def open(self) -> None:
        """Checks that this Redis can serve and makes the scripts known to it.

        Raises:
            ConfigurationError: Redis is too old, or does not let us wait for replicas.
            StoreUnavailable: Redis does not answer.
        """
        with translated():
            info = await self._client.info("server")
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
            raise ConfigurationError(f"redis.url: Redis {version} is too old; 6.2 or newer is needed")
        if self._wait_replicas:
            with translated():
                try:
                    await self._client.wait(0, 1)
                except NoPermissionError as error:  # else each write would be told not to be replicated
                    raise ConfigurationError(f"redis.wait_replicas: Redis refuses WAIT: {error}") from error
        await self._commands.load_scripts()
        await self._trust_tail()

    async def reconnect(self) -> None:
        """Drops connections that were made before Redis went away, so that no write is the first to notice.

        Raises:
            StoreUnavailable: Redis does not answer yet.
        """
        for client in (self._client, self._tail):
            await client.connection_pool.disconnect(inuse_connections=False)
        await self._commands.load_scripts()
        await self._trust_tail()

    async def watch_primary(self) -> None:
        """Watches for ever whether another Redis takes the writes, and leaves the old one; cancel it to stop."""
        await self._connections.watch()

    async def close(self) -> None:
        """Lets commands that are under way finish and closes all connections."""
        for sender in self._all_senders():
            await sender.close()
        await self._client.aclose()
        await self._tail.aclose()
        await self._connections.close()

    def _groups(self, commands: Commands) -> CommitGroups:
        return CommitGroups(commands, self._script_keys, self._events_max_length, limits=self._limits)

    def _all_senders(self) -> list[CommitGroups | Commands]:
        return [*{self._commits, self._unconfirmed}, *self._senders]  # groups first: they give to the others

    def _tail_opened(self) -> None:
        self._tail_opens += 1

    async def _trust_tail(self) -> None:
        with translated():
            await self._tail.ping()
        self._tail_trusted = self._tail_opens

    # Reading: the follower's side.

    async def position(self) -> Position:
        """Reads the newest position; without an epoch if the store was emptied or is being repaired."""
        epoch, revision = await self._commands.run("MGET", self.keys.epoch, self.keys.revision)
        return Position((epoch or b"").decode(), int(revision or 0))

    async def head(self, known: Position | None = None, *, rewritten: bool = False) -> Position:
        """Reads the newest position; begins a new epoch if history cannot go on, unless a process repairs it.

        Args:
            known: A position that was there: if the store is behind it, its history ends.
            rewritten: The revisions up to ``known`` are not the changes that they were: its history ends in any case.
        """
        epoch, revision = await self._commands.script(
            "head",
            (*self._script_keys, self.keys.repair),
            secrets.token_hex(8),
            known.epoch if known else "",
            known.revision if known else 0,
            int(rewritten),
        )
        return Position(epoch.decode(), revision)

    async def records(self) -> AsyncIterator[list[bytes]]:
        """Reads all records, serialised, in pages. What changes meanwhile may be in or not; a name may come twice."""
        cursor = 0
        while True:
            with translated():
                answer: Any = await self._tail.hscan(self.keys.records, cursor, count=self._limits.page)
            cursor, page = answer
            yield list(page.values())
            if cursor == 0:
                return

    async def events(self, until: int) -> AsyncIterator[list[StoredEvent]]:
        """Reads the events that the stream holds up to a revision, in pages, oldest first."""
        start = "-"
        while True:
            with translated():
                page: Any = await self._tail.xrange(self.keys.events, start, f"{until}-0", count=self._limits.page)
            if not page:
                return
            yield [stored_event(entry_id, fields) for entry_id, fields in page]
            start = f"({page[-1][0].decode()}"

    async def event(self, revision: int) -> StoredEvent | None:
        """Reads the event of a revision, if the stream still holds it."""
        with translated():
            page: Any = await self._tail.xrange(self.keys.events, f"{revision}-0", f"{revision}-0")
        return stored_event(*page[0]) if page else None

    async def tail(self, after: int) -> list[StoredEvent]:
        """Waits for events after a revision; empty if none came within ``limits.tail_block_seconds``.

        Raises:
            StoreUnavailable: Also if they come from another connection than those before: the server behind it may
                have another past, so ``reconnect``, and look.
        """
        limits = self._limits
        with translated():
            answer: Any = await self._tail.xread(
                {self.keys.events: f"{after}-0"}, count=limits.tail_page, block=round(limits.tail_block_seconds * 1000)
            )
        if self._tail_opens != self._tail_trusted:
            raise StoreUnavailable("the connection to the store was lost")
        return [stored_event(entry_id, fields) for _, entries in answer for entry_id, fields in entries]

    # Writing.

    async def put(
        self,
        service: Service,
        *,
        epoch: str,
        expected: int,
        type: EventType.ValueType,  # noqa: A002 - the field's name in the contract
        reason: EventReason.ValueType,
        ttl: float,
        renew: bool,
        forget_check: bool = False,
        claim: Claim = NO_CLAIM,
        seen: int = 0,
    ) -> int | Conflict | EpochChanged:
        """Commits a service as it shall be, and waits for as many replicas to have it as are wanted.

        Args:
            service: The new state; its ``revision`` is ignored.
            epoch: Epoch that the caller's knowledge is of.
            expected: Revision of the service that is replaced; 0 = it must not exist.
            type: Event that the change is.
            reason: Why it happens.
            ttl: Seconds that the lease lasts; 0 = permanent.
            renew: Begin a new lease; else the lease goes on, unless ``ttl`` differs from before.
            forget_check: Drop the newest check, which was of another endpoint.
            claim: On whose account.
            seen: Newest revision of that epoch that the caller has applied: a store that is behind it is refused as
                one in another epoch.

        Returns:
            The revision of the change, or why there is none.

        Raises:
            PermissionDenied: The service is of another owner.
            LimitExceeded: The owner has as many services as it may.
            NotReplicated: The change was made, but too few replicas have it.
        """
        service.ClearField("revision")
        args = ("put", type, reason, service.SerializeToString(), encode_document_prefix(service))
        return await self._commit(
            epoch, service.name, expected, args, ttl, renew=renew, forget_check=forget_check, claim=claim, seen=seen
        )

    async def touch(
        self,
        service: Service,
        *,
        epoch: str,
        expected: int,
        ttl: float,
        renew: bool,
        claim: Claim = NO_CLAIM,
        confirm: bool = True,
        seen: int = 0,
    ) -> int | Conflict | EpochChanged:
        """Writes the document again and, with ``renew``, renews the lease of a service that stays as it is.

        With ``confirm`` it waits for replicas as ``put`` does: they then have the service as it is, too.
        """
        args = ("touch", 0, 0, b"", encode_document_prefix(service))
        return await self._commit(
            epoch,
            service.name,
            expected,
            args,
            ttl,
            renew=renew,
            forget_check=False,
            claim=claim,
            confirm=confirm,
            seen=seen,
        )

    async def delete(
        self,
        name: str,
        *,
        epoch: str,
        expected: int,
        reason: EventReason.ValueType,
        claim: Claim = NO_CLAIM,
        seen: int = 0,
    ) -> int | Conflict | EpochChanged:
        """Removes a service; arguments, result and errors as for ``put``."""
        args = ("delete", EventType.EVENT_TYPE_SERVICE_UNREGISTERED, reason, b"", b"")
        return await self._commit(
            epoch, name, expected, args, 0, renew=False, forget_check=False, claim=claim, seen=seen
        )

    async def owner(self, name: str) -> str | None:
        """Tells who owns a service; ``None``: nobody."""
        owner = await self._commands.run("HGET", self.keys.owners, name)
        return None if owner is None else str(owner.decode())

    async def renew(self, names: Sequence[str], claim: Claim = NO_CLAIM) -> list[str]:
        """Renews leases for their full length; gives the names without a lease, in the order given.

        Raises:
            PermissionDenied: One is of another owner.
        """
        owner = claim.owner if claim.exclusive else ""
        size = self._limits.renew_batch
        batches = [names[i : i + size] for i in range(0, len(names), size)]
        answers = await asyncio.gather(
            *(
                self._commands.script("renew", self._script_keys, self.keys.document_prefix, owner, *batch)
                for batch in batches
            )
        )
        for answer in answers:
            if answer and answer[0] == b"owner":
                raise PermissionDenied(of_another(answer[1].decode()))
        unknown = [batch[i] for batch, missing in zip(batches, answers, strict=True) for i in missing]
        self.counters.unknown += len(unknown)
        self.counters.renewed += len(names) - len(unknown)
        return unknown

    async def sweep(self, reason: EventReason.ValueType, seen: Position | None = None) -> Sweep:
        """Removes a batch of services whose lease has run out; see ``sweep.lua`` for leases after an outage.

        Nothing happens unless the store goes on from what the caller has ``seen``, if that is given.
        """
        answer = await self._commands.script(
            "sweep",
            self._script_keys,
            self.keys.document_prefix,
            self._sweep_ms,
            self._limits.sweep_batch,
            EventType.EVENT_TYPE_SERVICE_UNREGISTERED,
            reason,
            self._events_max_length,
            *(seen or ("", 0)),
        )
        if answer is None:
            return Sweep([], None, 0.0, [])
        removed, next_in, moved, bare, leases = answer
        expiry: Expiry = "cleanup" if reason == EventReason.EVENT_REASON_CLEANUP else "lease_expired"
        self.counters.expired[expiry] += len(removed)
        self.counters.leases = leases
        return Sweep(_texts(removed), None if next_in < 0 else next_in / 1000, moved / 1000, _texts(bare))

    async def write_check(self, name: str, health: bytes, *, expected: int) -> Conflict | None:
        """Keeps the newest check of a service that is at the ``expected`` revision: soft data, no event."""
        answer = await self._commands.script("check", self._script_keys, name, health, expected)
        return Conflict(answer[1]) if answer[0] == b"conflict" else None

    async def write_checks(self, results: Sequence[ProbeResult]) -> None:
        """Keeps the newest checks of services and renews leases: soft data, no event.

        Results of services that are no longer registered are dropped.
        """
        size = self._limits.checks_batch
        batches = [results[i : i + size] for i in range(0, len(results), size)]
        prefix = self.keys.document_prefix
        await asyncio.gather(
            *(
                self._commands.script(
                    "checks",
                    self._script_keys,
                    prefix,
                    *(value for name, health, renew in batch for value in (name, health, int(renew))),
                )
                for batch in batches
            )
        )

    async def read_check(self, name: str) -> tuple[bytes | None, int | None]:
        """Reads the newest check of a service and the end of its lease.

        Returns:
            Serialised ``Health`` or ``None``; ms since the epoch by the clock of Redis, ``None`` if it never ends.
        """
        check, deadline = await asyncio.gather(
            self._commands.run("HGET", self.keys.checks, name), self._commands.run("ZSCORE", self.keys.leases, name)
        )
        ends = None if deadline is None else float(deadline)
        return check, None if ends is None or ends == float("inf") else int(ends)

    async def notice(
        self, error: str, *, epoch: str, reason: EventReason.ValueType, seen: int = 0
    ) -> int | EpochChanged:
        """Commits an event of no service: something is wrong with the registry itself; gives its revision."""
        answer = await self._commands.script(
            "notice",
            self._script_keys,
            epoch,
            EventType.EVENT_TYPE_REGISTRY_ERROR,
            reason,
            error,
            self._events_max_length,
            seen,
        )
        return int(answer[1]) if answer[0] == b"ok" else EpochChanged()

    async def stay_member(self, member: str, period: float) -> list[str]:
        """Says that a process lives; gives all that do, those that said so within ``period`` seconds."""
        return _texts(await self._members(member, period, "stay"))

    async def leave_members(self, member: str, period: float) -> None:
        """Takes a process off the list of those that live."""
        await self._members(member, period, "leave")

    async def _members(self, member: str, period: float, op: str) -> Any:
        keys = (*self._script_keys, self.keys.members)
        return await self._commands.script("members", keys, member, round(period * 1000), op)

    async def _commit(
        self,
        epoch: str,
        name: str,
        expected: int,
        args: tuple[Any, ...],
        ttl: float,
        *,
        renew: bool,
        forget_check: bool,
        claim: Claim,
        confirm: bool = True,
        seen: int,
    ) -> int | Conflict | EpochChanged:
        op, type_, reason, record, document = args
        commits = self._commits if confirm else self._unconfirmed
        confirmed = self._wait_replicas
        outcome: CommitOutcome = "failed"
        try:
            answer = await commits.commit(
                self.keys.document_prefix + name,
                epoch,
                name,
                expected,
                op,
                type_,
                reason,
                record,
                document,
                round(ttl * 1000),
                int(renew),
                int(forget_check),
                claim.owner,
                int(claim.exclusive),
                claim.most,
                seen,
            )
            if isinstance(answer, Unconfirmed):
                answer, confirmed = answer
            match answer[0]:
                case b"ok":
                    outcome = "committed"
                    if confirmed < self._wait_replicas:
                        raise NotReplicated(int(answer[1]), confirmed, self._wait_replicas)
                    return int(answer[1])
                case b"conflict":
                    outcome = "conflict"
                    return Conflict(answer[1])
                case b"owner":
                    outcome = "refused"
                    raise PermissionDenied(of_another(name))
                case b"limit":
                    outcome = "refused"
                    raise LimitExceeded(
                        "services", claim.most, f"this identity may own {claim.most} services, and does"
                    )
                case _:
                    outcome = "epoch_changed"
                    return EpochChanged()
        finally:
            self.counters.commits[outcome] += 1


def _pool(client: Redis) -> PoolStats:
    # redis-py tells of them by its own metrics of OpenTelemetry alone.
    pool = client.connection_pool
    in_use, idle = pool._in_use_connections, pool._available_connections  # noqa: SLF001
    return PoolStats(len(in_use), len(idle), pool.max_connections)


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in values]
