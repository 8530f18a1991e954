"""Conversion between messages and JSON or YAML documents in the format of the REST API.

Keys are in camelCase, statuses in lower case, times in ISO 8601; durations are numbers in the unit that the key names.
``register -f`` accepts the output of ``get -o yaml``. The format is derived from the message descriptors, and from the
tables below for the exceptions. ``tests/unit/cli/test_documents.py`` compares it with the format of the server.
"""

import difflib
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias, TypeGuard

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from registry_client import HealthCheck, Service, Violation

# Each has two classes, one for each implementation of protobuf, and the type stubs declare only one of them.
_Descriptor: TypeAlias = Any
_EnumDescriptor: TypeAlias = Any
_FieldDescriptor: TypeAlias = Any

_NANOS_PER_SECOND: Final = 1_000_000_000
_NANOS_PER_MILLISECOND: Final = 1_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SAFE_INTEGER: Final = 2**53
"""Largest integer up to which a double, and so JavaScript, represents all integers exactly."""

_DURATION_KEYS: Final[Mapping[str, tuple[str, int]]] = {
    "ttl": ("ttlSeconds", _NANOS_PER_SECOND),
    "response_time": ("responseTime", _NANOS_PER_MILLISECOND),
    "interval": ("intervalMs", _NANOS_PER_MILLISECOND),
    "timeout": ("timeoutMs", _NANOS_PER_MILLISECOND),
    "degraded_after": ("degradedAfterMs", _NANOS_PER_MILLISECOND),
    "replication_lag": ("replicationLagMs", _NANOS_PER_MILLISECOND),
}
_ALWAYS_PRESENT: Final = frozenset({"name", "endpoint", "version"})
"""String fields that are included even if empty."""
_OMIT_IF_EMPTY: Final = frozenset({"headers", "expected_statuses", "failure_threshold", "success_threshold"})
"""Number and list fields that are omitted if empty."""
_OUTPUT_ONLY: Final = frozenset({"registered_at", "updated_at", "revision", "status_changed_at"})
"""Ignored in input, so that the output of ``get`` can be registered again."""
_DECIMALS: Final = 2
"""Decimal places of the averages in statistics."""

# A service has at most 64 KiB, and each value takes at least a byte. More values mean that YAML aliases multiply.
_MAX_VALUES: Final = 65_536
_MAX_DEPTH: Final = 32
_INT32: Final = range(-(2**31), 2**31)
_MAX_VIOLATIONS: Final = 100
_PROBE_TYPE_KEY: Final = "type"
"""Key of the probe type of a health check; the fields of the probe are in the same object."""
_PROBE_TYPES: Final = tuple(field.name for field in HealthCheck.DESCRIPTOR.oneofs_by_name["probe"].fields)


