"""Strict conversion of parsed JSON or YAML to messages. Each violation is collected with its path.

How the members of an object are read is derived from the message descriptors, once for each type of message.
"""

import difflib
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.service_pb2 import HealthCheck, Service
from ossa_common.json_shape import (
    DURATIONS,
    OUTPUT_ONLY,
    PROBE_TYPE_KEY,
    PROBE_TYPES,
    AnyDescriptor,
    AnyFieldDescriptor,
    json_key,
    json_keys,
)
from ossa_common.json_values import ValueReader
from ossa_common.violations import Violation, inside, member, quoted

_MAX_MISTYPED: Final = 64
"""Maximum length of an unknown key that is compared with the fields."""

_SCHEMAS: Final = frozenset({"inputs", "outputs"})
"""Fields that contain a JSON Schema."""

_Read: TypeAlias = Callable[[ValueReader, Any, str, Any], None]
"""Reads a value that is not null into a field of a message. Arguments: reader, value, its path, message."""


def read_service(document: object, *, number_hint: str = "") -> tuple[Service, list[Violation]]:
    """Convert parsed JSON or YAML to a service. Checks only the shape; the registry validates the values.

    Args:
        document: Parsed JSON or YAML. Output-only fields are ignored; ``null`` means absent.
        number_hint: Text to append to the violation for a number where text is required.

    Returns:
        The service with all fields that could be read, and the violations, at most ``MAX_VIOLATIONS``.
    """
    reader, service = ValueReader("service", number_hint), Service()
    if document is None:
        reader.add_violation("", "is required: a JSON object")
    else:
        _read_message(reader, document, "", service)
    return service, reader.violations


def read_fields(document: object, message: Message) -> list[Violation]:
    """Read the fields of a request from parsed JSON, as ``read_service`` does; return the violations."""
    reader = ValueReader("body")
    _read_message(reader, document, "", message)
    return reader.violations


def _read_message(reader: ValueReader, value: object, at: str, message: Message) -> None:
    """Fill a message from an object. Unknown members are violations; members that are ``null`` are absent."""
    members, probe_members = _shape(message.DESCRIPTOR)
    found = reader.members(value, at)
    if not found.keys() <= members.keys():
        for key in found:
            if reader.is_full:
                break
            if key not in members:
                reader.add_violation(inside(at, key), _unknown_field(key, members))
    if isinstance(message, HealthCheck):
        _read_probe(reader, found, at, message, probe_members)
    for key, item in found.items():
        read = members.get(key)
        if read is not None and item is not None:
            read(reader, item, member(at, key), message)


def _unknown_field(key: str, members: Collection[str]) -> str:
    # Takes 50 µs, at most once for each violation.
    close = difflib.get_close_matches(key, members, n=1) if len(key) <= _MAX_MISTYPED else []
    suggestion = f"did you mean {close[0]}? The" if close else "the"
    return f"is not a field; {suggestion} fields are {', '.join(members)}"


def _read_probe(
    reader: ValueReader,
    found: Mapping[str, Any],
    at: str,
    check: HealthCheck,
    probe_members: Mapping[str, tuple[str, _Read]],
) -> None:
    kind = found.get(PROBE_TYPE_KEY)
    if kind is not None:
        here = member(at, PROBE_TYPE_KEY)
        word = reader.text(kind, here)
        if word in PROBE_TYPES:
            getattr(check, word).SetInParent()
        elif word or kind == "":
            reader.add_violation(here, f"{quoted(word)} is not a kind of probe; use one of {', '.join(PROBE_TYPES)}")
            return
    for key, (needed, read) in probe_members.items():
        if found.get(key) is None:
            continue
        if kind == needed:
            read(reader, found[key], member(at, key), getattr(check, needed))
        else:  # it would otherwise be dropped silently
            reader.add_violation(member(at, key), f'is only allowed with "type":"{needed}"')


class _Shape(NamedTuple):
    """How an object is read into a message of one type."""

    members: Mapping[str, _Read | None]
    """All keys of the object; ``None`` for those that ``_read_message`` does not read itself."""
    probe_members: Mapping[str, tuple[str, _Read]]
    """Members of all probe types, in a health check: the type that each belongs to, and how it is read."""


@cache
def _shape(kind: AnyDescriptor) -> _Shape:
    members: dict[str, _Read | None] = dict.fromkeys(json_keys(kind))
    probe_members: dict[str, tuple[str, _Read]] = {}
    for field in kind.fields:
        if field.containing_oneof is not None:
            probe_members |= {json_key(each): (field.name, _reader_of(each)) for each in field.message_type.fields}
        elif field.name not in OUTPUT_ONLY:
            members[json_key(field)] = _reader_of(field)
    return _Shape(members, probe_members)


_SCALARS: Final[Mapping[int, Callable[[ValueReader, Any, str], Any]]] = {
    FieldDescriptor.TYPE_STRING: ValueReader.text,
    FieldDescriptor.TYPE_INT32: ValueReader.int32,
    FieldDescriptor.TYPE_BOOL: ValueReader.boolean,
    FieldDescriptor.TYPE_ENUM: ValueReader.status,  # the only enum of a service
}


def _reader_of(field: AnyFieldDescriptor) -> _Read:
    """Return the function that reads a field."""
    name, kind = field.name, field.message_type
    if field.is_repeated:
        return _repeated_reader_of(field)
    if kind is None:
        convert = _SCALARS[field.type]
        return lambda reader, value, at, message: setattr(message, name, convert(reader, value, at))
    if kind.full_name == Struct.DESCRIPTOR.full_name:
        read = ValueReader.read_schema if name in _SCHEMAS else ValueReader.read_struct
        return lambda reader, value, at, message: read(reader, value, at, getattr(message, name))
    if kind.full_name == Duration.DESCRIPTOR.full_name:
        nanos_per_unit = DURATIONS[name][1]
        return _copying_reader(name, lambda reader, value, at: reader.duration(value, at, nanos_per_unit))
    if kind.full_name == Timestamp.DESCRIPTOR.full_name:
        return _copying_reader(name, ValueReader.timestamp)

    def read_message(reader: ValueReader, value: object, at: str, message: Any) -> None:
        target = getattr(message, name)
        target.SetInParent()
        _read_message(reader, value, at, target)

    return read_message


def _copying_reader(name: str, convert: Callable[[ValueReader, Any, str], Message | None]) -> _Read:
    def read_converted(reader: ValueReader, value: object, at: str, message: Any) -> None:
        converted = convert(reader, value, at)
        if converted is not None:
            getattr(message, name).CopyFrom(converted)

    return read_converted


def _repeated_reader_of(field: AnyFieldDescriptor) -> _Read:
    name, kind = field.name, field.message_type
    if kind is None:
        convert = _SCALARS[field.type]
        return lambda reader, value, at, message: getattr(message, name).extend(
            [convert(reader, item, here) for here, item in reader.items(value, at)]
        )
    if kind.GetOptions().map_entry:
        return lambda reader, value, at, message: getattr(message, name).update(reader.texts(value, at))

    def read_messages(reader: ValueReader, value: object, at: str, message: Any) -> None:
        target = getattr(message, name)
        for here, item in reader.items(value, at):
            _read_message(reader, item, here, target.add())

    return read_messages
