"""Spans around handlers, for servers whose calls are traced; others do without them altogether."""

import asyncio
from functools import partial
from typing import Any, Final

import grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.instrumentation.tracing import Attributes, Span, Tracer
from registry_server.rpc.calls import header_of
from registry_server.rpc.codec import Context

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name
# Of a server, those that OpenTelemetry's conventions for gRPC call an error of its side.
_FAILURES: Final = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)
_CANCELLED: Final = grpc.StatusCode.CANCELLED.value[0]


def traced(handler: Any, name: str, tracer: Tracer) -> Any:
    """The handler of a call with a span around all of it; one of a stream gives nothing, but writes."""

    async def spanned(request: Any, context: Context) -> Any:
        with tracer.call(f"{_SERVICE}/{name}", _known(name), partial(header_of, context)) as span:
            try:
                answer = await handler(request, context)
            except asyncio.CancelledError:
                _ended(span, _CANCELLED)
                raise
            except Exception:
                _ended(span, _code_of(context))
                raise
            _ended(span, _code_of(context))
            return answer

    return spanned


def _known(name: str) -> Attributes:
    return {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": name}


def _code_of(context: Context) -> int:
    code: Any = context.code()  # a number or a StatusCode, by who set it
    number: int = code.value[0] if isinstance(code, grpc.StatusCode) else code or 0
    return number


def _ended(span: Span, code: int) -> None:
    span.ended({"rpc.grpc.status_code": code}, failed=code in _FAILURES)
