"""What the caller may write: the names that its identity may own, and the groups that it may join."""

from collections.abc import Mapping

from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import PermissionDenied, ServiceNotFound
from registry_server.model.record import Record
from registry_server.security.identity import Claim, current_identity


def is_hidden(name: str, records: Mapping[str, Record]) -> bool:
    """Return whether a name does not exist for the caller: it is of a service that it does not see.

    A name that is free does not exist either, for a caller that does not see all services and may not own it. So the
    answers to the two are the same.
    """
    identity = current_identity.get()
    if identity.visibility is None:
        return False
    record = records.get(name)
    return not (identity.may_own(name) if record is None else identity.visibility.includes(record))


def claim_on_existing(name: str, records: Mapping[str, Record]) -> Claim:
    """Return the ownership under which the caller changes a registered service.

    Raises:
        ServiceNotFound: The caller does not see the service.
        PermissionDenied: The caller's name patterns do not match its name.
    """
    if is_hidden(name, records):
        raise ServiceNotFound(name)
    return claim_on(name)


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
