"""``Settings``: all settings of a server."""

from pathlib import Path
from typing import Annotated, Self

import platformdirs
from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from registry_server.config.fields import Metavar, Number, parse_directory
from registry_server.config.health import HealthCheckSettings, LeaseSettings
from registry_server.config.operations import LogSettings, ShutdownSettings, TraceSettings, WatchSettings
from registry_server.config.redis import RedisSettings
from registry_server.config.security import LimitSettings, SecuritySettings
from registry_server.config.transport import GrpcSettings, HttpSettings, TlsSettings


class Settings(BaseSettings):
    """All settings of a server.

    The constructor uses only its arguments, so that tests and embedding programs do not depend on the environment.
    ``load_settings`` reads flags, environment and file.
    """

    model_config = SettingsConfigDict(
        env_prefix="OSSA_REGISTRY_",
        env_nested_delimiter="__",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the names are pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the arguments of the constructor."""
        return (init_settings,)

    @classmethod
    def from_sources(cls, sources: tuple[PydanticBaseSettingsSource, ...]) -> Self:
        """Merge the sources and validate the result.

        Args:
            sources: Sources in order of precedence, the highest first.

        Raises:
            pydantic.ValidationError: A value is not valid.
        """
        # mypy derives the constructor's parameters from the fields alone.
        return cls(_build_sources=(sources, {}))  # type: ignore[call-arg]
