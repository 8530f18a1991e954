"""The settings of a server: their types, and how they are loaded from flags, environment and file."""

from registry_server.config.addresses import EMBEDDED, HostPort, RedisUrl, split_host_port
from registry_server.config.health import HealthCheckSettings, LeaseSettings
from registry_server.config.loading import load_settings
from registry_server.config.operations import LogSettings, ShutdownSettings, TraceSettings, WatchSettings
from registry_server.config.redis import RedisSettings
from registry_server.config.security import LimitSettings, SecuritySettings
from registry_server.config.settings import Settings
from registry_server.config.transport import GrpcSettings, HttpSettings, TlsSettings
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
