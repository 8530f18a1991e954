"""Who calls: ``Identity``, and where the rest of the server finds it.

Both transports set ``current_identity`` in the one place that stands around every handler (``rpc/gate.py``,
``gateway/middleware.py``), before the handler runs. Work that the registry does on its own account has the default.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from registry_server.security.patterns import matches


class Role(IntEnum):
    """What somebody may do; each role may do all that those before it may."""

    NONE = 0
    """Nothing but what is public."""
    VIEWER = 1
    """Reads everything."""
    AGENT = 2
    """Registers, changes, beats and removes its own services, whose names match its patterns."""
    OPERATOR = 3
    """Does the same with any service, reports health and cleans up."""
    ADMIN = 4
    """Everything."""

    @property
    def word(self) -> str:
        """The name in the policy file and in messages."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one identity may have."""

    requests_per_second: float
    """Calls, and messages of ``KeepAlive``, in the long run."""
    burst: int
    """Most of them at once."""
    watches: int
    """Most watches and event streams at a time, in each process."""
    services: int
    """Most services that it may own, in the whole registry."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who calls."""

    name: str
    """Unique name, which owns services and stands in logs: that of a key, the subject of a token or of a certificate;
    ``anonymous`` for callers without a credential."""
    role: Role
    method: str = "none"
    """How it was told: ``api-key``, ``jwt``, ``certificate`` or ``none``."""
    patterns: tuple[str, ...] = ()
    """For agents: names of services that it may have, with ``*`` for any text."""
    limits: Limits | None = None
    """Its own limits; ``None`` = the general ones."""
    expires: float | None = None
    """When the credential ends, in seconds since the epoch; ``None`` = never."""

    def may_have(self, name: str) -> bool:
        """Whether a service of this name may be its own, as far as the name tells."""
        if self.role is not Role.AGENT:
            return self.role > Role.AGENT
        return any(matches(pattern, name) for pattern in self.patterns)

    def claim(self) -> "Claim":
        """On whose account it writes a service."""
        if self.method == "none":
            return NO_CLAIM
        agent = self.role is Role.AGENT
        return Claim(self.name, exclusive=agent, most=self.limits.services if agent and self.limits else 0)


ANONYMOUS: Final = "anonymous"

UNCHECKED: Final = Identity(ANONYMOUS, Role.ADMIN)
"""Everybody, where nobody is asked who they are; and the registry itself."""

current_identity: ContextVar[Identity] = ContextVar("current_identity", default=UNCHECKED)
"""Who makes the call that is being handled."""


@dataclass(frozen=True, slots=True)
class Claim:
    """On whose account a service is written: what the store compares with the owner that it keeps."""

    owner: str = ""
    """Becomes the owner of a new service; empty: nobody does."""
    exclusive: bool = False
    """Whether it becomes the owner of a service that has none, too, and a service of another owner is refused."""
    most: int = 0
    """Most services that the owner may have; 0 = any number."""


NO_CLAIM: Final = Claim()
"""Of the registry itself, and of everybody where nobody is asked who they are."""


def of_another(name: str) -> str:
    """What somebody is told whose write meets the service of another owner; who that is, is nobody's business."""
    return f"service {name!r} is registered by another identity"


def caller_fields() -> dict[str, str]:
    """Who makes the call that is handled now, for a line of the log; nothing where nobody has to say."""
    identity = current_identity.get()
    return {} if identity is UNCHECKED else {"identity": identity.name}
