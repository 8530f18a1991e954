"""Tables of RPCs, derived from the descriptor of a service and the declarations at its handlers."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from registry_server.admission import Endpoint
from registry_server.rpc.calls import RpcCall, RpcMethod, RpcStream, RpcTransport
from registry_server.rpc.codec import MAX_REQUEST_BYTES, Context, serialized
from registry_server.security.limits import Streams
from registry_server.security.permissions import Permission

_Handler = TypeVar("_Handler", bound=Callable[..., Any])


class Declaration(NamedTuple):
    """What the handler of an RPC declares."""

    permission: Permission
    """Required of callers."""
    cached: Callable[[Any, bytes], bytes | None] | None
    """Method of the same class that returns the cached answer to a serialised request."""
    streams: Streams | None
    """Kind of stream; ``None`` = no stream."""
    max_bytes: int | None
    """Maximum size of a request; ``None`` = the handler receives the bytes of a request of any size, and parses it in
    slices."""


_DECLARATIONS: dict[Callable[..., Any], Declaration] = {}


def rpc(
    permission: Permission,
    *,
    cached: Callable[[Any, bytes], bytes | None] | None = None,
    streams: Streams | None = None,
    max_bytes: int | None = MAX_REQUEST_BYTES,
) -> Callable[[_Handler], _Handler]:
    """Declare a method as handler of the RPC of the same name; see ``Declaration``."""

    def declare(handler: _Handler) -> _Handler:
        _DECLARATIONS[handler] = Declaration(permission, cached, streams, max_bytes)
        return handler

    return declare


def declarations(service: ServiceDescriptor, servicer: type, *, complete: bool = True) -> Mapping[str, Declaration]:
    """Return the declarations of the RPCs of a service by name.

    Raises:
        TypeError: An RPC has no handler, unless the table need not be complete, or its handler declares no permission.
    """
    table = {}
    for method in service.methods:
        handler = getattr(servicer, _snake_case(method.name), None)
        if handler is None and not complete:
            continue
        if handler not in _DECLARATIONS:
            raise TypeError(f"{servicer.__name__}.{_snake_case(method.name)} must exist and declare @rpc(permission)")
        table[method.name] = _DECLARATIONS[handler]
    return table


def method_handlers(
    service: ServiceDescriptor,
    servicer: Any,
    transport: RpcTransport,
    *,
    counted: bool = True,
    full_name: str = "",
) -> dict[str, Any]:
    """Return gRPC's handlers for all RPCs of a service by name.

    Args:
        service: The descriptor.
        servicer: Object with one method for each RPC.
        transport: What all calls share.
        counted: Whether calls are limited, counted, logged and traced.
        full_name: Name under which the service is served, if it is not that of the descriptor.
    """
    full_name = full_name or service.full_name
    handlers: dict[str, Any] = {}
    for name, declared in declarations(service, type(servicer), complete=counted).items():
        descriptor = service.methods_by_name[name]
        is_stream = descriptor.client_streaming or descriptor.server_streaming
        method = RpcMethod(
            full_name,
            name,
            GetMessageClass(descriptor.input_type),
            declared.max_bytes,
            getattr(servicer, _snake_case(name)),
            declared.cached and declared.cached.__get__(servicer),
            Endpoint(
                declared.permission,
                transport.admission.counters_of(name) if counted else None,
                limited=counted and not is_stream,
                streams=declared.streams,
            ),
            transport,
            descriptor.client_streaming,
            declared.streams == "keep-alive-streams",
        )
        if is_stream and counted:
            transport.admission.counters.streams.add(name)
        handlers[name] = _method_handler(method, is_stream=is_stream)
    return handlers


def _method_handler(method: RpcMethod, *, is_stream: bool) -> Any:
    scope = RpcStream if is_stream else RpcCall

    async def handle(requests: Any, context: Context) -> Any:
        return await scope(method, requests, context).run()

    # Registered as if all clients streamed: otherwise gRPC itself would wait for the request.
    if is_stream:
        return grpc.stream_stream_rpc_method_handler(handle, response_serializer=serialized)
    return grpc.stream_unary_rpc_method_handler(handle)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
