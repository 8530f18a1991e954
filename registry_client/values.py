"""Helpers that build messages from keyword arguments, and convert enum values to and from their names."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict, TypeVar, Unpack

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from ossa.registry.v1.service_pb2 import (
    Capability,
    HealthCheck,
    HealthStatus,
    Metadata,
    Service,
    ServiceFilter,
    TagMatch,
)
from ossa_common.json_reader import read_service
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
    available: bool


class ServiceFields(TypedDict, total=False):
    """The optional fields of a ``Service`` and of its ``metadata`` as keyword arguments.

    ``capabilities`` are messages, strings such as ``"summarize"`` and ``"summarize@1.2.0"``, or dicts with the JSON
    form: ``{"name": "summarize", "inputs": {"type": "object"}}``. ``ttl`` is in seconds, 0 = permanent.
    ``health_check`` is a message or a probe type: ``http``, ``grpc``, ``tcp``, ``heartbeat``, ``none``. ``health`` is
    the status to begin with.
    """

    capabilities: Iterable[Capability | str | Mapping[str, Any]]
    group: str
    health: Status
    health_check: HealthCheck | str
    ttl: float
    description: str
    tags: Sequence[str]
    author: str
    documentation: str
    environment: str
    labels: Mapping[str, str]


_METADATA_FIELDS: Final = frozenset(field.name for field in Metadata.DESCRIPTOR.fields)


def make_service(name: str, endpoint: str, *, version: str, **fields: Unpack[ServiceFields]) -> Service:
    """Build a ``Service`` for registration.

    Args:
        name: Unique name.
        endpoint: Absolute URL of the service.
        version: Version of the service, SemVer if possible.
        **fields: The optional fields; see ``ServiceFields``.

    Raises:
        ValueError: A value is not valid, such as a ``health_check`` that is no probe type.
        TypeError: A field does not exist, or a value has the wrong type.
    """
    group = fields.pop("group", "")
    _check_types(Service.DESCRIPTOR, {"name": name, "endpoint": endpoint, "version": version, "group": group})
    service = Service(name=name, endpoint=endpoint, version=version, group=group)
    service.capabilities.extend(_parse_capabilities(fields.pop("capabilities", ())))
    if "ttl" in fields:
        service.ttl.CopyFrom(duration(fields.pop("ttl"), "ttl"))
    if "health" in fields:
        service.health.status = enum_value(HealthStatus, fields.pop("health"), "health")
    if check := fields.pop("health_check", None):
        service.health_check.CopyFrom(_default_health_check(check) if isinstance(check, str) else check)
    if unknown := fields.keys() - _METADATA_FIELDS:
        raise TypeError(f"a service has no field {', '.join(sorted(unknown))}")
    if fields:
        _check_types(Metadata.DESCRIPTOR, fields)
        service.metadata.CopyFrom(Metadata(**fields))  # type: ignore[misc] # only the fields of Metadata remain
    return service


def make_filter(base: ServiceFilter | None, fields: FilterFields) -> ServiceFilter:
    """Build a filter from a message, keyword arguments, or both; arguments override fields of the message.

    Raises:
        ValueError: A status or ``tag_match`` is not a valid name.
        TypeError: A field does not exist, or a value has the wrong type.
    """
    if unknown := fields.keys() - ServiceFilter.DESCRIPTOR.fields_by_name.keys():
        raise TypeError(f"a filter has no field {', '.join(sorted(unknown))}")
    merged = ServiceFilter()
    if base is not None:
        merged.CopyFrom(base)
    if "health" in fields:
        statuses = fields["health"]
        statuses = [statuses] if isinstance(statuses, str | int) else statuses
        merged.health[:] = [enum_value(HealthStatus, each, "health") for each in statuses]
    if "tag_match" in fields:
        merged.tag_match = enum_value(TagMatch, fields["tag_match"], "tag_match")
    remaining = {key: value for key, value in fields.items() if key not in {"health", "tag_match"}}
    _check_types(ServiceFilter.DESCRIPTOR, remaining)
    merged.MergeFrom(ServiceFilter(**remaining))  # type: ignore[arg-type] # TypedDicts lose the types of their values
    return merged


def enum_value(enum: "_EnumTypeWrapper[_Value]", value: _Value | str, field: str) -> _Value:
    """Return the value of an enum by its name, with or without the prefix: ``"healthy"``, ``"HEALTH_STATUS_HEALTHY"``.

    Raises:
        ValueError: The enum has no such value; the message names the field.
    """
    if not isinstance(value, str):
        return value
    for name, number in enum.items():
        if value.upper() in (name, name.removeprefix(_prefix(enum))):
            return number
    names = ", ".join(enum_name(enum, number) for number in enum.values() if number)
    raise ValueError(f"{field}: {value!r} is not a {enum.DESCRIPTOR.name}; use one of {names}")


def enum_name(enum: "_EnumTypeWrapper[_Value]", value: int) -> str:
    """Return the name of a value that ``enum_value`` accepts: ``enum_name(HealthStatus, 1)`` is ``"healthy"``.

    A value that a newer registry added is returned as a number.
    """
    descriptor = enum.DESCRIPTOR.values_by_number.get(value)
    return descriptor.name.removeprefix(_prefix(enum)).lower() if descriptor else str(value)


def duration(seconds: float, name: str = "the duration") -> Duration:
    """Convert seconds into a ``Duration``, rounded to milliseconds.

    Raises:
        TypeError: The value is not a number.
        ValueError: The value is not finite.
    """
    if not isinstance(seconds, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {seconds!r}")
    if not math.isfinite(seconds):
        raise ValueError(f"{name} must be a finite number of seconds, not {seconds}")
    message = Duration()
    message.FromMilliseconds(round(seconds * 1000))
    return message


def _prefix(enum: "_EnumTypeWrapper[Any]") -> str:
    return enum.DESCRIPTOR.values[0].name.removesuffix("UNSPECIFIED")


def _check_types(kind: Descriptor, fields: Mapping[str, object]) -> None:
    """Check the values of text fields, for which protobuf's own errors do not name the field.

    protobuf also takes text for a list of its characters.
    """
    for name, value in fields.items():
        field = kind.fields_by_name[name]
        if field.message_type is not None:  # a map with keys and values of text
            if not isinstance(value, Mapping):
                raise TypeError(f"{name} must be a dict, not {value!r}")
            for key, item in value.items():
                _check_text(f"a key of {name}", key)
                _check_text(f"{name}[{key!r}]", item)
        elif field.is_repeated:
            if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
                raise TypeError(f"{name} must be a list of str, such as {[str(value)]!r}, not {value!r}")
            for index, item in enumerate(value):
                _check_text(f"{name}[{index}]", item)
        elif field.type == FieldDescriptor.TYPE_STRING:
            _check_text(name, value)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        example = f", such as {str(value)!r}" if isinstance(value, int | float) else ""
        raise TypeError(f"{name} must be a str{example}, not {value!r}")


def _parse_capabilities(items: Iterable[Capability | str | Mapping[str, Any]]) -> list[Capability]:
    if isinstance(items, str | bytes | Mapping | Message):
        raise TypeError(f"capabilities must be a list, not {items!r}; use [{items!r}]")
    found: list[Capability] = []
    for index, item in enumerate(items):
        match item:
            case Capability():
                found.append(item)
            case str():
                # The name of a capability cannot contain `@`.
                name, _, version = item.partition("@")
                found.append(Capability(name=name, version=version))
            case Mapping():
                service, violations = read_service({"capabilities": [_to_json(item)]})
                here = f"capabilities[{index}]"
                if violations:
                    problems = "; ".join(f"{field}: {problem}" for field, problem in violations)
                    raise ValueError(problems.replace("capabilities[0]", here))
                found += service.capabilities
            case _:
                raise TypeError(f"capabilities[{index}] must be a str, a dict or a Capability, not {item!r}")
    return found


def _to_json(value: object) -> object:
    """Replace other mappings and tuples, which the reader of JSON does not accept."""
    match value:
        case Mapping():
            return {key: _to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [_to_json(item) for item in value]
    return value


def _default_health_check(kind: str) -> HealthCheck:
    if kind not in PROBE_TYPES:
        raise ValueError(f"health_check: {kind!r} is not a probe type; use one of {', '.join(PROBE_TYPES)}")
    check = HealthCheck()
    getattr(check, kind).SetInParent()
    return check
