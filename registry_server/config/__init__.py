"""Settings of a server, and where they come from."""

from registry_server.config.addresses import EMBEDDED, HostPort, RedisUrl, split_host_port
from registry_server.config.loading import load_settings
from registry_server.config.models import (
    GrpcSettings,
    HealthCheckSettings,
    HttpSettings,
    LeaseSettings,
    LimitSettings,
    LogSettings,
    RedisSettings,
    SecuritySettings,
    Settings,
    ShutdownSettings,
    TlsSettings,
    TraceSettings,
    WatchSettings,
)
from registry_server.config.usage import usage

__all__ = [
    "EMBEDDED",
    "GrpcSettings",
    "HealthCheckSettings",
    "HostPort",
    "HttpSettings",
    "LeaseSettings",
    "LimitSettings",
    "LogSettings",
    "RedisSettings",
    "RedisUrl",
    "SecuritySettings",
    "Settings",
    "ShutdownSettings",
    "TlsSettings",
    "TraceSettings",
    "WatchSettings",
    "load_settings",
    "split_host_port",
    "usage",
]
