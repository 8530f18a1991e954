"""Spans around handlers; used only if tracing is enabled."""

import asyncio
from functools import partial
from typing import Any, Final

import grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.instrumentation.tracing import Attributes, Span, Tracer
from registry_server.rpc.calls import header_of
from registry_server.rpc.codec import Context

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name
# Codes that OpenTelemetry's conventions for gRPC classify as errors of the server.
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


def with_span(handler: Any, name: str, tracer: Tracer) -> Any:
    """Return a handler that records a span for each call of ``handler``."""

    async def spanned(request: Any, context: Context) -> Any:
        with tracer.trace_call(f"{_SERVICE}/{name}", _attributes(name), partial(header_of, context)) as span:
            try:
                answer = await handler(request, context)
            except asyncio.CancelledError:
                _end_span(span, _CANCELLED)
                raise
            except Exception:
                _end_span(span, _code_of(context))
                raise
            _end_span(span, _code_of(context))
            return answer

    return spanned


def _attributes(name: str) -> Attributes:
    return {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": name}


def _code_of(context: Context) -> int:
    code: Any = context.code()  # an int or a StatusCode, depending on who set it
    number: int = code.value[0] if isinstance(code, grpc.StatusCode) else code or 0
    return number


def _end_span(span: Span, code: int) -> None:
    span.set_result({"rpc.grpc.status_code": code}, failed=code in _FAILURES)
