"""``Identity``: the authenticated caller, and the context variable that holds it.

``admission/scope.py`` sets ``current_identity`` before a handler runs. Background work of the registry runs with its
default.
"""

import ipaddress
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

from registry_server.model.filters import Filter
from registry_server.model.record import Record
from registry_server.security.patterns import matches
from registry_server.security.visibility import Visibility


class Role(IntEnum):
    """Permissions of a caller; each role includes those before it."""

    NONE = 0
    """Public endpoints only."""
    VIEWER = 1
    """Reads everything."""
    AGENT = 2
    """Also writes and checks its own services, whose names match its patterns."""
    OPERATOR = 3
    """Also writes and checks the services of all owners, and runs cleanup."""
    ADMIN = 4
    """Everything."""

    @property
    def word(self) -> str:
        """Name of the role in policy files and messages."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one identity."""

    requests_per_second: float
    """Sustained rate of calls and ``KeepAlive`` messages."""
    burst: int
    """Maximum burst of calls and messages."""
    watches: int
    """Maximum number of open watches and event streams in each process."""
    services: int
    """Maximum number of services that it may own in the whole registry."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller."""

    name: str
    """Unique name, used as owner of services and in logs: the name of an API key, or the subject of a token or
    certificate; ``anonymous`` for callers without a credential."""
    role: Role
    method: str = "none"
    """How it was authenticated: ``api-key``, ``jwt``, ``certificate`` or ``none``."""
    patterns: tuple[str, ...] = ()
    """For agents: names of services that it may own, with ``*`` for any text."""
    limits: Limits | None = None
    """Individual limits; ``None`` = the defaults of the settings."""
    expires: float | None = None
    """Expiry of the credential in seconds since the epoch; ``None`` = never."""
    visibility: Visibility | None = None
    """The services that it sees; ``None`` = all."""

    def sees(self, record: Record) -> bool:
        """Return whether a service exists for the caller, as far as reads are concerned."""
        return self.visibility is None or self.visibility.includes(record)

    def restrict(self, filter_: Filter) -> Filter:
        """Return the filter of a read, joined with what the caller sees."""
        if self.visibility is None:
            return filter_
        return self.visibility.join(filter_, None if self.role >= Role.OPERATOR else self.name)

    @property
    def scope(self) -> str:
        """Identifies what the caller sees, in tokens and keys of answers; empty if it sees all services."""
        return "" if self.visibility is None else self.visibility.scope

    def may_own(self, name: str) -> bool:
        """Return whether the role and the name patterns allow writing a service of this name."""
        if self.role is not Role.AGENT:
            return self.role > Role.AGENT
        return any(matches(pattern, name) for pattern in self.patterns)

    def may_join(self, group: str) -> bool:
        """Return whether the role and the name patterns allow writing a service of this group.

        A group is authorised like a name: its services receive its traffic. ``X-*`` and ``X/*`` also admit the group
        ``X``, of which services with such names are replicas.
        """
        if self.role is not Role.AGENT or self.may_own(group):
            return self.may_own(group)
        return any(pattern.endswith(("-*", "/*")) and matches(pattern[:-2], group) for pattern in self.patterns)

    def claim(self) -> "Claim":
        """Return the ownership under which this identity writes services."""
        if self.method == "none":
            return NO_CLAIM
        agent = self.role is Role.AGENT
        return Claim(self.name, exclusive=agent, max_services=self.limits.services if agent and self.limits else 0)


_MAX_CACHED_ADDRESSES: Final = 4_096
"""Addresses whose network is cached, so that it is not computed again for each call."""
_IPV6_NETWORK_BITS: Final = 64
"""A single host may use all addresses of such a network (RFC 7421)."""

ANONYMOUS: Final = "anonymous"

UNCHECKED: Final = Identity(ANONYMOUS, Role.ADMIN)
"""Every caller where authentication is off, and the registry itself."""

current_identity: ContextVar[Identity] = ContextVar("current_identity", default=UNCHECKED)
"""Identity of the call being handled."""

NO_KEY: Final = ("none", "")
"""Key of calls that were not admitted yet, and of embedding programs."""
CALLER_KEY: Final[ContextVar[tuple[str, str]]] = ContextVar("caller_key", default=NO_KEY)
"""Key for the limits of the caller of the call being handled."""


def caller_key(identity: Identity, address: Callable[[], str]) -> tuple[str, str]:
    """Return the key for a caller's limits: its identity, or its address or IPv6 network if it has no credential."""
    if identity.method != "none":
        return identity.method, identity.name
    return "none", network_of(address())


def current_caller_key() -> tuple[str, str]:
    """Return the key for the limits of the current caller; all calls of an embedding program have the same."""
    return CALLER_KEY.get()


def network_of(address: str) -> str:
    """Return the network of an IPv6 address, and any other address itself."""
    return _ipv6_network(address) if ":" in address else address


@lru_cache(_MAX_CACHED_ADDRESSES)
def _ipv6_network(address: str) -> str:
    """Return the network of an address, the IPv4 address that it maps, or the text itself if it is not valid."""
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed), _IPV6_NETWORK_BITS), strict=False))


@dataclass(frozen=True, slots=True)
class Claim:
    """Ownership under which a service is written; the store compares it with the recorded owner."""

    owner: str = ""
    """Owner to record for a new service; empty = none."""
    exclusive: bool = False
    """Whether to also take over services without an owner, and reject services of another owner."""
    max_services: int = 0
    """Quota of services for the owner; 0 = unlimited."""


NO_CLAIM: Final = Claim()
"""Used by the registry itself, and by every caller where authentication is off."""


def owned_by_another(name: str) -> str:
    """Return the error text for a service of another owner, without naming the owner."""
    return f"service {name!r} is registered by another identity"


def caller_fields() -> dict[str, str]:
    """Return the identity of the current call as log fields; empty where authentication is off."""
    identity = current_identity.get()
    return {} if identity is UNCHECKED else {"identity": identity.name}
