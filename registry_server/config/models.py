"""The settings: one class per concern, a docstring under each field, which is its help too."""

import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from registry_server.config.addresses import (
    EMBEDDED,
    HostPort,
    RedisUrl,
    bad_setting,
    check_listen_address,
    check_origins,
    check_redis_url,
    check_tcp_address,
    split_host_port,
    split_list,
)
from registry_server.config.networks import parse_networks
from registry_server.model.networks import DENIED_NETWORKS, Network

_KIB = 1024
_MIB = 1024 * _KIB
# Longer is a mistake of the unit, and the numbers stay within the 32 bits that gRPC has for milliseconds.
_DAY_MS = 24 * 60 * 60 * 1000
_KEY_PREFIX = re.compile(r"[A-Za-z0-9{}._:/-]{1,128}")
_ONE_HASH_TAG = re.compile(r"[^{}]*\{[^{}]+\}[^{}]*")


class Metavar(NamedTuple):
    """What stands for the value of a setting in the help."""

    text: str


def _not_bool(value: object) -> object:
    # To pydantic `true` in a TOML file is the number 1.
    if isinstance(value, bool):
        raise bad_setting("must be a whole number")
    return value


def _directory(value: object) -> object:
    # An empty path would mean the working directory. No shell expands '~' in a variable or a file.
    if not isinstance(value, str):
        return value
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        path = None
    if not value or path is None:
        raise bad_setting("must be the path of a directory")
    return path


