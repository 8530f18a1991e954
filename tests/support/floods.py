"""Field floods: requests that repeat one field or member as often as fits."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, TypeAlias

from google.protobuf.descriptor import FieldDescriptor

from registry_server.model.wire import LENGTH_DELIMITED, VARINT, bytes_field, varint

_MAX_DEPTH: Final = 7
"""Reaches the values of a list in a schema of a capability."""
_UNKNOWN_FIELD: Final = 900
_TEXTS: Final = (b"a", b"<1 ", b">=1||", b"(a|b)*", b"\\pL", b"{subject}", "\u00e9".encode(), b'"')
"""Texts that the registry or its parsers interpret."""


def floods(
    kind: Any, size: int, base: bytes = b"", wanted: Callable[[], bool] = lambda: True
) -> Iterator[tuple[str, bytes]]:
    """Yield a description and a serialised message for each flood of each field, also within messages.

    Args:
        kind: Descriptor of the message.
        size: Size of the message in bytes.
        base: Valid content of the message, to which the flood is added.
        wanted: Called for each flood; returns whether to yield it.
    """
    room = size - len(base) - 100
    for field, path, wrap in [(None, "unknown field", bytes), *_fields_below(kind)]:
        for way, build in _floods_of(field, room):
            if wanted():
                yield f"{path}: {way}", base + wrap(build())


_Wrap: TypeAlias = Callable[[bytes], bytes]


def _fields_below(kind: Any, prefix: str = "", wrap: _Wrap = bytes, depth: int = 0) -> Iterator[tuple[Any, str, _Wrap]]:
    """Yield each field with its path, and a function that encloses its wire format in the messages around it."""
    for field in kind.fields:
        path = prefix + field.name
        yield field, path, wrap
        if field.message_type is not None and depth < _MAX_DEPTH:

            def wrap_inner(payload: bytes, number: int = field.number) -> bytes:
                return wrap(bytes_field(number, payload))

            yield from _fields_below(field.message_type, f"{path}.", wrap_inner, depth + 1)


def _text(number: int, text: bytes, size: int) -> bytes:
    return bytes_field(number, text * (size // len(text)))


def _floods_of(field: Any, size: int) -> Iterator[tuple[str, Callable[[], bytes]]]:
    number = _UNKNOWN_FIELD if field is None else field.number

    def repeated(payload: bytes) -> Callable[[], bytes]:
        one = bytes_field(number, payload)
        return lambda: one * (size // len(one))

    def distinct() -> bytes:
        one = len(bytes_field(number, bytes_field(1, b"00000")))
        texts = (bytes_field(1, f"{i:05x}".encode()) for i in range(size // one))
        return b"".join(bytes_field(number, text) for text in texts)

    if field is not None and field.message_type is not None:
        yield "empty messages", repeated(b"")
        yield "messages with distinct texts", distinct
    elif field is not None and field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        for text in _TEXTS:
            yield f"a long text of {text!r}", partial(_text, number, text, size)
        yield "empty texts", repeated(b"")
        yield "short texts", repeated(b"a")
    else:
        one = varint(number << 3 | VARINT) + b"\1"
        yield "numbers one by one", lambda: one * (size // len(one))
        yield "packed numbers", lambda: varint(number << 3 | LENGTH_DELIMITED) + varint(size) + b"\1" * size


_MEMBERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "capabilities": {"capabilities": ...},
    "schema": {"capabilities": [{"name": "c", "inputs": {"k": ...}}]},
    "details": {"health": {"status": "healthy", "details": {"k": ...}}},
    "tags": {"metadata": {"tags": ...}},
    "labels": {"metadata": {"labels": ...}},
    "headers": {"healthCheck": {"type": "http", "headers": ...}},
    "statuses": {"healthCheck": {"type": "http", "expectedStatuses": ...}},
    "unknown": {"unknown": ...},
    "version": {"version": ...},
}
"""Members of a registration; the ellipsis is replaced by a flood."""
_ESCAPE: Final = "\\u00e9"
_VALUES: Final = ("1", "null", "{}", "[]", '""', '"a,b"', "1e308", "true")


def document_floods(size: int, wanted: Callable[[], bool] = lambda: True) -> Iterator[tuple[str, bytes]]:
    """Yield a description and a registration of at most ``size`` bytes for each kind of repetition; see ``floods``."""
    for path, members in _MEMBERS.items():
        document = {"name": "a", "endpoint": "http://a", "version": "1", "capabilities": [], **members}
        head, _, tail = json.dumps(document, default=lambda _: "@").partition('"@"')
        room = size - len(head) - len(tail) - 2
        for way, build in _documents(room):
            if wanted():
                yield f"{path}: {way}", f"{head}{build()}{tail}".encode()


def _documents(size: int) -> Iterator[tuple[str, Callable[[], str]]]:
    def array(value: str) -> str:
        return f"[{','.join([value] * (size // (len(value) + 1)))}]"

    def members(value: str) -> str:
        pairs = (f'"{i:06x}":{value}' for i in range(size // (len(value) + 10)))
        return f"{{{','.join(pairs)}}}"

    for value in _VALUES:
        yield f"array of {value}", partial(array, value)
        yield f"object of {value}", partial(members, value)
    yield "text", lambda: f'"{"a," * (size // 2)}"'
    yield "escapes", lambda: f'"{_ESCAPE * (size // 6)}"'
    yield "nested arrays", lambda: "[" * (size // 2) + "]" * (size // 2)
    yield "number", lambda: "9" * size
