"""The standard services of a gRPC server: ``grpc.health.v1`` and reflection.

Their handlers are registered here rather than by the libraries' functions, so that their calls are admitted too and
malformed messages fail with INVALID_ARGUMENT instead of INTERNAL.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from registry_server.rpc.calls import RpcCall, RpcStream
from registry_server.rpc.methods import rpc
from registry_server.security.permissions import HEALTH, REFLECTION

HEALTH_SERVICE: Final[Any] = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION_SERVICE: Final[Any] = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
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
    """The default descriptor pool, extended to find methods.

    The pool itself cannot find the file of a method, which makes ``grpcurl describe SERVICE.METHOD`` fail.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - protobuf's name
        """Return the file that defines a symbol.

        Raises:
            KeyError: The symbol is unknown.
        """
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file
