"""The standard services of a gRPC server: ``grpc.health.v1`` and reflection.

Their handlers are registered here rather than by the libraries' functions, so that their calls are admitted too and
malformed messages fail with INVALID_ARGUMENT instead of INTERNAL.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from registry_server.rpc.calls import RpcCall, RpcStream
from registry_server.rpc.methods import rpc
from registry_server.security.permissions import HEALTH, REFLECTION

HEALTH_SERVICE: Final[Any] = health_pb2.DESCRIPTOR.services_by_name["Health"]
_REFLECTION_ALPHA: Final[Any] = reflection_pb2.DESCRIPTOR
# Version 1 differs only in its package. A pool of its own leaves the name to a library that may be imported later.
_REFLECTION_FILE: Final = text_format.Parse(
    str(FileDescriptorProto.FromString(_REFLECTION_ALPHA.serialized_pb)).replace("v1alpha", "v1"), FileDescriptorProto()
)
_REFLECTION_POOL: Final = descriptor_pool.DescriptorPool()
_REFLECTION_POOL.AddSerializedFile(_REFLECTION_FILE.SerializeToString())
REFLECTION_SERVICE: Final[Any] = _REFLECTION_ALPHA.services_by_name["ServerReflection"]
REFLECTION_NAMES: Final = (f"{_REFLECTION_FILE.package}.ServerReflection", REFLECTION_SERVICE.full_name)
"""Both versions of the service, which exchange the same messages."""
MAX_HEALTH_REQUEST_BYTES: Final = 1_024
"""A watch keeps the name in its request for as long as it is open."""


class HealthRpc:
    """``grpc.health.v1``."""

    def __init__(self, servicer: health.aio.HealthServicer) -> None:
        self._servicer: Any = servicer  # its type expects a context of messages instead of bytes

    @rpc(HEALTH, max_bytes=MAX_HEALTH_REQUEST_BYTES)
    async def check(self, request: health_pb2.HealthCheckRequest, call: RpcCall) -> Message:
        """Return the status of a service."""
        answer: Message = await self._servicer.Check(request, call.context)
        return answer

    @rpc(HEALTH, streams="health-watches", max_bytes=MAX_HEALTH_REQUEST_BYTES)
    async def watch(self, request: health_pb2.HealthCheckRequest, call: RpcStream) -> None:
        """Stream the status of a service."""
        await call.run_until_revoked(self._servicer.Watch(request, call.context))


class ReflectionRpc:
    """Server reflection."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """Describe the named services."""
        symbols: Any = _Symbols()  # duck-typed: implements the methods of a pool that reflection uses
        self._servicer: Any = reflection.aio.ReflectionServicer(names, symbols)

    @rpc(REFLECTION, streams="reflection-streams")
    async def server_reflection_info(self, requests: AsyncIterator[Message], call: RpcStream) -> None:
        """Answer each request."""
        async for answer in self._servicer.ServerReflectionInfo(requests, call.context):
            await call.write(answer)


class _Symbols:
    """The default descriptor pool, extended by the current version of reflection, and to find methods.

    A pool itself cannot find the file of a method, which makes ``grpcurl describe SERVICE.METHOD`` fail.
    """

    def __init__(self) -> None:
        self._pools = (descriptor_pool.Default(), _REFLECTION_POOL)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pools[0], name)

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802 - protobuf's name
        """Return the file of a name.

        Raises:
            KeyError: There is no such file.
        """
        return self._pools[name == _REFLECTION_FILE.name].FindFileByName(name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - protobuf's name
        """Return the file that defines a symbol.

        Raises:
            KeyError: The symbol is unknown.
        """
        pool = self._pools[symbol.startswith(f"{_REFLECTION_FILE.package}.")]
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindMethodByName(symbol).containing_service.file
