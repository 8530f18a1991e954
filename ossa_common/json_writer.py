"""Conversion of messages to plain values in the JSON shape of OSSA, by their descriptors.

``registry_server.model.document`` writes services, the hot path, by hand; a test compares the two.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache, partial
from math import copysign
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from ossa_common.json_shape import (
    DURATIONS,
    NANOS_PER_MS,
    NANOS_PER_SECOND,
    PROBE_TYPE_KEY,
    AnyDescriptor,
    AnyFieldDescriptor,
    enum_word,
    json_key,
)

_ALWAYS_PRESENT: Final = frozenset({"name", "endpoint", "version"})
"""String fields that are included even if empty."""
_OMITTED_IF_EMPTY: Final = frozenset(
    {"headers", "expected_statuses", "failure_threshold", "success_threshold", "draining"}
)
"""Number, boolean and list fields that are omitted if empty."""
_DECIMALS: Final = 2
"""Decimals of the average in statistics, as in the OSSA reference implementation."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A double, and so a JavaScript number, holds every integer up to here exactly.
_MAX_SAFE_INTEGER = 2**53
_MAX_CACHED_TIMES = 256  # a changed service contains the time of the change up to three times


class _Field(NamedTuple):
    """How a field of one type of message is written."""

    name: str
    key: str
    """JSON key; empty for a probe, whose fields are in the object of the health check."""
    has_presence: bool
    """Whether the field is omitted if it is not set."""
    omitted_if_empty: bool
    convert: Callable[[Any], Any] | None
    """Converts the value; ``None`` if it is plain."""


def message_document(message: Message) -> dict[str, Any]:
    """Return the JSON form of a message as plain values for ``json.dumps``; unset fields are omitted."""
    document: dict[str, Any] = {}
    for name, key, has_presence, omitted_if_empty, convert in _fields_of(message.DESCRIPTOR):
        if has_presence and not message.HasField(name):
            continue
        value = getattr(message, name)
        if omitted_if_empty and not value:
            continue
        content = value if convert is None else convert(value)
        if key:
            document[key] = content
        else:
            document |= {PROBE_TYPE_KEY: name, **content}
    return document


@cache
def _fields_of(kind: AnyDescriptor) -> tuple[_Field, ...]:
    return tuple(
        _Field(
            field.name,
            "" if field.containing_oneof else json_key(field),
            has_presence=field.message_type is not None and not field.is_repeated,
            omitted_if_empty=field.name in _OMITTED_IF_EMPTY
            or (
                field.type == FieldDescriptor.TYPE_STRING
                and not field.is_repeated
                and field.name not in _ALWAYS_PRESENT
            ),
            convert=_converter_of(field),
        )
        for field in kind.fields
    )


def _converter_of(field: AnyFieldDescriptor) -> Callable[[Any], Any] | None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return lambda texts: {key: texts[key] for key in sorted(texts)}
    if field.is_repeated:
        return list if kind is None else lambda items: [message_document(item) for item in items]
    if field.enum_type is not None:
        return partial(enum_word, field.enum_type)
    if kind is None:
        return partial(round, ndigits=_DECIMALS) if field.type == FieldDescriptor.TYPE_DOUBLE else None
    if kind.full_name == Duration.DESCRIPTOR.full_name:
        return partial(duration_number, nanos_per_unit=DURATIONS[field.name][1])
    converter: Callable[[Any], Any] = _CONVERTERS.get(kind.full_name, message_document)
    return converter


def time_text(timestamp: Timestamp) -> str:
    """Return a time as ISO 8601 in UTC with milliseconds and ``Z``."""
    return _time_text(timestamp.seconds, timestamp.nanos // NANOS_PER_MS)


@lru_cache(maxsize=_MAX_CACHED_TIMES)
def _time_text(seconds: int, milliseconds: int) -> str:
    moment = _EPOCH + timedelta(seconds=seconds, milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def duration_number(duration: Duration, nanos_per_unit: int = NANOS_PER_MS) -> int | float:
    """Return a duration as a number of units, by default milliseconds; an integer if it is whole."""
    nanos = duration.seconds * NANOS_PER_SECOND + duration.nanos
    return nanos / nanos_per_unit if nanos % nanos_per_unit else nanos // nanos_per_unit


def plain_struct(struct: Struct) -> dict[str, Any]:
    """Return the content of a struct."""
    # Sorted, because a protobuf map is unordered and equal services must produce equal bytes.
    fields = struct.fields
    return {key: _plain_value(fields[key]) for key in sorted(fields)}


def _plain_value(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "struct_value":
        return plain_struct(value.struct_value)
    if kind == "number_value":
        return _plain_number(value.number_value)
    if kind == "list_value":
        return [_plain_value(item) for item in value.list_value.values]
    if kind == "bool_value":
        return value.bool_value
    return None


def _plain_number(number: float) -> int | float:
    whole = number.is_integer() and -_MAX_SAFE_INTEGER <= number <= _MAX_SAFE_INTEGER
    # An integer would lose the sign of -0.0, which protobuf keeps.
    return int(number) if whole and (number or copysign(1, number) > 0) else number


_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    Timestamp.DESCRIPTOR.full_name: time_text,
    Struct.DESCRIPTOR.full_name: plain_struct,
}
