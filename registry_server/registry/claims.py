"""What the caller may write: the names that its identity may own, and the groups that it may join."""

from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import PermissionDenied
from registry_server.security.identity import Claim, current_identity


def claim_on(*names: str) -> Claim:
    """Return the ownership under which the caller writes services of these names.

    Raises:
        PermissionDenied: The caller's name patterns do not match one of them.
    """
    identity = current_identity.get()
    for name in names:
        if not identity.may_own(name):
            raise PermissionDenied(f"{name!r} is not a name that this identity may own")
    return identity.claim()


def require_group(service: Service) -> None:
    """Check whether the caller may write services of this service's group, which defaults to the name.

    Raises:
        PermissionDenied: The caller's name patterns do not match the group.
    """
    if service.group not in ("", service.name) and not current_identity.get().may_join(service.group):
        raise PermissionDenied(f"{service.group!r} is not a group that this identity may join")
