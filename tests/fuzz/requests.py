"""Requests of every RPC: made by hypothesis from the descriptors, and as bytes that are broken in many ways."""

import random
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import strategies as st

from ossa.registry.v1 import registry_service_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["RegistryService"]
UNARY: Final[Mapping[str, Any]] = {
    **{
        f"/{_SERVICE.full_name}/{method.name}": method.input_type
        for method in _SERVICE.methods
        if not method.server_streaming
    },
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest.DESCRIPTOR,
}
STREAMS: Final[Mapping[str, Any]] = {
    f"/{_SERVICE.full_name}/KeepAlive": pb.KeepAliveRequest.DESCRIPTOR,
    f"/{_SERVICE.full_name}/WatchEvents": pb.WatchEventsRequest.DESCRIPTOR,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest.DESCRIPTOR,
}
METHODS: Final = {**UNARY, **STREAMS}

# What means something to the registry, beside what means nothing.
_WORDS = st.sampled_from(
    ["", "a", "fuzz-1", "fuzz-2", "1.0.0", ">=1 <2", "http://a.test:1", "grpc://a:1", "^x$", "(", "version", "*", "\0"]
)
_TEXT = _WORDS | st.text(max_size=20)
_NUMBERS: Final[Mapping[int, st.SearchStrategy[Any]]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-1, 3) | st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-1, 8),
}
_DEEPEST = 4


def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
    """Any message of a kind: each field set or not, to what its type allows."""
    kind = GetMessageClass(descriptor)
    fields = {field.name: _values(field, depth) for field in descriptor.fields if depth < _DEEPEST or not _nests(field)}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: _made(kind, values))


def _nests(field: FieldDescriptor) -> bool:
    return field.message_type is not None


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        key, value = _one(entry["key"], depth + 1), _one(entry["value"], depth + 1)
        return st.dictionaries(key, value, max_size=2)
    one = _one(field, depth)
    return st.lists(one, max_size=2) if field.is_repeated else one


def _one(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        inner = field.message_type
        return st.deferred(lambda: messages(inner, depth + 1))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=20) if field.type == FieldDescriptor.TYPE_BYTES else _TEXT
    return _NUMBERS[field.cpp_type]


def _made(kind: type[Message], values: dict[str, Any]) -> Message:
    message = kind()
    for name, value in values.items():
        field = kind.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, Message):
                    target[key].CopyFrom(item)
                else:
                    target[key] = item
        elif field.is_repeated:
            target.extend(value)
        elif isinstance(value, Message):
            target.CopyFrom(value)
            target.SetInParent()
        else:
            setattr(message, name, value)
    return message


def requests() -> st.SearchStrategy[tuple[str, bytes]]:
    """A method and a request of its kind, serialised."""
    of_method = {
        method: messages(kind).map(lambda message: message.SerializeToString()) for method, kind in METHODS.items()
    }
    return st.sampled_from(list(METHODS)).flatmap(lambda method: st.tuples(st.just(method), of_method[method]))


# Broken bytes.


def good_wires() -> dict[str, bytes]:
    """A request of each method that is not refused, to be broken."""
    service: dict[str, Any] = {
        "name": "fuzz-1",
        "endpoint": "http://a.test:1",
        "version": "1.0.0",
        "capabilities": [{"name": "c", "version": "1", "inputs": struct_pb2.Struct()}],
        "metadata": {"tags": ["x"], "labels": {"a": "b"}},
        "health_check": {"heartbeat": {}},
    }
    made: dict[str, dict[str, Any]] = {
        "RegisterService": {"service": service},
        "BatchRegisterServices": {"services": [service, service]},
        "UpdateService": {"service": service, "update_mask": {"paths": ["version"]}},
        "DiscoverServices": {"filter": {"name_pattern": "a", "tags": ["x"]}, "page_size": 5},
        "WatchEvents": {"filter": {"labels": {"a": "b"}}, "include_snapshot": True},
        "KeepAlive": {"names": ["fuzz-1", "fuzz-2"]},
        "Heartbeat": {"names": ["fuzz-1", "fuzz-2"]},
    }
    wires = {}
    for method, kind in METHODS.items():
        values = made.get(method.rpartition("/")[2], {"name": "fuzz-1"} if "name" in kind.fields_by_name else {})
        message: Message = GetMessageClass(kind)(**values)
        wires[method] = message.SerializeToString()
    return wires


