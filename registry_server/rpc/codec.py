"""Decoding of requests: done by us and not by grpc, which answers INTERNAL to bytes that are no message."""

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from registry_server.errors import InvalidRequest, Violation

if TYPE_CHECKING:
    import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
"""Bytes in, bytes out: grpc itself neither decodes nor encodes."""

M = TypeVar("M", bound=Message)


def parse(kind: type[M], wire: bytes) -> M:
    """Parses a request.

    Raises:
        InvalidRequest: The bytes are not a message of this kind.
    """
    try:
        return kind.FromString(wire)
    except DecodeError:
        raise InvalidRequest([Violation("(request)", f"is not a serialised {kind.DESCRIPTOR.full_name}")]) from None
