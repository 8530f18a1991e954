"""``RegistryHealth``: the use cases that read the health of services, and those of operators that change it."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.service_pb2 import Health, Load, Service
from registry_server.health import HealthMonitor, HealthReports, Maintenance, NewestHealth
from registry_server.instrumentation.audit import Audit
from registry_server.model import requests
from registry_server.model.validation import maintenance_violations
from registry_server.registry.explanations import RegistryExplanations
from registry_server.security.identity import UNCHECKED, current_identity


class RegistryHealth(RegistryExplanations):
    """Newest health, maintenance, and health monitoring of this process."""

    def __init__(
        self,
        *,
        monitor: HealthMonitor,
        reports: HealthReports,
        maintenance: Maintenance,
        audit: Audit,
        **parts: Any,
    ) -> None:
        """Combine the parts; ``parts`` are those of ``RegistryReads``."""
        super().__init__(**parts)
        self._monitor = monitor
        self._reports = reports
        self._maintenance = maintenance
        self._audit = audit

    async def health(self, name: str) -> tuple[Health, Timestamp | None]:
        """Return the newest health of a service and the end of its lease.

        The end is ``None`` for a permanent service and while the store is unavailable.

        Raises:
            ServiceNotFound: The service is not registered.
        """
        newest = await self.newest_health(name)
        return newest.health, newest.lease_ends

    async def newest_health(self, name: str) -> NewestHealth:
        """Return the newest health of a service, the end of its lease, and what is observed during maintenance.

        Raises:
            ServiceNotFound: The service is not registered.
        """
        return await self._reports.newest_health(await self.get(name))

    async def load(self, name: str) -> Load | None:
        """Return the newest load that a service has reported; ``None`` if there is none, or it is too old.

        Raises:
            ServiceNotFound: The service is not registered.
        """
        return self._loads.find(await self.get(name))

    async def set_maintenance(self, name: str, *, enabled: bool, reason: str = "") -> Service:
        """Start the maintenance of a service, change its reason, or end it; see ``SetMaintenanceRequest``.

        Raises:
            InvalidRequest: The name or the reason is not valid.
            ServiceNotFound: The service is not registered.
            WriteConflict: Other processes kept changing it.
        """
        with self._audit.record_change("set_maintenance", name) as entry:
            requests.raise_if_invalid(maintenance_violations(name, reason, enabled=enabled))
            identity = current_identity.get()
            operator = "" if identity is UNCHECKED else identity.name
            return await self._maintenance.set_maintenance(
                name, enabled=enabled, reason=reason, operator=operator, entry=entry
            )

    async def start_health_monitoring(self) -> None:
        """Start probing this process's share of the services; do nothing if it is already running.

        Raises:
            StoreUnavailable: The catalog is not loaded yet.
        """
        self._writes.require_loaded()
        await self._monitor.start()

    async def stop_health_monitoring(self) -> None:
        """Stop probing; other processes take over this one's share."""
        await self._monitor.stop()
