"""Decoding of requests: done by us and not by grpc, which answers INTERNAL to bytes that are no message."""

from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from registry_server.errors import InvalidRequest, Violation

if TYPE_CHECKING:
    import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
"""Bytes in, bytes out: grpc itself neither decodes nor encodes."""

M = TypeVar("M", bound=Message)

_FIRST_FIELD: Final = 0x0A
"""Number 1, with a length."""
_ONE_BYTE: Final = 0x7F
"""The longest length that takes one byte."""


def parse(kind: type[M], wire: bytes) -> M:
    """Parses a request.

    Raises:
        InvalidRequest: The bytes are not a message of this kind.
    """
    try:
        return kind.FromString(wire)
    except DecodeError:
        raise InvalidRequest([Violation("(request)", f"is not a serialised {kind.DESCRIPTOR.full_name}")]) from None


def only_text(wire: bytes) -> str | None:
    """Gives the text of a message of which only field 1 is set, to one of at most 127 bytes; ``None``: parse it.

    For reads, where parsing is a good part of what the registry adds to a call. What is no ASCII is no name.
    """
    if len(wire) < 3 or wire[0] != _FIRST_FIELD or wire[1] != len(wire) - 2 or wire[1] > _ONE_BYTE:  # noqa: PLR2004 - tag, length, text
        return None
    return wire[2:].decode("ascii", "replace")
