"""Settings of authentication and of the limits for callers."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from registry_server.config.addresses import bad_setting, split_list
from registry_server.config.fields import KIB, MIB, Metavar, Number, OptionalFile, SettingsGroup

PUBLIC_PARTS = ("health", "metrics", "docs", "reflection")
"""Values of ``security.public``."""


def _check_public(parts: tuple[str, ...]) -> tuple[str, ...]:
    if not set(parts) <= set(PUBLIC_PARTS):
        raise bad_setting(f"must be some of {', '.join(PUBLIC_PARTS)}, separated by commas, or 'none'")
    return parts


class SecuritySettings(SettingsGroup):
    """Authentication and roles (docs/security.md)."""

    policy_file: OptionalFile = None
    """Policy that assigns roles to identities, as YAML. Without it, every caller may do everything. Reloaded on
    SIGHUP."""
    public: Annotated[tuple[str, ...], BeforeValidator(split_list), AfterValidator(_check_public), Metavar("PARTS")] = (
        "health",
        "docs",
        "reflection",
    )
    """Parts that need no credential, separated by commas: health, metrics, docs, reflection."""


class LimitSettings(SettingsGroup):
    """Limits for each caller: its identity or, without one, its address."""

    requests_per_second: Annotated[Number, Field(ge=1, le=1_000_000)] = 10_000
    """Sustained rate of calls a second for each caller, in each process. Without a policy, the default applies to an
    address only while more than 80 % of limits.calls are in flight."""
    request_burst: Annotated[Number, Field(ge=1, le=10_000_000)] = 20_000
    """Maximum number of calls in a burst for each caller, in each process."""
    watches_per_caller: Annotated[Number, Field(ge=1, le=1_000_000)] = 5_000
    """Maximum number of concurrent watches and event streams for each caller, in each process. Without a policy, the
    default does not apply to addresses: each gets its share when limits.watches is 80 % used."""
    watches: Annotated[Number, Field(ge=1, le=1_000_000)] = 30_000
    """Maximum number of concurrent watches and event streams of all callers, in each process. The same limit applies
    separately to KeepAlive streams."""
    calls: Annotated[Number, Field(ge=1, le=1_000_000)] = 10_000
    """Maximum number of calls in flight of all callers, in each process. Streams do not count."""
    unauthenticated_calls: Annotated[Number, Field(ge=1, le=1_000_000)] = 1_000
    """Maximum number of calls in flight of all callers without a credential, in each process, if there is a policy. The
    same limit applies separately to each kind of their streams."""
    call_bytes: Annotated[Number, Field(ge=MIB, le=64 * 1024 * MIB)] = 128 * MIB
    """Maximum total size of the requests in flight and of responses that are not read yet, in bytes, in each
    process."""
    services_per_owner: Annotated[Number, Field(ge=1, le=10_000_000)] = 10_000
    """Maximum number of services that one identity may own, in the whole registry."""
    # A change counts the service before and after it, which together may have 256 KiB: a burst is larger.
    change_bytes_per_second: Annotated[Number, Field(ge=2 * KIB, le=1024 * MIB)] = 128 * KIB
    """Sustained size of the changes to the services of one owner, in bytes a second, in the whole registry. A burst may
    be 256 times as large. Limits agents and status changes by probes, so that the history of changes holds a minute."""
    stream_idle_seconds: Annotated[Number, Field(ge=1, le=24 * 60 * 60)] = 36_000
    """Maximum time without a message on a KeepAlive stream, in seconds. The first message must arrive within a minute,
    or within this time if it is less."""

    def is_default(self, *names: str) -> bool:
        """Return whether none of these limits was set by the operator."""
        return self.model_fields_set.isdisjoint(names)
