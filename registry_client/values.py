"""Helpers that build messages from keyword arguments, and enum values from their names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypedDict, TypeVar, Unpack

from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1.service_pb2 import (
    Capability,
    HealthCheck,
    HealthStatus,
    Metadata,
    Service,
    ServiceFilter,
    TagMatch,
)
from ossa_common.json_shape import PROBE_TYPES

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper  # only in the type stubs

_Value = TypeVar("_Value", bound=int)

Status: TypeAlias = HealthStatus.ValueType | str
"""A ``HealthStatus`` or its name; ``"healthy"`` and ``"HEALTH_STATUS_HEALTHY"`` are equivalent."""


class FilterFields(TypedDict, total=False):
    """The fields of a ``ServiceFilter`` as keyword arguments; its proto file documents them."""

    name_pattern: str
    capability: str
    capability_version: str
    health: Status | Iterable[Status]
    tags: Sequence[str]
    tag_match: TagMatch.ValueType | str
    version: str
    environment: str
    group: str
    labels: Mapping[str, str]


class ServiceFields(TypedDict, total=False):
    """The optional fields of a ``Service`` and of its ``metadata`` as keyword arguments.

    ``capabilities`` are messages or strings such as ``"summarize"`` and ``"summarize@1.2.0"``. ``ttl`` is in seconds,
    0 = permanent. ``health_check`` is a message or a probe type: ``http``, ``grpc``, ``tcp``, ``heartbeat``, ``none``.
    """

    capabilities: Iterable[Capability | str]
    group: str
    health_check: HealthCheck | str
    ttl: float
    description: str
    tags: Sequence[str]
    author: str
    documentation: str
    environment: str
    labels: Mapping[str, str]


_METADATA_FIELDS = frozenset(field.name for field in Metadata.DESCRIPTOR.fields)


def make_service(name: str, endpoint: str, *, version: str, **fields: Unpack[ServiceFields]) -> Service:
    """Build a ``Service`` for registration.

    Args:
        name: Unique name.
        endpoint: Absolute URL of the service.
        version: Version of the service, SemVer if possible.
        **fields: The optional fields; see ``ServiceFields``.

    Raises:
        ValueError: ``health_check`` is not a probe type.
        TypeError: A field does not exist.
    """
    service = Service(name=name, endpoint=endpoint, version=version, group=fields.pop("group", ""))
    for item in fields.pop("capabilities", ()):
        service.capabilities.append(_parse_capability(item) if isinstance(item, str) else item)
    if "ttl" in fields:
        service.ttl.CopyFrom(duration(fields.pop("ttl")))
    if check := fields.pop("health_check", None):
        service.health_check.CopyFrom(_default_health_check(check) if isinstance(check, str) else check)
    if unknown := fields.keys() - _METADATA_FIELDS:
        raise TypeError(f"a service has no field {', '.join(sorted(unknown))}")
    if fields:
        service.metadata.CopyFrom(Metadata(**fields))  # type: ignore[misc] # only the fields of Metadata remain
    return service


def make_filter(base: ServiceFilter | None, fields: FilterFields) -> ServiceFilter:
    """Build a filter from a message, keyword arguments, or both; arguments override fields of the message.

    Raises:
        ValueError: A status or ``tag_match`` is not a valid name.
    """
    merged = ServiceFilter()
    if base is not None:
        merged.CopyFrom(base)
    if "health" in fields:
        statuses = fields["health"]
        statuses = [statuses] if isinstance(statuses, str | int) else statuses
        merged.health[:] = [enum_value(HealthStatus, each) for each in statuses]
    if "tag_match" in fields:
        merged.tag_match = enum_value(TagMatch, fields["tag_match"])
    remaining = {key: value for key, value in fields.items() if key not in {"health", "tag_match"}}
    merged.MergeFrom(ServiceFilter(**remaining))  # type: ignore[arg-type] # TypedDicts lose the types of their values
    return merged


def enum_value(enum: "_EnumTypeWrapper[_Value]", value: _Value | str) -> _Value:
    """Return the value of an enum by its name, with or without the prefix: ``"healthy"``, ``"HEALTH_STATUS_HEALTHY"``.

    Raises:
        ValueError: The enum has no such value.
    """
    if not isinstance(value, str):
        return value
    prefix = enum.DESCRIPTOR.values[0].name.removesuffix("UNSPECIFIED")
    return enum.Value(prefix + value.upper().removeprefix(prefix))


def status_after_maintenance(service: Service) -> HealthStatus.ValueType:
    """Return the status with which a service leaves maintenance: unknown until its next probe, if it is probed."""
    if service.health_check.WhichOneof("probe") == "heartbeat":
        return HealthStatus.HEALTH_STATUS_HEALTHY
    return HealthStatus.HEALTH_STATUS_UNKNOWN


def duration(seconds: float) -> Duration:
    """Convert seconds into a ``Duration``, rounded to milliseconds."""
    message = Duration()
    message.FromMilliseconds(round(seconds * 1000))
    return message


def _parse_capability(text: str) -> Capability:
    # The name of a capability cannot contain `@`.
    name, _, version = text.partition("@")
    return Capability(name=name, version=version)


def _default_health_check(kind: str) -> HealthCheck:
    if kind not in PROBE_TYPES:
        raise ValueError(f"{kind!r} is not a probe type; use one of {', '.join(PROBE_TYPES)}")
    check = HealthCheck()
    getattr(check, kind).SetInParent()
    return check