def document(message: Message) -> dict[str, Any]:
    """Return a message as a JSON document for ``json.dumps``; unset fields are omitted."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.containing_oneof is not None:  # the probe of a health check
            if message.HasField(field.name):
                result |= {_PROBE_TYPE_KEY: field.name, **document(value)}
        elif field.is_repeated:
            if value or field.name not in _OMIT_IF_EMPTY:
                result[field.json_name] = _format_repeated(field, value)
        elif field.message_type is not None:
            if message.HasField(field.name):
                key, content = _format_single(field, value)
                result[key] = content
        elif field.enum_type is not None:
            result[field.json_name] = enum_text(field.enum_type, value)
        elif value or field.name in _ALWAYS_PRESENT or not (isinstance(value, str) or field.name in _OMIT_IF_EMPTY):
            result[field.json_name] = round(value, _DECIMALS) if isinstance(value, float) else value
    return result


def enum_text(kind: _EnumDescriptor, value: int) -> str:
    """Return an enum value in JSON: ``healthy`` for HEALTH_STATUS_HEALTHY. Unknown values are ``unknown``."""
    known = kind.values_by_number.get(value) if value else None
    return known.name.removeprefix(_prefix(kind)).lower() if known else "unknown"


def time_text(timestamp: Timestamp) -> str:
    """Return a time in ISO 8601 UTC with milliseconds and ``Z``."""
    moment = _EPOCH + timedelta(seconds=timestamp.seconds, milliseconds=timestamp.nanos // _NANOS_PER_MILLISECOND)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def milliseconds(duration: Duration) -> float:
    """Return a duration in milliseconds, as an integer if it is a whole number."""
    return _units(duration, _NANOS_PER_MILLISECOND)


def read_service(value: object) -> tuple[Service, list[Violation]]:
    """Read a service from parsed JSON or YAML.

    Returns:
        The service, as far as it could be read, and all errors in the structure of the document. The registry validates
        the values.
    """
    reader, service = _Reader(), Service()
    reader.read_message(value, "", service)
    return service, reader.violations


def _format_single(field: _FieldDescriptor, value: Any) -> tuple[str, Any]:
    if isinstance(value, Duration):
        key, unit = _DURATION_KEYS[field.name]
        return key, _units(value, unit)
    if isinstance(value, Timestamp):
        return field.json_name, time_text(value)
    return field.json_name, _format_struct(value) if isinstance(value, Struct) else document(value)


def _format_repeated(field: _FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        return {key: value[key] for key in sorted(value)}
    return [document(item) for item in value] if field.message_type is not None else list(value)


def _format_struct(struct: Struct) -> dict[str, Any]:
    fields = struct.fields
    return {key: _format_value(fields[key]) for key in sorted(fields)}  # protobuf maps are unordered


def _format_value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _format_struct(value.struct_value)
        case "list_value":
            return [_format_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            is_integer = number.is_integer() and abs(number) <= _MAX_SAFE_INTEGER
            return int(number) if is_integer and (number or math.copysign(1, number) > 0) else number
        case None | "null_value":
            return None
        case kind:
            return getattr(value, kind)


def _units(duration: Duration, unit: int) -> int | float:
    nanos = duration.seconds * _NANOS_PER_SECOND + duration.nanos
    return nanos / unit if nanos % unit else nanos // unit


def _is_map(field: _FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _prefix(kind: _EnumDescriptor) -> str:
    return str(kind.values_by_number[0].name).removesuffix("UNSPECIFIED")


class _Reader:
    """Fills messages from plain values; records each error with its path and continues."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._values = 0

    def read_message(self, value: object, path: str, message: Message) -> None:
        """Fill a message from an object."""
        if not self._is_object(value, path):
            return
        fields = _fields(message.DESCRIPTOR)
        for key, item in value.items():
            item_path = f"{path}.{key}" if path else key
            field = fields.get(key)
            if field is None and not (key == _PROBE_TYPE_KEY and isinstance(message, HealthCheck)):
                self._add_violation(item_path, f"is not a field{_suggestion(key, fields)}")
            elif field is None or item is None or field.name in _OUTPUT_ONLY:
                continue
            elif field.containing_type is message.DESCRIPTOR:
                self._read_field(item, item_path, message, field)
        if isinstance(message, HealthCheck):
            self._read_probe(value, path, message)

    def _read_field(self, value: object, path: str, message: Message, field: _FieldDescriptor) -> None:
        target = getattr(message, field.name)
        if field.is_repeated:
            self._read_repeated(value, path, target, field)
        elif isinstance(target, Message):
            target.SetInParent()
            self._read_single(value, path, target, field)
        elif field.enum_type is not None:
            setattr(message, field.name, self._read_enum(value, path, field.enum_type))
        else:
            read = self._read_text if isinstance(target, str) else self._read_integer
            setattr(message, field.name, read(value, path))

    def _read_single(self, value: object, path: str, target: Message, field: _FieldDescriptor) -> None:
        match target:
            case Duration():
                self._read_duration(value, path, target, _DURATION_KEYS[field.name][1])
            case Timestamp():
                self._read_time(value, path, target)
            case Struct():
                if self._is_object(value, path):
                    target.update(self._read_plain(value, path, 1))
            case _:
                self.read_message(value, path, target)

    def _read_repeated(self, value: object, path: str, target: Any, field: _FieldDescriptor) -> None:
        if _is_map(field):
            if self._is_object(value, path):
                target.update({key: self._read_text(item, f'{path}["{key}"]') for key, item in value.items()})
            return
        for index, item in enumerate(self._read_list(value, path)):
            item_path = f"{path}[{index}]"
            if field.message_type is not None:
                self.read_message(item, item_path, target.add())
            else:
                target.append(
                    self._read_text(item, item_path)
                    if field.type == FieldDescriptor.TYPE_STRING
                    else self._read_integer(item, item_path)
                )

    def _read_probe(self, value: Mapping[str, object], path: str, check: HealthCheck) -> None:
        """Read the probe of a health check, whose fields are in the same object."""
        kind = value.get(_PROBE_TYPE_KEY)
        if kind is not None and kind not in _PROBE_TYPES:
            self._add_violation(
                f"{path}.{_PROBE_TYPE_KEY}", f"{kind!r} is not a probe type; use one of {', '.join(_PROBE_TYPES)}"
            )
            return
        probe = getattr(check, str(kind)) if kind is not None else None
        if probe is not None:
            probe.SetInParent()
        for key, field in _fields(HealthCheck.DESCRIPTOR).items():
            if field.containing_type is check.DESCRIPTOR or value.get(key) is None:
                continue
            if probe is not None and field.containing_type is probe.DESCRIPTOR:
                self._read_field(value[key], f"{path}.{key}", probe, field)
            else:
                self._add_violation(f"{path}.{key}", "belongs to another probe type")

    def _add_violation(self, path: str, description: str) -> None:
        if len(self.violations) < _MAX_VIOLATIONS:
            self.violations.append(Violation(path or "service", description))

    def _is_object(self, value: object, path: str) -> TypeGuard[Mapping[str, object]]:
        if not isinstance(value, Mapping):
            self._add_violation(path, f"must be an object, not {_describe(value)}")
            return False
        invalid_key = next((key for key in value if not isinstance(key, str)), None)
        if invalid_key is not None:
            self._add_violation(path, f"has the key {invalid_key!r}; keys must be text: put it in quotes")
        return invalid_key is None

    def _read_list(self, value: object, path: str) -> list[object]:
        if isinstance(value, list):
            return value
        self._add_violation(path, f"must be a list, not {_describe(value)}")
        return []

    def _read_text(self, value: object, path: str) -> str:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                self._add_violation(path, "is not valid Unicode: it contains a lone surrogate")
            else:
                return value
        else:
            quotes = "; put it in quotes" if isinstance(value, int | float) else ""
            self._add_violation(path, f"must be text, not {_describe(value)}{quotes}")
        return ""

    def _read_number(self, value: object, path: str) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._add_violation(path, f"must be a number, not {_describe(value)}")
            return 0
        try:
            if math.isfinite(value):
                return value
        except OverflowError:  # an integer that a double cannot represent
            pass
        self._add_violation(path, "must be a finite number in the range of a 64-bit float")
        return 0

    def _read_integer(self, value: object, path: str) -> int:
        number = self._read_number(value, path)
        if number != int(number) or int(number) not in _INT32:
            self._add_violation(path, f"must be a 32-bit integer, not {_describe(value)}")
            return 0
        return int(number)

    def _read_enum(self, value: object, path: str, kind: _EnumDescriptor) -> int:
        text = self._read_text(value, path)
        if not isinstance(value, str):
            return 0
        numbers: dict[str, int] = {
            each.name.removeprefix(_prefix(kind)).lower(): each.number for each in kind.values if each.number
        }
        if text not in numbers:
            self._add_violation(path, f"{text!r} is not a status; use one of {', '.join(numbers)}")
        return numbers.get(text, 0)

    def _read_duration(self, value: object, path: str, duration: Duration, unit: int) -> None:
        number = self._read_number(value, path)
        # Integers are exact at any size; a float loses nanosecond precision beyond a few months.
        nanos = number * unit if isinstance(number, int) else round(number * unit)
        try:
            duration.FromNanoseconds(nanos)
        except ValueError:
            self._add_violation(path, "is too long")
            return
        if number and not nanos:  # must not be rounded to 0: `ttlSeconds: 0` means permanent
            self._add_violation(path, "is shorter than a nanosecond")

    def _read_time(self, value: object, path: str, timestamp: Timestamp) -> None:
        try:
            timestamp.FromJsonString(self._read_text(value, path))
        except ValueError:
            self._add_violation(path, f"{value!r} is not a time such as 2026-11-24T05:00:00.000Z")

    def _read_plain(self, value: object, path: str, depth: int) -> Any:
        """Check a value within a schema or ``details``, and return a copy of it."""
        self._values += 1
        if self._values > _MAX_VALUES:
            if self._values == _MAX_VALUES + 1:
                self._add_violation(path, f"is too large: a service may have at most {_MAX_VALUES} values")
            return None
        if depth > _MAX_DEPTH:
            self._add_violation(path, f"is nested more than {_MAX_DEPTH} levels deep")
            return None
        if isinstance(value, Mapping):
            entries = value if self._is_object(value, path) else {}
            return {
                self._read_text(key, path): self._read_plain(item, f"{path}.{key}", depth + 1)
                for key, item in entries.items()
            }
        if isinstance(value, list):
            return [self._read_plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        if value is None or isinstance(value, bool):
            return value
        return self._read_number(value, path) if isinstance(value, int | float) else self._read_text(value, path)


def _fields(kind: _Descriptor) -> dict[str, _FieldDescriptor]:
    """Return the fields of a message by their JSON keys, including the fields of all probe types."""
    fields: dict[str, _FieldDescriptor] = {}
    for field in kind.fields:
        if field.containing_oneof is not None:
            fields |= _fields(field.message_type)
        else:
            fields[_DURATION_KEYS[field.name][0] if _is_duration(field) else field.json_name] = field
    return fields


def _is_duration(field: _FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == Duration.DESCRIPTOR.full_name


def _suggestion(key: str, fields: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, fields, n=1)
    return f"; did you mean {close[0]}?" if close else f"; the fields are {', '.join(fields)}"


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value:.10g}" if abs(value) < _MAX_SAFE_INTEGER else "a number of this size"
    names: Mapping[type, str] = {bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
