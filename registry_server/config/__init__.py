"""Settings of a server, and where they come from."""

from registry_server.config.addresses import EMBEDDED, HostPort, RedisUrl
from registry_server.config.loading import load_settings
from registry_server.config.models import (
    GrpcSettings,
    HealthCheckSettings,
    HttpSettings,
    LeaseSettings,
    LogSettings,
    RedisSettings,
    Settings,
    ShutdownSettings,
    TraceSettings,
    WatchSettings,
)
from registry_server.config.networks import DENIED_NETWORKS, Network
from registry_server.config.usage import usage

__all__ = [
    "DENIED_NETWORKS",
    "EMBEDDED",
    "GrpcSettings",
    "HealthCheckSettings",
    "HostPort",
    "HttpSettings",
    "LeaseSettings",
    "LogSettings",
    "Network",
    "RedisSettings",
    "RedisUrl",
    "Settings",
    "ShutdownSettings",
    "TraceSettings",
    "WatchSettings",
    "load_settings",
    "usage",
]
