"""Settings of health checks and leases."""

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from registry_server.config.addresses import bad_setting, split_list
from registry_server.config.fields import DAY_MS, Metavar, Milliseconds, Number, SettingsGroup
from registry_server.model.networks import Network

_DEFAULT_INTERVAL_MS = 30_000


def _default_timeout(group: dict[str, Any]) -> int:
    # A short interval alone must not be an error.
    interval: int = group.get("interval_ms", _DEFAULT_INTERVAL_MS)
    return min(5_000, interval)


def _parse_networks(value: object) -> object:
    parts = split_list(value)
    if isinstance(parts, Sequence):
        # Not valid are also networks with host bits, such as 10.1.0.0/8: it is unclear which network is meant.
        with suppress(ValueError):
            return tuple(ip_network(str(part)) for part in parts)
    raise bad_setting("must be networks such as 10.0.0.0/8, separated by commas, or 'none'")


Networks = Annotated[tuple[Network, ...], BeforeValidator(_parse_networks), Metavar("NETWORKS")]


class HealthCheckSettings(SettingsGroup):
    """Health checks: defaults for services without own values, limits of probing."""

    enabled: bool = True
    """Whether this process probes services. Health reports and heartbeats are accepted in any case."""
    interval_ms: Annotated[Number, Field(ge=10, le=DAY_MS)] = _DEFAULT_INTERVAL_MS
    """Time between two probes of a service, in milliseconds."""
    timeout_ms: Annotated[Number, Field(ge=10, le=5 * 60 * 1000)] = Field(default_factory=_default_timeout)
    """Maximum duration of one probe, in milliseconds. Must be at most health_check.interval_ms. The default is reduced
    to that interval if it is less."""
    failure_threshold: Annotated[Number, Field(ge=1, le=100)] = 3
    """Number of consecutive failed probes after which a service is unhealthy."""
    success_threshold: Annotated[Number, Field(ge=1, le=100)] = 2
    """Number of consecutive successful probes after which an unhealthy service is healthy again."""
    concurrency: Annotated[Number, Field(ge=1, le=10_000)] = 1_000
    """Maximum number of concurrent probes of this process. Each uses one connection. The services of one owner use less
    than half of them, so that slow ones do not delay those of other owners."""
    member_period_ms: Annotated[Number, Field(ge=100, le=60 * 60 * 1000)] = 5_000
    """Time without a refresh of its membership after which a process is considered dead and the other processes probe
    its services, in milliseconds."""
    allowed_networks: Networks = ()
    """Networks that probes may connect to, such as 10.0.0.0/8, separated by commas. If empty, all networks that are not
    denied. A network within one that is always denied, such as 169.254.7.0/24, is an exception from it."""
    denied_networks: Networks = ()
    """Networks that probes may not connect to, even if they are allowed. They are added to those that are always
    denied: this host (0.0.0.0/8, ::), link-local and multicast addresses and the metadata services of clouds."""
    self_preservation_percent: Annotated[Number, Field(ge=1, le=100)] = 50
    """Percentage of an owner's services probed by this process that must fail at once for it to enter self-preservation
    and suspend their status changes; those of all owners if half of at least three owners fail."""
    self_preservation_min_failures: Annotated[Number, Field(ge=1, le=1_000_000)] = 10
    """Minimum number of failing services of an owner for self-preservation. For half of at least three owners, three
    suffice."""
    self_preservation_max_seconds: Annotated[Number, Field(ge=1, le=24 * 60 * 60)] = 300
    """Maximum duration of self-preservation, in seconds. Then failures count again."""

    @field_validator("timeout_ms")
    @classmethod
    def _check_timeout(cls, timeout: int, info: ValidationInfo) -> int:
        interval: int = info.data.get("interval_ms", timeout)
        if timeout > interval:
            raise bad_setting("must be at most {other} ({limit})", other="health_check.interval_ms", limit=interval)
        return timeout


class LeaseSettings(SettingsGroup):
    """Leases."""

    sweep_interval_ms: Milliseconds = 1_000
    """Time between two removals of services whose lease has expired, in milliseconds."""
