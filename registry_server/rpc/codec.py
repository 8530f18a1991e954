"""Decoding of requests and encoding of answers, done here because grpc answers INTERNAL to malformed messages."""

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from ossa_common.violations import Violation
from registry_server.errors import InvalidRequest

if TYPE_CHECKING:
    import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
"""Context of a call whose request and response are bytes: grpc neither decodes nor encodes."""

M = TypeVar("M", bound=Message)


def parse(kind: type[M], wire: bytes) -> M:
    """Parse a request.

    Raises:
        InvalidRequest: The bytes are not a message of this type.
    """
    try:
        return kind.FromString(wire)
    except DecodeError:
        raise InvalidRequest([Violation("(request)", f"is not a serialised {kind.DESCRIPTOR.full_name}")]) from None


def serialized(answer: Message | bytes) -> bytes:
    """Return an answer in wire format; the most frequent ones are in that format already."""
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
