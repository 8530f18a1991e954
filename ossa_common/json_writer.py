"""Conversion of messages to plain values in the JSON shape of OSSA, by their descriptors.

``registry_server.model.document`` writes services, the hot path, by hand; a test compares the two.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import copysign
from typing import Any, Final

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
    AnyFieldDescriptor,
    enum_word,
    json_key,
)

_ALWAYS_PRESENT: Final = frozenset({"name", "endpoint", "version"})
"""String fields that are included even if empty."""
_OMITTED_IF_EMPTY: Final = frozenset({"headers", "expected_statuses", "failure_threshold", "success_threshold"})
"""Number and list fields that are omitted if empty."""
_DECIMALS: Final = 2
"""Decimals of the average in statistics, as in the OSSA reference implementation."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A double, and so a JavaScript number, holds every integer up to here exactly.
_MAX_SAFE_INTEGER = 2**53
_MAX_CACHED_TIMES = 256  # a changed service contains the time of the change up to three times


def message_document(message: Message) -> dict[str, Any]:
    """Return the JSON form of a message as plain values for ``json.dumps``; unset fields are omitted."""
    document: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None or field.is_repeated:
            if value or not _is_omitted_if_empty(field):
                document[json_key(field)] = _field_value(field, value)
        elif message.HasField(field.name):
            if field.containing_oneof is not None:  # the probe of a health check
                document |= {PROBE_TYPE_KEY: field.name, **message_document(value)}
            else:
                document[json_key(field)] = _message_value(field, value)
    return document


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


def _is_omitted_if_empty(field: AnyFieldDescriptor) -> bool:
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        return field.name not in _ALWAYS_PRESENT
    return field.name in _OMITTED_IF_EMPTY


def _field_value(field: AnyFieldDescriptor, value: Any) -> Any:
    """Return the value of a repeated or scalar field."""
    if isinstance(value, Mapping):
        return {key: value[key] for key in sorted(value)}
    if field.is_repeated:
        return list(value) if field.message_type is None else [message_document(item) for item in value]
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    return round(value, _DECIMALS) if isinstance(value, float) else value


def _message_value(field: AnyFieldDescriptor, value: Message) -> Any:
    match value:
        case Duration():
            return duration_number(value, DURATIONS[field.name][1])
        case Timestamp():
            return time_text(value)
        case Struct():
            return plain_struct(value)
        case _:
            return message_document(value)
