"""Helpers that build messages from keyword arguments, and enum values from their names."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypedDict, Unpack

from google.protobuf.duration_pb2 import Duration

from registry_client.messages import (
    Capability,
    Consistency,
    EventType,
    HealthCheck,
    HealthStatus,
    Metadata,
    Service,
    ServiceFilter,
    TagMatch,
)

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
        merged.health[:] = [status(each) for each in ([statuses] if isinstance(statuses, str | int) else statuses)]
    if "tag_match" in fields:
        match = fields["tag_match"]
        merged.tag_match = TagMatch.Value(_full_name("TAG_MATCH", match)) if isinstance(match, str) else match
    remaining = {key: value for key, value in fields.items() if key not in {"health", "tag_match"}}
    merged.MergeFrom(ServiceFilter(**remaining))  # type: ignore[arg-type] # TypedDicts lose the types of their values
    return merged


def status(value: Status) -> HealthStatus.ValueType:
    """Return the ``HealthStatus`` of a name.

    Raises:
        ValueError: The name is not a status.
    """
    return HealthStatus.Value(_full_name("HEALTH_STATUS", value)) if isinstance(value, str) else value


def consistency(value: Consistency.ValueType | str) -> Consistency.ValueType:
    """Return the ``Consistency`` of a name such as ``"strong"``.

    Raises:
        ValueError: The name is not a consistency level.
    """
    return Consistency.Value(_full_name("CONSISTENCY", value)) if isinstance(value, str) else value


def event_type(value: EventType.ValueType | str) -> EventType.ValueType:
    """Return the ``EventType`` of a name such as ``"service_registered"``.

    Raises:
        ValueError: The name is not an event type.
    """
    return EventType.Value(_full_name("EVENT_TYPE", value)) if isinstance(value, str) else value


def duration(seconds: float) -> Duration:
    """Convert seconds into a ``Duration``, rounded to milliseconds."""
    message = Duration()
    message.FromMilliseconds(round(seconds * 1000))
    return message


def _full_name(prefix: str, name: str) -> str:
    upper = name.upper()
    return upper if upper.startswith(f"{prefix}_") else f"{prefix}_{upper}"


def _parse_capability(text: str) -> Capability:
    # The name of a capability cannot contain `@`.
    name, _, version = text.partition("@")
    return Capability(name=name, version=version)


def _default_health_check(kind: str) -> HealthCheck:
    if kind not in {field.name for field in HealthCheck.DESCRIPTOR.oneofs_by_name["probe"].fields}:
        raise ValueError(f"{kind!r} is not a probe type; use http, grpc, tcp, heartbeat or none")
    check = HealthCheck()
    getattr(check, kind).SetInParent()
    return check
