"""Short ways to write messages: keyword arguments, and names in the place of enum values."""

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
"""A ``HealthStatus``, or its name: ``"healthy"`` and ``"HEALTH_STATUS_HEALTHY"`` are the same."""


class FilterFields(TypedDict, total=False):
    """The fields of a ``ServiceFilter`` as keyword arguments; its proto says what each means."""

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
    """The optional fields of a ``Service`` as keyword arguments, those of its ``metadata`` among them.

    ``capabilities`` are messages or texts such as ``"summarize"`` and ``"summarize@1.2.0"``. ``ttl`` is in seconds,
    0 = permanent. ``health_check`` is a message or the name of a kind: ``http``, ``grpc``, ``tcp``, ``heartbeat``,
    ``none``.
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


_METADATA = frozenset(field.name for field in Metadata.DESCRIPTOR.fields)


def make_service(name: str, endpoint: str, *, version: str, **fields: Unpack[ServiceFields]) -> Service:
    """Makes a ``Service`` for registration.

    Args:
        name: Unique name.
        endpoint: Absolute URL where it is reached.
        version: Version of the service, SemVer if possible.
        **fields: The rest; see ``ServiceFields``.

    Raises:
        ValueError: ``health_check`` names no kind of probe.
        TypeError: There is no such field.
    """
    service = Service(name=name, endpoint=endpoint, version=version, group=fields.pop("group", ""))
    for each in fields.pop("capabilities", ()):
        service.capabilities.append(_capability(each) if isinstance(each, str) else each)
    if "ttl" in fields:
        service.ttl.CopyFrom(duration(fields.pop("ttl")))
    if check := fields.pop("health_check", None):
        service.health_check.CopyFrom(_health_check(check) if isinstance(check, str) else check)
    if unknown := fields.keys() - _METADATA:
        raise TypeError(f"a service has no field {', '.join(sorted(unknown))}")
    if fields:
        service.metadata.CopyFrom(Metadata(**fields))  # type: ignore[misc] # the fields of Service are taken out
    return service


def make_filter(base: ServiceFilter | None, fields: FilterFields) -> ServiceFilter:
    """Makes a filter from a message, keyword arguments, or both; the arguments go on top.

    Raises:
        ValueError: A status or ``tag_match`` has no such name.
    """
    made = ServiceFilter()
    if base is not None:
        made.CopyFrom(base)
    if "health" in fields:
        statuses = fields["health"]
        made.health[:] = [status(each) for each in ([statuses] if isinstance(statuses, str | int) else statuses)]
    if "tag_match" in fields:
        match = fields["tag_match"]
        made.tag_match = TagMatch.Value(_full_name("TAG_MATCH", match)) if isinstance(match, str) else match
    rest = {key: value for key, value in fields.items() if key not in {"health", "tag_match"}}
    made.MergeFrom(ServiceFilter(**rest))  # type: ignore[arg-type] # TypedDicts lose the types of their values
    return made


def status(value: Status) -> HealthStatus.ValueType:
    """The ``HealthStatus`` of a name.

    Raises:
        ValueError: There is no such status.
    """
    return HealthStatus.Value(_full_name("HEALTH_STATUS", value)) if isinstance(value, str) else value


def consistency(value: Consistency.ValueType | str) -> Consistency.ValueType:
    """The ``Consistency`` of a name such as ``"strong"``.

    Raises:
        ValueError: There is no such consistency.
    """
    return Consistency.Value(_full_name("CONSISTENCY", value)) if isinstance(value, str) else value


def event_type(value: EventType.ValueType | str) -> EventType.ValueType:
    """The ``EventType`` of a name such as ``"service_registered"``.

    Raises:
        ValueError: There is no such type.
    """
    return EventType.Value(_full_name("EVENT_TYPE", value)) if isinstance(value, str) else value


def duration(seconds: float) -> Duration:
    """Seconds as a message, to the millisecond."""
    made = Duration()
    made.FromMilliseconds(round(seconds * 1000))
    return made


def _full_name(prefix: str, name: str) -> str:
    upper = name.upper()
    return upper if upper.startswith(f"{prefix}_") else f"{prefix}_{upper}"


def _capability(text: str) -> Capability:
    # Names of capabilities have no `@`.
    name, _, version = text.partition("@")
    return Capability(name=name, version=version)


def _health_check(kind: str) -> HealthCheck:
    if kind not in {field.name for field in HealthCheck.DESCRIPTOR.oneofs_by_name["probe"].fields}:
        raise ValueError(f"{kind!r} is no kind of health check; take http, grpc, tcp, heartbeat or none")
    made = HealthCheck()
    getattr(made, kind).SetInParent()
    return made
