"""``Heartbeats``: renews leases on behalf of the instances that hold them."""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from ossa.registry.v1.registry_service_pb2 import Lease
from ossa_common.violations import MAX_VIOLATIONS, Violation
from registry_server.catalog import Loads, Replica
from registry_server.errors import InstanceSuperseded, RegistryError, ServiceNotFound
from registry_server.health import HealthReports
from registry_server.instrumentation.audit import Audit, batch_log_lines
from registry_server.model import requests
from registry_server.registry.claims import claim_on, is_hidden
from registry_server.replication import Writes
from registry_server.security.identity import NO_CLAIM, Claim, current_identity
from registry_server.store import MAX_COMMITS_PER_GROUP, RedisStore

_NAMES_PER_TURN: Final = 500
"""Names whose patterns are checked, or leases that are read, in one turn of the event loop: 5 ms for an agent with
twenty patterns."""


class Renewal(NamedTuple):
    """The result of a heartbeat; each name occurs once."""

    renewed: int
    """Number of renewed leases."""
    unknown: list[str]
    """Names that are not registered, or that the caller does not see, in the order of the request."""
    superseded: list[str]
    """Names that belong to another instance than the one in their lease."""


class _Held(NamedTuple):
    """A ``Lease`` of a request; reading it once takes less time than each of its fields several times."""

    name: str
    instance_id: str
    draining: bool | None
    load: tuple[int, int] | None
    """Calls in flight, and capacity."""


def _held(lease: Lease) -> _Held:
    load = lease.load if lease.HasField("load") else None
    return _Held(
        lease.name,
        lease.instance_id,
        lease.draining if lease.HasField("draining") else None,
        load and (load.in_flight, load.capacity),
    )


async def _read(leases: Sequence[Lease], violations: list[Violation]) -> list[_Held]:
    """Check and read leases.

    Args:
        leases: Leases of a request.
        violations: Violations in the rest of the request.

    Raises:
        InvalidRequest: The request is not valid.
    """
    held: list[_Held] = []
    for start in range(0, len(leases), _NAMES_PER_TURN):
        if start:
            await asyncio.sleep(0)
        part = leases[start : start + _NAMES_PER_TURN]
        violations += requests.lease_violations(part, start)
        if len(violations) > MAX_VIOLATIONS:
            break
        held += map(_held, part)
    requests.raise_if_invalid(violations)
    return held


class Heartbeats:
    """Renews leases, and commits ``draining`` if it changes.

    The record of a service names the instance that holds its lease. This process compares its copy of the record, and
    catches up before it refuses a lease. A copy that is milliseconds old may therefore renew the lease for an instance
    that was just superseded, but the lease of the registered instance is never refused.
    """

    def __init__(
        self, *, store: RedisStore, replica: Replica, loads: Loads, writes: Writes, reports: HealthReports, audit: Audit
    ) -> None:
        self._store = store
        self._replica = replica
        self._loads = loads
        self._writes = writes
        self._reports = reports
        self._audit = audit

    async def renew(self, names: Sequence[str], leases: Sequence[Lease], *, may_wait: bool) -> Renewal:
        """Renew leases; see ``ServiceRegistry.heartbeat``."""
        held = await _read(leases, requests.name_violations(names, leases))
        self._writes.require_loaded()
        distinct = list(dict.fromkeys((*names, *(lease.name for lease in held))))
        requested, (claim, hidden) = distinct, await self._check_names(distinct)
        if hidden:
            names = [name for name in names if name not in hidden]
            held = [lease for lease in held if lease.name not in hidden]
            distinct = [name for name in distinct if name not in hidden]
        superseded: dict[str, None] = {}
        if not all(map(self._is_registered, held)):
            await self._writes.catch_up()
            held, superseded = self._split(held)
            distinct = list(dict.fromkeys((*names, *(lease.name for lease in held))))
        unknown = await self._store.writer.renew_leases(distinct, claim, may_wait=may_wait)
        if any(name in self._replica.records for name in unknown):
            # They expired a moment ago, or the store lost them and will be repaired: catch up before answering.
            await self._writes.catch_up()
            unknown = await self._store.writer.renew_leases(unknown, claim)
        renewed = len(distinct) - len(unknown)
        for start in range(0, len(held), _NAMES_PER_TURN):
            if start:
                await asyncio.sleep(0)
            part = held[start : start + _NAMES_PER_TURN]
            self._loads.add_reports(
                [(lease.name, lease.instance_id, *lease.load) for lease in part if lease.load is not None]
            )
        # The last lease of a name decides: each commit costs as much as an update of the service.
        wanted = {lease.name: lease for lease in held if lease.draining is not None}
        changed = [lease for lease in wanted.values() if self._changes(lease)]
        for name, error in await self._set_draining(changed, claim) if changed else ():
            match error:  # another process changed the service in between
                case InstanceSuperseded():
                    superseded[name] = None
                case ServiceNotFound():
                    unknown.append(name)
                case _:
                    raise error
            renewed -= 1
        if hidden:
            hidden.update(unknown)
            unknown = [name for name in requested if name in hidden]
        self._store.counters.superseded_leases += len(superseded)
        return Renewal(renewed, unknown, list(superseded))

    async def _check_names(self, names: Sequence[str]) -> tuple[Claim, set[str]]:
        """Return the ownership under which the caller renews leases, and the names that do not exist for it.

        Raises:
            PermissionDenied: The caller may not renew one of the leases.
        """
        claim, hidden, restricted = NO_CLAIM, set[str](), current_identity.get().visibility is not None
        for start in range(0, len(names), _NAMES_PER_TURN):
            if start:
                await asyncio.sleep(0)
            part = names[start : start + _NAMES_PER_TURN]
            if restricted:
                hidden.update(name for name in part if is_hidden(name, self._replica.records))
                part = [name for name in part if name not in hidden]
            claim = claim_on(*part)
        return claim, hidden

    def _is_registered(self, lease: _Held) -> bool:
        """Return whether a lease may be renewed, as far as this process knows."""
        if not lease.instance_id:
            return True
        record = self._replica.records.get(lease.name)
        return record is not None and record.instance_id == lease.instance_id

    def _split(self, leases: Sequence[_Held]) -> tuple[list[_Held], dict[str, None]]:
        """Return the leases to renew, and the names of those that belong to another instance."""
        held: list[_Held] = []
        superseded: dict[str, None] = {}
        for lease in leases:
            if self._is_registered(lease) or lease.name not in self._replica.records:
                held.append(lease)
            else:
                superseded[lease.name] = None
        return held, superseded

    def _changes(self, lease: _Held) -> bool:
        """Return whether a lease changes ``draining`` of a registered service."""
        record = self._replica.records.get(lease.name)
        return record is not None and record.draining != lease.draining

    async def _set_draining(self, leases: Sequence[_Held], claim: Claim) -> list[tuple[str, RegistryError]]:
        """Commit ``draining`` of leases; return the errors by the name of the service."""
        errors: list[tuple[str, RegistryError]] = []

        async def set_one(lease: _Held) -> None:
            name = lease.name
            try:
                with self._audit.record_change("report_health", name) as entry:
                    await self._reports.report(
                        name, None, entry, claim, draining=lease.draining, instance_id=lease.instance_id
                    )
            except RegistryError as error:
                errors.append((name, error))

        for start in range(0, len(leases), MAX_COMMITS_PER_GROUP):
            with batch_log_lines():
                async with asyncio.TaskGroup() as group:
                    for lease in leases[start : start + MAX_COMMITS_PER_GROUP]:
                        group.create_task(set_one(lease))
        return errors
