"""``StoreWriter``: changes of services, leases, probe results, notices and members in Redis."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import LimitExceeded, NotReplicated, PermissionDenied
from registry_server.model.document import encode_document_prefix
from registry_server.security.identity import NO_CLAIM, Claim, owned_by_another
from registry_server.store.commands import Commands
from registry_server.store.counters import CommitOutcome, Expiry, StoreCounters
from registry_server.store.groups import Commit, CommitGroups
from registry_server.store.keys import Keys
from registry_server.store.limits import StoreLimits
from registry_server.store.renewals import Beat, Renewals
from registry_server.store.retention import EventRetention
from registry_server.store.values import (
    KEEP_CHECK,
    CheckChange,
    Conflict,
    EpochChanged,
    Position,
    ProbeResult,
    StoreSizes,
    SweepResult,
    Unconfirmed,
)


class StoreWriter:
    """Commits changes and keeps leases.

    Methods raise ``StoreUnavailable`` if Redis does not answer; the change may have been made nevertheless.
    """

    def __init__(
        self,
        commands: Commands,
        commits: CommitGroups,
        unconfirmed_commits: CommitGroups,
        renewals: Renewals,
        keys: Keys,
        counters: StoreCounters,
        *,
        retention: EventRetention,
        sweep_interval: float,
        wait_replicas: int,
        limits: StoreLimits,
    ) -> None:
        """Create a writer.

        Args:
            commands: Pipeline for everything except commits.
            commits: Groups of commits that wait for replicas, if that is configured.
            unconfirmed_commits: Groups of commits that do not wait for replicas.
            renewals: Groups of heartbeats.
            keys: The registry's keys.
            counters: Counters of commits and leases.
            retention: Number of events that the stream keeps.
            sweep_interval: Seconds between two sweeps.
            wait_replicas: Number of replicas that must acknowledge a change.
            limits: Batch sizes.
        """
        self._commands = commands
        self._commits = commits
        self._unconfirmed_commits = unconfirmed_commits
        self._renewals = renewals
        self._keys = keys
        self._counters = counters
        self._retention = retention
        self._sweep_ms = round(sweep_interval * 1000)
        self._wait_replicas = wait_replicas
        self._limits = limits

    async def write_service(
        self,
        service: Service,
        *,
        seen: Position,
        expected: int,
        type: EventType.ValueType,  # noqa: A002 - the field's name in the contract
        reason: EventReason.ValueType,
        ttl: float,
        renew: bool,
        check: CheckChange = KEEP_CHECK,
        claim: Claim = NO_CLAIM,
    ) -> int | Conflict | EpochChanged:
        """Commit a service's new state and wait for the configured number of replicas.

        Args:
            service: The new state; its ``revision`` is cleared.
            seen: Position that the caller has applied. A store that is in another epoch or behind it refuses the
                change.
            expected: Revision of the service to replace; 0 = the service must not exist.
            type: Event type of the change.
            reason: Event reason of the change.
            ttl: Length of the lease in seconds; 0 = permanent.
            renew: Start a new lease; otherwise the lease continues unless ``ttl`` changes.
            check: What becomes of the newest probe result.
            claim: Identity on whose behalf the service is written.

        Returns:
            The revision of the change, or the reason for refusing it.

        Raises:
            PermissionDenied: Another identity owns the service.
            LimitExceeded: The owner has reached its service quota.
            NotReplicated: The change was made, but too few replicas acknowledged it.
        """
        service.ClearField("revision")
        commit = Commit(
            *seen,
            service.name,
            expected,
            "put",
            owner=claim.owner,
            exclusive=int(claim.exclusive),
            max_services=claim.max_services,
            event_type=type,
            event_reason=reason,
            record=service.SerializeToString(),
            document=encode_document_prefix(service),
            ttl_ms=round(ttl * 1000),
            renew_lease=int(renew),
            check=check.new,
            seen_check=check.seen,
        )
        return await self._commit(commit, self._commits)

    def send_commits(self) -> None:
        """Send the commits that wait for further ones, because their caller submits no more."""
        self._commits.send_now()

    async def touch_service(
        self,
        service: Service,
        *,
        seen: Position,
        expected: int,
        ttl: float,
        renew: bool,
        check: CheckChange = KEEP_CHECK,
        claim: Claim = NO_CLAIM,
        confirm: bool = True,
    ) -> int | Conflict | EpochChanged:
        """Write an unchanged service's document again and, with ``renew``, renew its lease.

        With ``confirm``, wait for replicas as ``write_service`` does: they then hold the service's state, too.
        """
        commit = Commit(
            *seen,
            service.name,
            expected,
            "touch",
            owner=claim.owner,
            exclusive=int(claim.exclusive),
            max_services=claim.max_services,
            document=encode_document_prefix(service),
            ttl_ms=round(ttl * 1000),
            renew_lease=int(renew),
            check=check.new,
            seen_check=check.seen,
        )
        return await self._commit(commit, self._commits if confirm else self._unconfirmed_commits)

    async def delete_service(
        self, name: str, *, seen: Position, expected: int, reason: EventReason.ValueType, claim: Claim = NO_CLAIM
    ) -> int | Conflict | EpochChanged:
        """Delete a service; see ``write_service`` for arguments, result and errors."""
        commit = Commit(
            *seen,
            name,
            expected,
            "delete",
            owner=claim.owner,
            exclusive=int(claim.exclusive),
            max_services=claim.max_services,
            event_type=EventType.EVENT_TYPE_SERVICE_UNREGISTERED,
            event_reason=reason,
        )
        return await self._commit(commit, self._commits)

    async def renew_leases(self, names: Sequence[str], claim: Claim = NO_CLAIM, *, may_wait: bool = False) -> list[str]:
        """Renew leases for their full length.

        Args:
            names: Names of the services.
            claim: Identity on whose behalf the leases are renewed.
            may_wait: Whether to wait for further heartbeats, which then share the round trip.

        Returns:
            The unknown names in the order of ``names``.

        Raises:
            PermissionDenied: Another identity owns one of the services; no lease is renewed.
        """
        owner = claim.owner if claim.exclusive else ""
        size = self._limits.renew_batch
        batches = [names[i : i + size] for i in range(0, len(names), size)]
        if owner and len(batches) > 1:  # the script checks each batch separately
            await self._require_no_other_owner(batches, owner)
        beats = [self._renewals.submit_beat(Beat(owner, batch), may_wait=may_wait) for batch in batches]
        # A task for a single batch, as in most heartbeats, would take 10 µs.
        answers = [await beats[0]] if len(beats) == 1 else await asyncio.gather(*beats)
        for answer in answers:
            if answer and answer[0] == b"owner":
                raise PermissionDenied(owned_by_another(answer[1].decode()))
        unknown = [batch[i] for batch, missing in zip(batches, answers, strict=True) for i in missing]
        self._counters.unknown_leases += len(unknown)
        self._counters.renewed_leases += len(names) - len(unknown)
        return unknown

    async def _require_no_other_owner(self, batches: Iterable[Sequence[str]], owner: str) -> None:
        commands = (self._commands.run_command("HMGET", self._keys.owners, *batch) for batch in batches)
        for batch, owners in zip(batches, await asyncio.gather(*commands), strict=True):
            for name, other in zip(batch, owners, strict=True):
                if other is not None and other.decode() != owner:
                    raise PermissionDenied(owned_by_another(name))

    async def sweep_leases(self, reason: EventReason.ValueType, applied: Position | None = None) -> SweepResult:
        """Remove a batch of services whose leases have expired; see ``sweep.lua`` for leases after an outage.

        Args:
            reason: Event reason of the removals.
            applied: Position of the caller's replica: a store that is in another epoch or behind it is not swept.
        """
        answer = await self._commands.run_script(
            "sweep",
            self._keys.document_prefix,
            self._sweep_ms,
            self._limits.sweep_batch,
            EventType.EVENT_TYPE_SERVICE_UNREGISTERED,
            reason,
            self._retention.max_length,
            *(applied or ("", 0)),
        )
        if answer is None:
            return SweepResult([], None, 0.0, [])
        removed, next_expiry_ms, shift_ms, missing_documents, active_leases, sizes = answer
        expiry: Expiry = "cleanup" if reason == EventReason.EVENT_REASON_CLEANUP else "lease_expired"
        self._counters.expired_services[expiry] += len(removed)
        self._counters.active_leases = active_leases
        return SweepResult(
            _decode_all(removed),
            None if next_expiry_ms < 0 else next_expiry_ms / 1000,
            shift_ms / 1000,
            _decode_all(missing_documents),
            StoreSizes(*sizes),
        )

    async def write_check(
        self, name: str, health: bytes, *, expected: int, seen: bytes | Literal["*"] = "*"
    ) -> Conflict | None:
        """Store the newest probe result of a service at revision ``expected``, without an event.

        ``seen`` is the result that the caller has read and replaces, empty = none; ``*`` = any.
        """
        answer = await self._commands.run_script("check", name, health, expected, seen)
        return Conflict(*answer[1:]) if answer[0] == b"conflict" else None

    async def write_checks(self, results: Sequence[ProbeResult]) -> None:
        """Store the newest probe results and renew leases, without events.

        Results of services that are no longer registered are dropped. An empty result only renews the lease.
        """
        size = self._limits.checks_batch
        batches = [results[i : i + size] for i in range(0, len(results), size)]
        prefix = self._keys.document_prefix
        await asyncio.gather(
            *(
                self._commands.run_script(
                    "checks",
                    prefix,
                    *(value for name, health, renew in batch for value in (name, health, int(renew))),
                )
                for batch in batches
            )
        )

    async def publish_notice(
        self, error: str, *, seen: Position, reason: EventReason.ValueType, owner: str = ""
    ) -> int | EpochChanged:
        """Commit an event about an error of the registry itself and return its revision.

        Args:
            error: Text of the error.
            seen: Position of the replica.
            reason: Reason of the event.
            owner: Owner of the services that it is about; empty = it is not about those of one owner.
        """
        answer = await self._commands.run_script(
            "notice",
            *seen,
            EventType.EVENT_TYPE_REGISTRY_ERROR,
            reason,
            error,
            self._retention.max_length,
            owner,
        )
        return int(answer[1]) if answer[0] == b"ok" else EpochChanged()

    async def announce_member(self, member: str, period: float) -> list[str]:
        """Record that a process is alive; return all members announced within the last ``period`` seconds."""
        return _decode_all(await self._update_members(member, period, "stay"))

    async def remove_member(self, member: str, period: float) -> None:
        """Remove a process from the members."""
        await self._update_members(member, period, "leave")

    async def exchange_loads(
        self, after: str, process: str, loads: bytes, kept_ms: int, max_entries: int
    ) -> tuple[int, list[tuple[bytes, list[bytes]]]]:
        """Share loads of services with the other processes.

        Args:
            after: Id of the newest entry that the caller has read.
            process: Id of this process.
            loads: Loads to add; empty = none.
            kept_ms: Milliseconds for which entries are kept.
            max_entries: Maximum number of entries to return.

        Returns:
            Milliseconds by the clock of Redis, and the entries: id, then process and loads, or
            nothing if this process has added it.
        """
        keys, args = (self._keys.loads,), (after, process, kept_ms, max_entries, loads)
        now_ms, entries = await self._commands.run_script("loads", *args, keys=keys)
        return now_ms, entries

    async def _update_members(self, member: str, period: float, operation: str) -> Any:
        keys = (self._keys.members,)
        return await self._commands.run_script("members", member, round(period * 1000), operation, keys=keys)

    async def _commit(self, commit: Commit, groups: CommitGroups) -> int | Conflict | EpochChanged:
        confirmed = self._wait_replicas
        outcome: CommitOutcome = "failed"
        try:
            answer = await groups.submit_commit(commit)
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
                    return Conflict(*answer[1:])
                case b"owner":
                    outcome = "refused"
                    raise PermissionDenied(owned_by_another(commit.name))
                case b"limit":
                    outcome = "refused"
                    limit = commit.max_services
                    setting = "limits.services_per_owner, or limits in the policy"
                    reason = f"service quota of {limit} reached ({setting})"
                    raise LimitExceeded("services", limit, reason)
                case _:
                    outcome = "epoch_changed"
                    return EpochChanged()
        finally:
            self._counters.commits[outcome] += 1


def _decode_all(values: Iterable[bytes]) -> list[str]:
    # Another program may have stored a name that is not UTF-8: it must not hide the others.
    return [value.decode(errors="replace") for value in values]
