"""The table of permissions that each RPC and route requires; ``docs/security.md`` shows the same table."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from registry_server.config.security import PUBLIC_PARTS
from registry_server.security.identity import Role

API: Final = "/api/v1/registry"
HEALTH, METRICS, DOCS, REFLECTION = PUBLIC_PARTS


class Permission(NamedTuple):
    """Permission required of a caller."""

    min_role: Role
    """Lowest role with the permission. The use cases and the store restrict agents to their own services."""
    part: str = ""
    """Entry in ``security.public`` that waives the role; empty = none."""


READ: Final = Permission(Role.VIEWER)
WRITE_OWN: Final = Permission(Role.AGENT)
OPERATE: Final = Permission(Role.OPERATOR)

RPCS: Final[Mapping[str, Permission]] = {
    "RegisterService": WRITE_OWN,
    "BatchRegisterServices": WRITE_OWN,
    "GetService": READ,
    "DiscoverServices": READ,
    "UpdateService": WRITE_OWN,
    "UnregisterService": WRITE_OWN,
    "GetServiceHealth": READ,
    "ReportServiceHealth": WRITE_OWN,
    "CheckServiceHealth": WRITE_OWN,
    "Heartbeat": WRITE_OWN,
    "KeepAlive": WRITE_OWN,
    "WatchEvents": READ,
    "ListCapabilities": READ,
    "GetStats": READ,
    "GetRegistryHealth": READ,
    "Cleanup": OPERATE,
}
"""RPCs of ``RegistryService``."""

HEALTH_RPCS: Final = Permission(Role.VIEWER, HEALTH)
REFLECTION_RPCS: Final = Permission(Role.VIEWER, REFLECTION)

ROUTES: Final[Mapping[tuple[str, str], Permission]] = {
    ("POST", f"{API}/services"): WRITE_OWN,
    ("GET", f"{API}/services"): READ,
    ("GET", f"{API}/services/{{name}}"): READ,
    ("PUT", f"{API}/services/{{name}}"): WRITE_OWN,
    ("DELETE", f"{API}/services/{{name}}"): WRITE_OWN,
    ("GET", f"{API}/services/{{name}}/health"): READ,
    ("POST", f"{API}/services/{{name}}/heartbeat"): WRITE_OWN,
    ("GET", f"{API}/health"): READ,
    ("GET", f"{API}/stats"): READ,
    ("GET", f"{API}/capabilities"): READ,
    ("POST", f"{API}/cleanup"): OPERATE,
    ("GET", f"{API}/events"): READ,
    ("GET", "/health"): Permission(Role.VIEWER, HEALTH),
    ("GET", "/health/live"): Permission(Role.VIEWER, HEALTH),
    ("GET", "/metrics"): Permission(Role.VIEWER, METRICS),
    ("GET", "/openapi.yaml"): Permission(Role.VIEWER, DOCS),
    ("GET", "/docs"): Permission(Role.VIEWER, DOCS),
    ("GET", "/docs/start.js"): Permission(Role.VIEWER, DOCS),
    ("GET", "/docs/swagger-ui.css"): Permission(Role.VIEWER, DOCS),
    ("GET", "/docs/swagger-ui-bundle.js"): Permission(Role.VIEWER, DOCS),
}
"""HTTP routes by method and path; HEAD requires the same as GET."""
