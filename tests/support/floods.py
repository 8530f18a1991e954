"""Field floods: requests that repeat one field as often as fits, derived from the descriptors of the messages."""

from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from registry_server.model.wire import LENGTH_DELIMITED, VARINT, bytes_field, varint

_MAX_DEPTH: Final = 7
"""Reaches the values of a list in a schema of a capability."""
_UNKNOWN_FIELD: Final = 900
_TEXTS: Final = (b"a", b"<1 ", b">=1||", b"(a|b)*", b"\\pL", b"{subject}", "\u00e9".encode(), b'"')
"""Texts that the registry or its parsers interpret."""


def floods(kind: Any, size: int, base: bytes = b"") -> Iterator[tuple[str, bytes]]:
    """Yield a description and a serialised message for each flood of each field, also within messages.

    Args:
        kind: Descriptor of the message.
        size: Size of the message in bytes.
        base: Valid content of the message, to which the flood is added.
    """
    room = size - len(base) - 100
    yield "unknown fields", base + varint(_UNKNOWN_FIELD << 3 | VARINT) + b"\1" + _unknown(room)
    for path, wire in _floods_below(kind, room, "", lambda payload: payload, 0):
        yield path, base + wire


def _unknown(size: int) -> bytes:
    one = varint(_UNKNOWN_FIELD << 3 | VARINT) + b"\1"
    return one * (size // len(one))


def _floods_below(
    kind: Any, size: int, prefix: str, wrap: Callable[[bytes], bytes], depth: int
) -> Iterator[tuple[str, bytes]]:
    for field in kind.fields:
        path = prefix + field.name
        for way, wire in _floods_of(field, size):
            yield f"{path}: {way}", wrap(wire)
        if field.message_type is not None and depth < _MAX_DEPTH:

            def wrap_inner(payload: bytes, number: int = field.number) -> bytes:
                return wrap(bytes_field(number, payload))

            yield from _floods_below(field.message_type, size, f"{path}.", wrap_inner, depth + 1)


def _floods_of(field: Any, size: int) -> Iterator[tuple[str, bytes]]:
    def repeated(payload: bytes) -> bytes:
        one = bytes_field(field.number, payload)
        return one * (size // len(one))

    if field.message_type is not None:
        yield "empty messages", repeated(b"")
        one = len(bytes_field(field.number, bytes_field(1, b"00000")))
        texts = (bytes_field(1, f"{i:05x}".encode()) for i in range(size // one))
        yield "messages with distinct texts", b"".join(bytes_field(field.number, text) for text in texts)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        for text in _TEXTS:
            yield f"a long text of {text!r}", bytes_field(field.number, text * (size // len(text)))
        yield "empty texts", repeated(b"")
        yield "short texts", repeated(b"a")
    else:
        number = varint(field.number << 3 | VARINT) + b"\1"
        yield "numbers one by one", number * (size // len(number))
        yield "packed numbers", varint(field.number << 3 | LENGTH_DELIMITED) + varint(size) + b"\1" * size