def _file(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value == "none":
        return None
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        path = None
    if not value or path is None:
        raise bad_setting("must be the path of a file, or 'none'")
    return path


def _check_public(parts: tuple[str, ...]) -> tuple[str, ...]:
    if not set(parts) <= set(PUBLIC_PARTS):
        raise bad_setting(f"must be some of {', '.join(PUBLIC_PARTS)}, with commas, or 'none'")
    return parts


def _destination(value: str) -> str:
    if value not in ("log", "off") and ("/" not in value or value.endswith("/")):
        raise bad_setting("must be log, off or the path of a file, with a slash in it")
    return value


Number = Annotated[int, BeforeValidator(_not_bool)]
OptionalFile = Annotated[Path | None, BeforeValidator(_file), Metavar("FILE")]
Milliseconds = Annotated[Number, Field(ge=1, le=_DAY_MS)]

Networks = Annotated[tuple[Network, ...], BeforeValidator(parse_networks), Metavar("NETWORKS")]

PUBLIC_PARTS = ("health", "metrics", "docs", "reflection")
"""What ``security.public`` may name."""

_PROBE_TIMEOUT_MS = 5_000
_WAIT_TIMEOUT_MS = 1_000


class _Group(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,  # a default may contradict another setting that was given
    )


class GrpcSettings(_Group):
    """gRPC."""

    address: Annotated[str, AfterValidator(check_listen_address), Metavar("ADDRESS")] = "127.0.0.1:50051"
    """Where to listen: HOST:PORT, [IPV6]:PORT or unix:PATH. Port 0 takes a free one."""
    max_message_bytes: Annotated[Number, Field(ge=64 * _KIB, le=64 * _MIB)] = 4 * _MIB
    """Largest message that is taken, in bytes."""
    reflection: bool = True
    """Whether clients may ask which services there are, as grpcurl does."""
    keepalive_time_ms: Milliseconds = 30_000
    """Time without traffic after which the server pings a client, in milliseconds."""
    keepalive_timeout_ms: Milliseconds = 10_000
    """How long the server waits for the answer to its ping before it drops the client, in milliseconds."""
    min_ping_interval_ms: Milliseconds = 5_000
    """How often a client may ping, in milliseconds; one that pings more often is sent away."""
    max_metadata_bytes: Annotated[Number, Field(ge=4 * _KIB, le=_MIB)] = 16 * _KIB
    """Most bytes of metadata that a call may have."""
    max_concurrent_streams: Annotated[Number, Field(ge=1, le=1_000_000)] = 10_000
    """Most calls and streams at a time on one connection; further ones wait."""
    write_timeout_ms: Milliseconds = 30_000
    """How long a client may take to read one message before its call is cut, in milliseconds."""


class HttpSettings(_Group):
    """HTTP (REST, events, health, metrics)."""

    address: Annotated[str, AfterValidator(check_tcp_address), Metavar("ADDRESS")] = "127.0.0.1:3002"
    """Where to listen: HOST:PORT or [IPV6]:PORT. Port 0 takes a free one."""
    cors_origins: Annotated[
        tuple[str, ...], BeforeValidator(split_list), AfterValidator(check_origins), Metavar("ORIGINS")
    ] = ()
    """Origins whose pages may call the API from a browser, with commas, such as https://console.example.com; * for all
    of them."""
    max_body_bytes: Annotated[Number, Field(ge=64 * _KIB, le=64 * _MIB)] = _MIB
    """Largest body that is taken, in bytes."""
    max_headers: Annotated[Number, Field(ge=16, le=1_000)] = 100
    """Most headers that a request may have."""
    max_header_bytes: Annotated[Number, Field(ge=_KIB, le=64 * _KIB)] = 16 * _KIB
    """Most bytes of one header."""
    header_timeout_ms: Milliseconds = 10_000
    """How long a client may take to send the headers of a request, in milliseconds."""
    write_timeout_ms: Milliseconds = 30_000
    """How long a client may take to read 64 KiB before it is cut, in milliseconds."""
    events_keep_alive_ms: Annotated[Number, Field(ge=100, le=60 * 60 * 1000)] = 15_000
    """Time after which a quiet event stream gets a comment, in milliseconds."""

    @property
    def host_port(self) -> HostPort:
        """The address in parts."""
        parts = split_host_port(self.address)
        if parts is None:
            raise ValueError("the address was not validated")
        return parts


class RedisSettings(_Group):
    """Redis."""

    url: Annotated[RedisUrl, AfterValidator(check_redis_url), Metavar("URL")] = RedisUrl(EMBEDDED)
    """Where the registry is kept: 'embedded' for a private redis-server under the data directory, or a URL that starts
    with redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or, with TLS, rediss+sentinel:// or
    rediss+cluster://. A password is better given by the environment or the file than by the flag, which other users of
    the machine can see."""
    key_prefix: str = "ossa:services"
    """What the keys start with, 1 to 128 characters of A-Z a-z 0-9 { } . _ : / -, without a colon at the end. With
    redis+cluster:// it needs one hash tag, as in {ossa}:services."""
    tls_ca_file: OptionalFile = None
    """Certificates of the authorities that vouch for Redis with rediss://, as PEM; none for those of the system."""
    tls_cert_file: OptionalFile = None
    """Certificate to show to a Redis that asks for one, as PEM."""
    tls_key_file: OptionalFile = None
    """Private key of that certificate, as PEM, not encrypted."""
    timeout_ms: Milliseconds = 2_000
    """Longest wait for an answer of Redis, in milliseconds."""
    wait_replicas: Annotated[Number, Field(ge=0, le=100)] = 0
    """How many replicas of Redis must have a change before it is answered; if they do not, the answer is UNAVAILABLE
    with the reason NOT_REPLICATED. 0 waits for none."""
    wait_timeout_ms: Milliseconds = _WAIT_TIMEOUT_MS
    """How long that may take, in milliseconds; less than the timeout, to half of which the default is cut."""
    repair: bool = True
    """Whether a Redis that comes back older than what was answered, or empty, is given back what the processes still
    hold; else its state is taken as the truth, and what it lost is told to watchers as unregistered."""
    events_max_length: Annotated[Number, Field(ge=100, le=10_000_000)] = 10_000
    """How many events the stream in Redis and each process keep, so that a watch can go on where it ended."""

    @field_validator("tls_key_file")
    @classmethod
    def _check_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("tls_cert_file") is None):
            raise bad_setting("must be given together with {other}", other="redis.tls_cert_file")
        return key

    @property
    def safe_url(self) -> str:
        """The URL for people to read: passwords are masked."""
        return str(self.url)

    @field_validator("key_prefix")
    @classmethod
    def _check_key_prefix(cls, prefix: str, info: ValidationInfo) -> str:
        if not _KEY_PREFIX.fullmatch(prefix) or prefix.endswith(":"):
            raise bad_setting("must be 1 to 128 characters of A-Z a-z 0-9 { } . _ : / - without a colon at the end")
        url = info.data.get("url")
        if isinstance(url, RedisUrl) and url.is_cluster and not _ONE_HASH_TAG.fullmatch(prefix):
            # One script writes all keys of a change, and a cluster runs it only if one slot holds them all.
            raise bad_setting(
                "must have one hash tag, as in '{ossa}:services', for the Redis Cluster of {other}", other="redis.url"
            )
        return prefix

    @field_validator("wait_replicas")
    @classmethod
    def _check_wait_replicas(cls, replicas: int, info: ValidationInfo) -> int:
        url = info.data.get("url")
        if replicas and isinstance(url, RedisUrl) and url.get_secret_value() == EMBEDDED:
            raise bad_setting("must be 0 for the embedded Redis of {other}, which has no replicas", other="redis.url")
        return replicas

    @field_validator("wait_timeout_ms")
    @classmethod
    def _check_wait_timeout(cls, patience: int, info: ValidationInfo) -> int:
        timeout: int = info.data.get("timeout_ms", patience + 1)
        if patience == _WAIT_TIMEOUT_MS:  # who sets a short timeout alone need not know of it
            return min(patience, max(timeout // 2, 1))
        if patience >= timeout:
            raise bad_setting("must be less than {other} ({limit})", other="redis.timeout_ms", limit=timeout)
        return patience


class TlsSettings(_Group):
    """TLS of gRPC and HTTP."""

    cert_file: OptionalFile = None
    """Certificate of the server with those that lead to its authority, as PEM. Read again when it changes."""
    key_file: OptionalFile = None
    """Private key of the certificate, as PEM, not encrypted. Read again when it changes."""
    client_ca_file: OptionalFile = None
    """Certificates of the authorities of clients, as PEM: clients then have to show a certificate (mTLS)."""
    http_client_certificates: Literal["required", "optional"] = "required"
    """Whether with tls.client_ca_file HTTP clients may come without a certificate, such as probes of a platform."""

    @field_validator("client_ca_file")
    @classmethod
    def _check_client_ca(cls, client_ca: Path | None, info: ValidationInfo) -> Path | None:
        if client_ca is not None and info.data.get("cert_file") is None:
            raise bad_setting("needs {other}", other="tls.cert_file")
        return client_ca

    @field_validator("key_file")
    @classmethod
    def _check_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("cert_file") is None):
            raise bad_setting("must be given together with {other}", other="tls.cert_file")
        return key


class SecuritySettings(_Group):
    """Authentication and roles (docs/security.md)."""

    policy_file: OptionalFile = None
    """Who may do what, as YAML; none lets everybody do everything. Read again at SIGHUP."""
    public: Annotated[tuple[str, ...], BeforeValidator(split_list), AfterValidator(_check_public), Metavar("PARTS")] = (
        "health",
        "docs",
        "reflection",
    )
    """What needs no credential, with commas: health, metrics, docs, reflection."""


class LimitSettings(_Group):
    """Limits for each caller, told apart by identity, or by address where there is none."""

    requests_per_second: Annotated[Number, Field(ge=1, le=1_000_000)] = 10_000
    """Calls a second in the long run, in each process."""
    request_burst: Annotated[Number, Field(ge=1, le=10_000_000)] = 20_000
    """Most calls at once."""
    watches_per_caller: Annotated[Number, Field(ge=1, le=1_000_000)] = 5_000
    """Most watches and event streams at a time, in each process."""
    watches: Annotated[Number, Field(ge=1, le=1_000_000)] = 20_000
    """Most of them of all callers together; as many KeepAlive streams."""
    calls: Annotated[Number, Field(ge=1, le=1_000_000)] = 10_000
    """Most calls under way of all callers together, in each process; streams apart."""
    call_bytes: Annotated[Number, Field(ge=_MIB, le=64 * 1024 * _MIB)] = 128 * _MIB
    """Most bytes of their requests, and of their answers that are not read yet."""
    services_per_owner: Annotated[Number, Field(ge=1, le=10_000_000)] = 10_000
    """Most services that an agent may own, in the whole registry."""
    stream_idle_seconds: Annotated[Number, Field(ge=1, le=24 * 60 * 60)] = 36_000
    """How long a KeepAlive stream may stay without a message, in seconds; without a first one, a minute at the most."""


class HealthCheckSettings(_Group):
    """Health checks: what counts for a service that does not say otherwise."""

    enabled: bool = True
    """Whether this process probes services. Reports and heartbeats are taken in any case."""
    interval_ms: Annotated[Number, Field(ge=10, le=_DAY_MS)] = 30_000
    """Time between two probes of a service, in milliseconds."""
    timeout_ms: Annotated[Number, Field(ge=10, le=5 * 60 * 1000)] = _PROBE_TIMEOUT_MS
    """Longest time for one probe, in milliseconds; not longer than the interval, to which the default is cut."""
    failure_threshold: Annotated[Number, Field(ge=1, le=100)] = 3
    """Failed probes in a row that make a service unhealthy."""
    success_threshold: Annotated[Number, Field(ge=1, le=100)] = 2
    """Successful probes in a row that make it healthy again."""
    concurrency: Annotated[Number, Field(ge=1, le=10_000)] = 500
    """Most probes that this process has under way at once; each takes a connection."""
    member_period_ms: Annotated[Number, Field(ge=100, le=60 * 60 * 1000)] = 5_000
    """Silence after which a process is taken for dead and the others check its services, in milliseconds."""
    allowed_networks: Networks = ()
    """Networks that probes may connect to, such as 10.0.0.0/8, with commas; none for all that are not denied."""
    denied_networks: Networks = DENIED_NETWORKS
    """Networks that probes may not connect to, whatever is allowed. By default link-local and multicast addresses and
    those of clouds' metadata services; who sets it repeats them."""
    self_preservation_percent: Annotated[Number, Field(ge=1, le=100)] = 50
    """Share of its services, in percent, whose probes have to fail at once for this process to doubt itself and freeze
    all statuses."""
    self_preservation_min_failures: Annotated[Number, Field(ge=1, le=1_000_000)] = 10
    """Fewest failing services at which it does so."""
    self_preservation_max_seconds: Annotated[Number, Field(ge=1, le=24 * 60 * 60)] = 300
    """How long it doubts itself at the most, in seconds; then failures count."""

    @field_validator("timeout_ms")
    @classmethod
    def _check_timeout(cls, timeout: int, info: ValidationInfo) -> int:
        interval: int = info.data.get("interval_ms", timeout)
        if timeout == _PROBE_TIMEOUT_MS:  # who sets a short interval alone need not know of the timeout
            return min(timeout, interval)
        if timeout > interval:
            raise bad_setting("must be at most {other} ({limit})", other="health_check.interval_ms", limit=interval)
        return timeout


class LeaseSettings(_Group):
    """Leases."""

    sweep_interval_ms: Milliseconds = 1_000
    """How often services whose lease has ended are removed, in milliseconds."""


class WatchSettings(_Group):
    """Watches: how much may wait for one slow reader before its stream is ended."""

    buffer_events: Annotated[Number, Field(ge=1, le=10_000_000)] = 10_000
    """Most events that wait for one watcher."""
    # An event holds a service, and that may have 64 KiB.
    buffer_bytes: Annotated[Number, Field(ge=128 * _KIB, le=1024 * _MIB)] = 8 * _MIB
    """Most bytes that wait for one watcher."""


class LogSettings(_Group):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    format: Literal["auto", "console", "json"] = "auto"
    """Form of the lines; auto is console on a terminal and json elsewhere."""
    requests: Literal["off", "errors", "all"] = "errors"
    """Which requests get a line: none, those that end with an error, or all of them."""
    audit: Annotated[str, AfterValidator(_destination), Metavar("WHERE")] = "log"
    """Where changes are written, each with who made it: log, among the rest; off; or the path of a file, with a slash
    in it."""


class TraceSettings(_Group):
    """Traces."""

    enabled: bool = False
    """Whether calls are traced by OpenTelemetry, which needs the extra otel. The standard variables OTEL_* say where
    the traces go."""


class ShutdownSettings(_Group):
    """Shutdown."""

    grace_seconds: Annotated[Number, Field(ge=0, le=3600)] = 10
    """How long calls in flight may go on after SIGTERM, in seconds."""


class Settings(BaseSettings):
    """All settings of a server.

    Made directly it takes only its arguments, so that tests and embedders do not depend on the environment;
    ``load_settings`` reads flags, environment and file.
    """

    model_config = SettingsConfigDict(
        env_prefix="OSSA_REGISTRY_",
        env_nested_delimiter="__",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    data_dir: Annotated[Path, BeforeValidator(_directory), Metavar("DIR")] = Field(
        default_factory=lambda: platformdirs.user_state_path("ossa-registry")
    )
    """Directory of the embedded Redis' data."""
    service_ttl_seconds: Annotated[Number, Field(ge=5, le=24 * 60 * 60)] = 300
    """Length of the lease of a service that does not say otherwise, in seconds."""
    workers: Annotated[Number, Field(ge=1, le=256)] = 1
    """Number of processes that serve the same ports."""
    insecure: bool = False
    """Serve other machines although TLS or authentication is off."""
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
        """Leaves only the arguments as a source."""
        return (init_settings,)

    @classmethod
    def from_sources(cls, sources: tuple[PydanticBaseSettingsSource, ...]) -> Self:
        """Validates what the sources give together.

        Args:
            sources: The first one that has a value for a setting wins.

        Raises:
            pydantic.ValidationError: A value is bad.
        """
        # mypy takes the constructor to have the fields alone.
        return cls(_build_sources=(sources, {}))  # type: ignore[call-arg]
