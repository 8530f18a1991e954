"""The permissions that RPCs (``rpc/service.py``) and routes (``gateway/routes.py``) require of their callers."""

from typing import Final, NamedTuple

from registry_server.config.security import PUBLIC_PARTS
from registry_server.security.identity import Role


class Permission(NamedTuple):
    """Permission required of a caller."""

    min_role: Role
    """Lowest role with the permission. The use cases and the store restrict agents to their own services."""
    part: str = ""
    """Entry in ``security.public`` that waives the role; empty = none."""


READ: Final = Permission(Role.VIEWER)
WRITE_OWN: Final = Permission(Role.AGENT)
OPERATE: Final = Permission(Role.OPERATOR)
HEALTH, METRICS, DOCS, REFLECTION = (Permission(Role.VIEWER, part) for part in PUBLIC_PARTS)
