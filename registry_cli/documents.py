"""Messages as JSON and YAML show them, and back: the shape of the REST API.

Keys in camelCase, statuses in lower case, times in ISO 8601, durations as numbers in the unit that the key names. What
``get -o yaml`` prints is what ``register -f`` takes. The shape is read off the descriptors of the messages; what is not
said there stands in the tables below. ``tests/unit/cli/test_documents.py`` holds it level with that of the server.
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

# Of two classes each, by the implementation of protobuf, of which the type stubs know one or the other.
_Descriptor: TypeAlias = Any
_EnumDescriptor: TypeAlias = Any
_FieldDescriptor: TypeAlias = Any

_SECOND: Final = 1_000_000_000
_MILLISECOND: Final = 1_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST_WHOLE: Final = 2**53
"""Up to here a double holds every whole number, and so does JavaScript."""

_DURATIONS: Final[Mapping[str, tuple[str, int]]] = {
    "ttl": ("ttlSeconds", _SECOND),
    "response_time": ("responseTime", _MILLISECOND),
    "interval": ("intervalMs", _MILLISECOND),
    "timeout": ("timeoutMs", _MILLISECOND),
    "degraded_after": ("degradedAfterMs", _MILLISECOND),
    "replication_lag": ("replicationLagMs", _MILLISECOND),
}
_REQUIRED: Final = frozenset({"name", "endpoint", "version"})
"""Texts that are there though they be empty."""
_OPTIONAL: Final = frozenset({"headers", "expected_statuses", "failure_threshold", "success_threshold"})
"""Numbers and lists that are left out where they are empty."""
_OUTPUT_ONLY: Final = frozenset({"registered_at", "updated_at", "revision", "status_changed_at"})
"""Of what was read before: ignored, so that it can be registered again."""
_DECIMALS: Final = 2

# A service has 64 KiB at most, and none of its values is smaller than a byte: beyond that somebody multiplies by
# aliases of YAML.
_MOST_VALUES: Final = 65_536
_DEEPEST: Final = 32
_INT32: Final = range(-(2**31), 2**31)
_MOST_VIOLATIONS: Final = 100
_TYPE: Final = "type"
"""Where the JSON shape has the kind of a health check, whose fields stand beside it."""
_PROBES: Final = tuple(field.name for field in HealthCheck.DESCRIPTOR.oneofs_by_name["probe"].fields)


def document(message: Message) -> dict[str, Any]:
    """The JSON shape of a message, ready for ``json.dumps``; what is unset is left out."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.containing_oneof is not None:  # the kind of a health check: its fields stand beside it
            if message.HasField(field.name):
                found |= {_TYPE: field.name, **document(value)}
        elif field.is_repeated:
            if value or field.name not in _OPTIONAL:
                found[field.json_name] = _repeated(field, value)
        elif field.message_type is not None:
            if message.HasField(field.name):
                key, shown = _single(field, value)
                found[key] = shown
        elif field.enum_type is not None:
            found[field.json_name] = word(field.enum_type, value)
        elif value or field.name in _REQUIRED or not (isinstance(value, str) or field.name in _OPTIONAL):
            found[field.json_name] = round(value, _DECIMALS) if isinstance(value, float) else value
    return found


def word(kind: _EnumDescriptor, value: int) -> str:
    """An enum value as JSON spells it: ``healthy`` for HEALTH_STATUS_HEALTHY. What is not known is ``unknown``."""
    known = kind.values_by_number.get(value) if value else None
    return known.name.removeprefix(_prefix(kind)).lower() if known else "unknown"


