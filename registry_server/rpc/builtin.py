"""The standard services of a gRPC server: ``grpc.health.v1`` and reflection.

Their handlers are registered here rather than by the libraries' functions, so that the guard admits their calls too
and malformed messages fail with INVALID_ARGUMENT instead of INTERNAL.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from registry_server.rpc.codec import parse
from registry_server.rpc.gate import RpcGate
from registry_server.rpc.status import abort
from registry_server.rpc.symbols import Symbols
from registry_server.security.permissions import HEALTH_RPCS, REFLECTION_RPCS

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


def health_handlers(servicer: health.aio.HealthServicer, gate: RpcGate) -> grpc.GenericRpcHandler:
    """Return the handlers of ``grpc.health.v1``."""

    async def check(wire: bytes, context: Any) -> Message:
        try:
            await gate.admit(context, HEALTH_RPCS)
            request = parse(health_pb2.HealthCheckRequest, wire)
        except Exception as error:  # noqa: BLE001 - mapped to a status
            await abort(context, error)
        return await servicer.Check(request, context)

    async def watch(wire: bytes, context: Any) -> None:
        try:
            identity = await gate.admit(context, HEALTH_RPCS)
            request = parse(health_pb2.HealthCheckRequest, wire)
            with gate.session(context, identity, HEALTH_RPCS, watches=True):
                await servicer.Watch(request, context)
        except Exception as error:  # noqa: BLE001 - as above
            await abort(context, error)

    methods: Any = {
        "Check": grpc.unary_unary_rpc_method_handler(check, response_serializer=_serialize),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=_serialize),
    }
    return grpc.method_handlers_generic_handler(HEALTH, methods)


def reflection_handlers(names: tuple[str, ...], gate: RpcGate) -> grpc.GenericRpcHandler:
    """Return the handlers of server reflection for the named services."""
    symbols: Any = Symbols()  # duck-typed: implements the methods of a pool that reflection uses
    servicer: Any = reflection.aio.ReflectionServicer(names, symbols)

    async def info(wires: AsyncIterator[bytes], context: Any) -> AsyncIterator[Message]:
        try:
            await gate.admit(context, REFLECTION_RPCS)
            requests = (parse(reflection_pb2.ServerReflectionRequest, wire) async for wire in wires)
            async for answer in servicer.ServerReflectionInfo(requests, context):
                yield answer
        except Exception as error:  # noqa: BLE001 - as above
            await abort(context, error)

    methods: Any = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            info,
            response_serializer=_serialize,
        )
    }
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, methods)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
