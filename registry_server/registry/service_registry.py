"""``ServiceRegistry``: the use cases, which transports and embedding programs call."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.registry_service_pb2 import Lease
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from ossa_common.violations import Violation
from registry_server.catalog import Discovery, Loads, Replica
from registry_server.errors import (
    InvalidRequest,
    RegistryError,
    ServiceExists,
    StoreUnavailable,
)
from registry_server.health import HealthMonitor, HealthReports, Maintenance
from registry_server.instrumentation.audit import Audit, AuditEntry, batch_log_lines
from registry_server.model import normal, requests, rules
from registry_server.model.filters import EVERYTHING
from registry_server.model.record import Record
from registry_server.model.validation import (
    name_violations,
    service_violations,
    size_violations,
    status_violations,
    update_mask_violations,
)
from registry_server.registry.claims import claim_on, claim_on_existing, require_group
from registry_server.registry.health import RegistryHealth
from registry_server.registry.heartbeats import Heartbeats, Renewal
from registry_server.replication import Follower, Writes, require_existing
from registry_server.runtime.clock import Clock
from registry_server.runtime.pacing import BatchTurns
from registry_server.security.egress import EgressPolicy
from registry_server.security.identity import Claim, current_identity
from registry_server.store import MAX_COMMITS_PER_GROUP, Conflict, EpochChanged, RedisStore
from registry_server.watch import WatchHub

_DOCUMENTS_PER_TURN: Final = 50
"""Documents that are encoded without yielding to the event loop: about 10 ms."""


class ServiceRegistry(RegistryHealth):
    """Registers services, keeps their leases, finds them and watches them.

    Values are the messages of ``ossa.registry.v1``. Every method raises only ``RegistryError``. While Redis is
    unavailable, methods that change something raise ``StoreUnavailable`` and reads are answered from memory.
    """

    def __init__(
        self,
        *,
        store: RedisStore,
        replica: Replica,
        loads: Loads,
        discovery: Discovery,
        hub: WatchHub,
        follower: Follower,
        writes: Writes,
        monitor: HealthMonitor,
        reports: HealthReports,
        maintenance: Maintenance,
        egress: EgressPolicy,
        audit: Audit,
        clock: Clock,
    ) -> None:
        """Combine the parts, which ``registry_server.app`` creates and owns.

        Args:
            store: Redis, for leases and sweeps.
            replica: The copy in memory.
            loads: Loads of services.
            discovery: Queries over the replica.
            hub: Watches over the replica.
            follower: Applies the store's changes to the replica.
            writes: Compare-and-set writes.
            monitor: Probes services.
            reports: Reported and newest health.
            maintenance: Maintenance by operators.
            egress: Addresses that an endpoint may have.
            audit: Records every change.
            clock: Wall clock.
        """
        super().__init__(
            reader=store.reader,
            replica=replica,
            loads=loads,
            discovery=discovery,
            hub=hub,
            follower=follower,
            writes=writes,
            monitor=monitor,
            reports=reports,
            maintenance=maintenance,
            audit=audit,
            clock=clock,
        )
        self._store = store
        self._egress = egress
        self._heartbeats = Heartbeats(
            store=store, replica=replica, loads=loads, writes=writes, reports=reports, audit=audit
        )

    # Registration.

    async def register(self, service: Service, *, create_only: bool = False) -> Service:
        """Register a service or replace its content; renew its lease.

        Raises:
            InvalidRequest: A field of the service is not valid.
            ServiceExists: The name is taken, with ``create_only`` or by a service that the caller does not see.
            WriteConflict: Other processes kept changing it.
        """
        with self._audit.record_change("register", service.name, batch=True) as entry:
            requests.raise_if_invalid(self._violations(service))
            registered = await self._register(service, entry, create_only=create_only)
        await asyncio.sleep(0)  # until the line is written
        return registered

    async def _register(self, service: Service, entry: AuditEntry, *, create_only: bool = False) -> Service:
        async def attempt(current: Record | None) -> Service | Conflict | EpochChanged:
            entry.before = current.revision if current else None
            # A registration of a service that the caller does not see fails: it reveals that the name is taken.
            if current is not None and (create_only or not current_identity.get().sees(current)):
                raise ServiceExists(service.name)
            before = current.message() if current else None
            now = self._now()
            after, check = await self._maintenance.apply_change(
                before, lambda seen: normal.apply_registration(service, seen, now)
            )
            outcome = await self._writes.put_service(before, after, now, renew=True, claim=claim, check=check)
            if before is not None and isinstance(outcome, Service) and normal.takes_over(after, before):
                self._store.counters.takeovers += 1
            return outcome

        claim = claim_on(service.name)
        require_group(service)
        registered = await self._writes.change_service(service.name, attempt)
        entry.after = registered.revision
        return registered

    async def register_batch(self, services: Sequence[Service | RegistryError]) -> list[Service | RegistryError]:
        """Register several services, each independently and in order.

        Args:
            services: The services, parsed when they are read. An error is returned as the result of its service.

        Raises:
            InvalidRequest: The list is empty or too long.
            Overloaded: Together with the writes in flight they exceed the limit.
        """
        if not 1 <= len(services) <= requests.MAX_BATCH_SIZE:
            count = f"more than {requests.MAX_BATCH_SIZE}" if services else "no"
            with self._audit.record_change("register", ""):
                raise InvalidRequest(
                    [Violation("services", f"has {count} services; must have 1 to {requests.MAX_BATCH_SIZE}")]
                )

        self._writes.require_capacity(len(services))
        checked: list[tuple[str, Service | RegistryError]] = []

        def check_all() -> Iterator[None]:
            for i, service in enumerate(services):
                found = self._violations(service, f"services[{i}]") if isinstance(service, Service) else []
                # An invalid service is released: its message may take thirty times the memory of its bytes.
                checked.append((getattr(service, "name", ""), requests.invalid_request(found) if found else service))
                yield

        async def register_one(name: str, service: Service | RegistryError) -> Service | RegistryError:
            try:
                with self._audit.record_change("register", name) as entry:
                    if isinstance(service, RegistryError):
                        raise service
                    return await self._register(service, entry)
            except RegistryError as error:
                return error.with_traceback(None)  # whose frames would refer to the error and to the whole batch

        # Validate first: batched validation halves its cost (measured).
        await self.slices.run(check_all())
        # The tasks share round trips, and writes to one name keep their order. The end of a turn sends a full group,
        # which the store commits while this process prepares the next one.
        tasks: list[asyncio.Task[Service | RegistryError]] = []
        with batch_log_lines():
            async with asyncio.TaskGroup() as group:
                turns = BatchTurns(MAX_COMMITS_PER_GROUP)
                for name, service in checked:
                    tasks.append(group.create_task(register_one(name, service)))
                    await turns.add(service.ByteSize() if isinstance(service, Service) else 0)
                await asyncio.sleep(0)  # the tasks submit their changes
                self._store.writer.send_commits()
        return [task.result() for task in tasks]

    async def update_service(
        self, service: Service, mask: FieldMask | None = None, *, expected_revision: int = 0, renew: bool = False
    ) -> Service:
        """Set the fields in ``mask`` to their values in ``service``; see ``UpdateServiceRequest``.

        With ``renew``, also renew the lease, unless an instance keeps it by heartbeats.

        Raises:
            InvalidRequest: The mask or the resulting service is not valid.
            ServiceNotFound: The service is not registered.
            RevisionMismatch: Its revision is not ``expected_revision`` (0 = any).
            WriteConflict: Other processes kept changing it.
        """
        mask = mask or FieldMask()

        async def attempt(current: Record | None) -> Service | Conflict | EpochChanged:
            entry.before = current.revision if current else None
            before = require_existing(service.name, current, expected_revision).message()
            now = self._now()
            after, check = await self._maintenance.apply_change(
                before, lambda seen: normal.apply_update(service, mask, seen, now)
            )
            violations = service_violations(after)
            if after.endpoint != before.endpoint:
                violations += self._endpoint_violations(after, violations)
            requests.raise_if_invalid(violations)
            require_group(after)
            renewed = renew and not before.instance_id
            return await self._writes.put_service(before, after, now, renew=renewed, claim=claim, check=check)

        with self._audit.record_change("update", service.name) as entry:
            violations = name_violations(service.name, "service.name") + size_violations(service)
            violations += update_mask_violations(mask)
            requests.check_not_negative(expected_revision, "expected_revision", violations)
            requests.raise_if_invalid(violations)
            claim = self._claim_on_existing(service.name)
            updated = await self._writes.change_service(service.name, attempt)
            entry.after = updated.revision
        return updated

    async def unregister(self, name: str, *, expected_revision: int = 0, instance_id: str = "") -> Service:
        """Remove a service and return its last state.

        Raises:
            ServiceNotFound: The service is not registered.
            InstanceSuperseded: Its instance is not ``instance_id`` ('' = any).
            RevisionMismatch: Its revision is not ``expected_revision`` (0 = any).
            WriteConflict: Other processes kept changing it.
        """

        async def attempt(current: Record | None) -> Service | Conflict | EpochChanged:
            entry.before = current.revision if current else None
            record = require_existing(name, current, expected_revision, instance_id=instance_id)
            return await self._writes.delete_service(record, claim)

        with self._audit.record_change("unregister", name) as entry:
            violations = name_violations(name, "name")
            requests.check_not_negative(expected_revision, "expected_revision", violations)
            rules.check_instance_id(instance_id, "instance_id", violations)
            requests.raise_if_invalid(violations)
            claim = self._claim_on_existing(name)
            return await self._writes.change_service(name, attempt)

    # Leases and health.

    async def heartbeat(self, names: Sequence[str], leases: Sequence[Lease] = (), *, may_wait: bool = False) -> Renewal:
        """Renew leases.

        Args:
            names: Services whose leases are renewed, whichever instance is registered.
            leases: Leases that are renewed for the instance that they name.
            may_wait: Whether to wait some milliseconds for heartbeats of others, which then share a round trip.

        Raises:
            PermissionDenied: The caller may not renew one of the leases; none is renewed.
        """
        return await self._heartbeats.renew(names, leases, may_wait=may_wait)

    async def restore_documents(self, names: Sequence[str]) -> None:
        """Rewrite the JSON documents that Redis expired before the lease of their service was renewed or adjusted."""
        records = [record for name in names if (record := self._replica.records.get(name))]
        for start in range(0, len(records), _DOCUMENTS_PER_TURN):
            async with asyncio.TaskGroup() as group:
                for record in records[start : start + _DOCUMENTS_PER_TURN]:
                    group.create_task(self._restore_document(record))

    async def _restore_document(self, record: Record) -> None:
        # The next sweep reports it again if the service changed in between or the store is unavailable.
        with suppress(StoreUnavailable):
            await self._writes.touch_service(record.message(), renew=False, confirm=False)

    async def report_health(
        self,
        name: str,
        status: HealthStatus.ValueType,
        details: Struct | None,
        error: str,
        *,
        draining: bool | None = None,
        instance_id: str = "",
    ) -> Health:
        """Record a report; see ``ReportServiceHealthRequest``. It is an event only if it changes the service.

        Raises:
            InvalidRequest: A field of the report is not valid.
            ServiceNotFound: The service is not registered.
            InstanceSuperseded: Its instance is not ``instance_id`` ('' = any).
            WriteConflict: Other processes kept changing it.
        """
        with self._audit.record_change("report_health", name) as entry:
            violations = name_violations(name, "name")
            # A report of draining alone keeps the health.
            has_health = bool(draining is None or status or details is not None or error)
            if has_health:
                violations += status_violations(status, "status")
            rules.check_instance_id(instance_id, "instance_id", violations)
            rules.check_length(error, "error", rules.MAX_ERROR_LENGTH, violations)
            if details is not None:
                rules.check_details(details, "details", violations)
            requests.raise_if_invalid(violations)
            claim = self._claim_on_existing(name)
            health = Health(status=status, details=details, error=error) if has_health else None
            return await self._reports.report(name, health, entry, claim, draining=draining, instance_id=instance_id)

    async def check_health(self, name: str) -> Health:
        """Probe a service now with its own settings; the result counts like that of any other probe.

        For a service without probes, return its current health.

        Raises:
            ServiceNotFound: The service is not registered.
            ProbingDisabled: Health monitoring is off in this process.
        """
        record = await self.get(name)
        await self._reports.require_owner(name, claim_on(name))
        health = await self._monitor.check_now(record)
        if health is None:
            return (await self.health(name))[0]
        if not health.HasField("status_changed_at"):
            health.status_changed_at.CopyFrom(record.message().health.status_changed_at)
        return health

    async def cleanup(self) -> list[str]:
        """Remove services whose lease has expired and return the names of those that the caller sees."""
        removed: list[str] = []
        identity = current_identity.get()
        visible = await self._discovery.matching_names(identity.restrict(EVERYTHING)) if identity.scope else None
        try:
            with self._audit.record_change("cleanup", ""):  # recorded only if it fails; removals are recorded below
                self._writes.require_loaded()
                while True:
                    sweep = await self._store.writer.sweep_leases(
                        EventReason.EVENT_REASON_CLEANUP, self._replica.position
                    )
                    removed += sweep.removed
                    if not sweep.removed:
                        break
                if removed:
                    await self._writes.catch_up()
        finally:
            self._audit.record_removals("cleanup", removed)
        return removed if visible is None else sorted(set(removed).intersection(visible))

    def _claim_on_existing(self, name: str) -> Claim:
        """Return the ownership under which the caller changes a registered service; see ``claim_on_existing``."""
        if current_identity.get().scope:
            self._writes.require_loaded()
        return claim_on_existing(name, self._replica.records)

    def _violations(self, service: Service, at: str = "service") -> list[Violation]:
        found = service_violations(service, at)
        return found + self._endpoint_violations(service, found, at)

    def _endpoint_violations(
        self, service: Service, found: Sequence[Violation], at: str = "service"
    ) -> list[Violation]:
        """Check whether probes may connect to a literal address; a DNS name is checked when it is resolved."""
        if any(violation.field == f"{at}.endpoint" for violation in found):
            return []
        refusal = self._egress.literal_denial_reason(urlsplit(service.endpoint).hostname or "")
        return [Violation(f"{at}.endpoint", f"{refusal} by the settings of this registry")] if refusal else []
