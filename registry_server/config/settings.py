"""``Settings``: all settings of a server."""

from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import BeforeValidator, Field

from registry_server.config.fields import Metavar, Number, SettingsGroup, parse_directory
from registry_server.config.health import HealthCheckSettings, LeaseSettings
from registry_server.config.operations import LogSettings, ShutdownSettings, TraceSettings, WatchSettings
from registry_server.config.redis import RedisSettings
from registry_server.config.security import LimitSettings, SecuritySettings
from registry_server.config.transport import GrpcSettings, HttpSettings, TlsSettings


class Settings(SettingsGroup):
    """All settings of a server; ``load_settings`` reads them from flags, environment and file."""

    data_dir: Annotated[Path, BeforeValidator(parse_directory), Metavar("DIR")] = Field(
        default_factory=lambda: platformdirs.user_state_path("ossa-registry")
    )
    """Data directory of the embedded Redis."""
    service_ttl_seconds: Annotated[Number, Field(ge=5, le=24 * 60 * 60)] = 300
    """Lease duration of services that do not set their own TTL, in seconds."""
    workers: Annotated[Number, Field(ge=1, le=256)] = 1
    """Number of processes that serve the same ports."""
    insecure: bool = False
    """Whether to serve other machines without TLS or authentication."""
    grpc: GrpcSettings = GrpcSettings()
    http: HttpSettings = HttpSettings()
    redis: RedisSettings = RedisSettings()
    tls: TlsSettings = TlsSettings()
    security: SecuritySettings = SecuritySettings()
    limits: LimitSettings = LimitSettings()
    health_check: HealthCheckSettings = HealthCheckSettings()
    lease: LeaseSettings = LeaseSettings()
    watch: WatchSettings = WatchSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