def broken(wire: bytes, dice: random.Random) -> bytes:
    """The bytes with something wrong with them."""
    raw = bytearray(wire)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(raw) + 1)
        match dice.randrange(7):
            case 0:
                del raw[at:]
            case 1:
                raw[at:at] = dice.randbytes(dice.randint(1, 8))
            case 2 if raw:
                raw[at % len(raw)] ^= 1 << dice.randrange(8)
            case 3 if raw:
                raw[at % len(raw)] = dice.choice((0, 0x7F, 0x80, 0xFF))
            case 4:
                raw += raw[:at]
            case 5:  # groups within groups, which parsers recurse into
                raw[at:at] = b"\x0b" * dice.choice((10, 200, 20_000))
            case _:  # a length that is not there
                raw += bytes((0x0A,)) + b"\xff\xff\xff\xff" + bytes((dice.randrange(128),))
    return bytes(raw)


# HTTP/2 by hand (RFC 9113).

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes, *, length: int | None = None) -> bytes:
    """A frame, whose length may lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def header_block(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Fields as HPACK literals without index (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _hpack_text(name) + _hpack_text(value) for name, value in fields)


def _hpack_text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, out = len(text) - 127, bytearray(b"\x7f")
    while rest > 127:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes((*out, rest)) + text


def connection(method: str, wire: bytes, credential: str, dice: random.Random) -> bytes:
    """All that a client sends on a connection: calls, of which something is wrong with most."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method.encode()),
        (b":authority", b"a"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"authorization", f"Bearer {credential}".encode()),
    ]
    pieces = [PREFACE, frame(SETTINGS, 0, 0, b"")]
    for stream in range(1, 2 * dice.randint(1, 4), 2):
        pieces += _call(fields, wire, stream, dice)
    if dice.random() < 0.3:
        pieces.insert(dice.randrange(1, len(pieces) + 1), dice.randbytes(dice.randint(1, 64)))
    sent = b"".join(pieces)
    return sent[: dice.randrange(len(sent))] if dice.random() < 0.1 else sent


def _call(fields: list[tuple[bytes, bytes]], wire: bytes, stream: int, dice: random.Random) -> Iterator[bytes]:
    mine = list(fields)
    if dice.random() < 0.4:
        at = dice.randrange(len(mine))
        name, value = mine[at]
        mine[at] = dice.choice(
            (
                (name, dice.randbytes(dice.randint(0, 40))),
                (name, b"a" * dice.choice((1_000, 20_000))),
                (dice.choice((b"Upper", b":status", b"", b"grpc-timeout", b"grpc-encoding", b"x-bin")), value),
            )
        )
    block = header_block(mine)
    if dice.random() < 0.1:
        block = broken(block, dice)
    yield frame(HEADERS, END_HEADERS if dice.random() < 0.95 else 0, stream, block)
    yield from _body(wire, stream, dice)
    if dice.random() < 0.3:
        kind = dice.choice((RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION, dice.randrange(256)))
        on = dice.choice((0, stream, stream + 2))
        lie = dice.choice((None, None, 0, 16_384, 0xFFFFFF))
        yield frame(kind, dice.randrange(256), on, dice.randbytes(dice.randint(0, 24)), length=lie)


def _body(wire: bytes, stream: int, dice: random.Random) -> Iterator[bytes]:
    flag, length = 0, len(wire)
    if dice.random() < 0.3:
        lies = ((1, length), (2, length), (0, length + 7), (0, 0xFFFFFFFF), (0, max(0, length - 1)))
        flag, length = dice.choice(lies)
    body = bytes((flag,)) + struct.pack(">I", length) + wire
    cut = dice.randrange(len(body) + 1)
    yield frame(DATA, 0, stream, body[:cut])
    yield frame(DATA, END_STREAM if dice.random() < 0.9 else 0, stream, body[cut:])