def time_text(timestamp: Timestamp) -> str:
    """A time in ISO 8601 UTC with milliseconds and ``Z``."""
    moment = _EPOCH + timedelta(seconds=timestamp.seconds, milliseconds=timestamp.nanos // _MILLISECOND)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def milliseconds(duration: Duration) -> float:
    """A duration as a number of milliseconds, whole if it is."""
    return _units(duration, _MILLISECOND)


def read_service(value: object) -> tuple[Service, list[Violation]]:
    """Reads a service from parsed JSON or YAML.

    Returns:
        What could be read of it, and all that is wrong with its shape. The rules of the contract are the registry's.
    """
    reader, service = _Reader(), Service()
    reader.message(value, "", service)
    return service, reader.violations


def _single(field: _FieldDescriptor, value: Any) -> tuple[str, Any]:
    if isinstance(value, Duration):
        key, unit = _DURATIONS[field.name]
        return key, _units(value, unit)
    if isinstance(value, Timestamp):
        return field.json_name, time_text(value)
    return field.json_name, _struct(value) if isinstance(value, Struct) else document(value)


def _repeated(field: _FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        return {key: value[key] for key in sorted(value)}
    return [document(item) for item in value] if field.message_type is not None else list(value)


def _struct(struct: Struct) -> dict[str, Any]:
    fields = struct.fields
    return {key: _value(fields[key]) for key in sorted(fields)}  # a map of protobuf has no order of its own


def _value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return _struct(value.struct_value)
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            whole = number.is_integer() and abs(number) <= _LARGEST_WHOLE
            return int(number) if whole and (number or math.copysign(1, number) > 0) else number
        case None | "null_value":
            return None
        case kind:
            return getattr(value, kind)


def _units(duration: Duration, unit: int) -> int | float:
    nanos = duration.seconds * _SECOND + duration.nanos
    return nanos / unit if nanos % unit else nanos // unit


def _is_map(field: _FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _prefix(kind: _EnumDescriptor) -> str:
    return str(kind.values_by_number[0].name).removesuffix("UNSPECIFIED")


class _Reader:
    """Fills messages from plain values; what does not fit is noted under its path, and reading goes on."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._values = 0

    def message(self, value: object, at: str, message: Message) -> None:
        """Fills a message from an object."""
        if not self._is_object(value, at):
            return
        fields = _fields(message.DESCRIPTOR)
        for key, item in value.items():
            here = f"{at}.{key}" if at else key
            field = fields.get(key)
            if field is None and not (key == _TYPE and isinstance(message, HealthCheck)):
                self._note(here, f"is not a field{_suggestion(key, fields)}")
            elif field is None or item is None or field.name in _OUTPUT_ONLY:
                continue
            elif field.containing_type is message.DESCRIPTOR:
                self._field(item, here, message, field)
        if isinstance(message, HealthCheck):
            self._probe(value, at, message)

    def _field(self, value: object, at: str, message: Message, field: _FieldDescriptor) -> None:
        target = getattr(message, field.name)
        if field.is_repeated:
            self._repeated(value, at, target, field)
        elif isinstance(target, Message):
            target.SetInParent()
            self._single(value, at, target, field)
        elif field.enum_type is not None:
            setattr(message, field.name, self._enum(value, at, field.enum_type))
        else:
            read = self._text if isinstance(target, str) else self._whole
            setattr(message, field.name, read(value, at))

    def _single(self, value: object, at: str, target: Message, field: _FieldDescriptor) -> None:
        match target:
            case Duration():
                self._duration(value, at, target, _DURATIONS[field.name][1])
            case Timestamp():
                self._time(value, at, target)
            case Struct():
                if self._is_object(value, at):
                    target.update(self._plain(value, at, 1))
            case _:
                self.message(value, at, target)

    def _repeated(self, value: object, at: str, target: Any, field: _FieldDescriptor) -> None:
        if _is_map(field):
            if self._is_object(value, at):
                target.update({key: self._text(item, f'{at}["{key}"]') for key, item in value.items()})
            return
        for index, item in enumerate(self._items(value, at)):
            here = f"{at}[{index}]"
            if field.message_type is not None:
                self.message(item, here, target.add())
            else:
                target.append(
                    self._text(item, here) if field.type == FieldDescriptor.TYPE_STRING else self._whole(item, here)
                )

    def _probe(self, value: Mapping[str, object], at: str, check: HealthCheck) -> None:
        """Reads the kind of a health check, whose fields stand beside it."""
        kind = value.get(_TYPE)
        if kind is not None and kind not in _PROBES:
            self._note(f"{at}.{_TYPE}", f"{kind!r} is not a kind of probe; use one of {', '.join(_PROBES)}")
            return
        probe = getattr(check, str(kind)) if kind is not None else None
        if probe is not None:
            probe.SetInParent()
        for key, field in _fields(HealthCheck.DESCRIPTOR).items():
            if field.containing_type is check.DESCRIPTOR or value.get(key) is None:
                continue
            if probe is not None and field.containing_type is probe.DESCRIPTOR:
                self._field(value[key], f"{at}.{key}", probe, field)
            else:
                self._note(f"{at}.{key}", "belongs to another type of health check")

    def _note(self, at: str, description: str) -> None:
        if len(self.violations) < _MOST_VIOLATIONS:
            self.violations.append(Violation(at or "service", description))

    def _is_object(self, value: object, at: str) -> TypeGuard[Mapping[str, object]]:
        if not isinstance(value, Mapping):
            self._note(at, f"must be an object, not {_kind(value)}")
            return False
        strange = next((key for key in value if not isinstance(key, str)), None)
        if strange is not None:
            self._note(at, f"has the key {strange!r}; keys must be text: write it in quotes")
        return strange is None

    def _items(self, value: object, at: str) -> list[object]:
        if isinstance(value, list):
            return value
        self._note(at, f"must be a list, not {_kind(value)}")
        return []

    def _text(self, value: object, at: str) -> str:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                self._note(at, "is not Unicode text: it has half of a surrogate pair")
            else:
                return value
        else:
            quotes = "; write it in quotes" if isinstance(value, int | float) else ""
            self._note(at, f"must be text, not {_kind(value)}{quotes}")
        return ""

    def _number(self, value: object, at: str) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._note(at, f"must be a number, not {_kind(value)}")
            return 0
        try:
            if math.isfinite(value):
                return value
        except OverflowError:  # a whole number beyond what a double holds
            pass
        self._note(at, "must be a finite number that a 64-bit float holds")
        return 0

    def _whole(self, value: object, at: str) -> int:
        number = self._number(value, at)
        if number != int(number) or int(number) not in _INT32:
            self._note(at, f"must be a whole number of 32 bits, not {_kind(value)}")
            return 0
        return int(number)

    def _enum(self, value: object, at: str, kind: _EnumDescriptor) -> int:
        text = self._text(value, at)
        if not isinstance(value, str):
            return 0
        known: dict[str, int] = {
            each.name.removeprefix(_prefix(kind)).lower(): each.number for each in kind.values if each.number
        }
        if text not in known:
            self._note(at, f"{text!r} is not a status; use one of {', '.join(known)}")
        return known.get(text, 0)

    def _duration(self, value: object, at: str, duration: Duration, unit: int) -> None:
        number = self._number(value, at)
        # Whole units are exact whatever their size; a float has no nanosecond left beyond some months.
        nanos = number * unit if isinstance(number, int) else round(number * unit)
        try:
            duration.FromNanoseconds(nanos)
        except ValueError:
            self._note(at, "is too long")
            return
        if number and not nanos:  # rounded to zero it could mean something else: a `ttlSeconds` of 0 is permanent
            self._note(at, "is shorter than a nanosecond")

    def _time(self, value: object, at: str, timestamp: Timestamp) -> None:
        try:
            timestamp.FromJsonString(self._text(value, at))
        except ValueError:
            self._note(at, f"{value!r} is not a time such as 2026-11-24T05:00:00.000Z")

    def _plain(self, value: object, at: str, depth: int) -> Any:
        """A value within a schema or details, checked."""
        self._values += 1
        if self._values > _MOST_VALUES:
            if self._values == _MOST_VALUES + 1:
                self._note(at, f"is too large: a service of 64 KiB cannot have more than {_MOST_VALUES} values")
            return None
        if depth > _DEEPEST:
            self._note(at, f"is nested more than {_DEEPEST} levels deep")
            return None
        if isinstance(value, Mapping):
            known = value if self._is_object(value, at) else {}
            return {self._text(key, at): self._plain(item, f"{at}.{key}", depth + 1) for key, item in known.items()}
        if isinstance(value, list):
            return [self._plain(item, f"{at}[{index}]", depth + 1) for index, item in enumerate(value)]
        if value is None or isinstance(value, bool):
            return value
        return self._number(value, at) if isinstance(value, int | float) else self._text(value, at)


def _fields(kind: _Descriptor) -> dict[str, _FieldDescriptor]:
    """The fields by their keys in JSON; those of each kind of probe beside the others."""
    found: dict[str, _FieldDescriptor] = {}
    for field in kind.fields:
        if field.containing_oneof is not None:
            found |= _fields(field.message_type)
        else:
            found[_DURATIONS[field.name][0] if _is_duration(field) else field.json_name] = field
    return found


def _is_duration(field: _FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == Duration.DESCRIPTOR.full_name


def _suggestion(key: str, fields: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(key, fields, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(fields)}"


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"the number {value:.10g}" if abs(value) < _LARGEST_WHOLE else "a number of this size"
    kinds: Mapping[type, str] = {bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
