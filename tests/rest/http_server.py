"""HTTP servers with constructor arguments that are no settings."""

from typing import Any

from registry_server.admission import Admission
from registry_server.config import HttpSettings, LimitSettings, SecuritySettings
from registry_server.gateway import HttpServer
from registry_server.registry import ServiceRegistry
from registry_server.security.guard import Guard


async def no_metrics() -> bytes:
    return b""


def http_server(registry: ServiceRegistry, **arguments: Any) -> HttpServer:
    """Return a second HTTP server for a registry, without authentication."""
    return HttpServer(
        registry,
        HttpSettings(address="127.0.0.1:0"),
        metrics=no_metrics,
        grace=0,
        admission=Admission(Guard(SecuritySettings(), LimitSettings())),
        certificates=None,
        **arguments,
    )
