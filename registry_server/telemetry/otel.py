"""OpenTelemetry traces. Imported only if tracing is enabled: the packages are the extra ``otel``."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from registry_server import __version__
from registry_server.errors import ConfigurationError
from registry_server.instrumentation.tracing import TRACE_ID, Attributes

# The exporter retries until its own, much longer timeout while the collector is unreachable.
_MAX_FLUSH_SECONDS: Final = 2.0
_W3C: Final = TraceContextTextMapPropagator()
_EXPORTERS: Final[dict[str, Callable[[], SpanExporter]]] = {
    "otlp": OTLPSpanExporter,
    "console": lambda: ConsoleSpanExporter(out=sys.stderr),
}


class _Span:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def set_result(self, attributes: Attributes, *, failed: bool) -> None:
        self._span.set_attributes(attributes)
        if failed:
            self._span.set_status(StatusCode.ERROR)


class OtelTracer:
    """Records spans and exports them from a background thread.

    The SDK reads the exporter's endpoint, the sampler and the service name from its standard ``OTEL_*`` variables.
    """

    def __init__(self) -> None:
        """Create the exporters that ``OTEL_TRACES_EXPORTER`` names.

        Raises:
            ConfigurationError: A variable selects an unsupported exporter or protocol.
        """
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._exporters = list(_exporters())
        for exporter in self._exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ossa-registry", __version__)

    def close(self) -> None:
        """Export the pending spans for at most two seconds; blocks."""
        deadline = threading.Timer(_MAX_FLUSH_SECONDS, self._shut_down_exporters)
        deadline.start()
        self._provider.shutdown()
        deadline.cancel()

    def _shut_down_exporters(self) -> None:
        for exporter in self._exporters:
            exporter.shutdown()

    @contextmanager
    def trace_call(self, name: str, attributes: Attributes, header: Callable[[str], str | None]) -> Iterator[_Span]:
        """Implement ``Tracer``."""
        carrier = {key: value for key in ("traceparent", "tracestate") if (value := header(key))}
        parent = _W3C.extract(carrier)
        # Exceptions are not recorded, because their messages may quote a request.
        with self._tracer.start_as_current_span(
            name,
            parent,
            SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            context = span.get_span_context()  # invalid with OTEL_SDK_DISABLED=true
            token = TRACE_ID.set(trace.format_trace_id(context.trace_id) if context.is_valid else "")
            try:
                yield _Span(span)
            finally:
                TRACE_ID.reset(token)

    @contextmanager
    def trace_script(self, name: str) -> Iterator[None]:
        """Implement ``Tracer``."""
        attributes: Attributes = {
            "db.system.name": "redis",
            "db.operation.name": "EVALSHA",
            "db.stored_procedure.name": name,
        }
        with self._tracer.start_as_current_span(
            f"redis {name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise


def _resource() -> Resource:
    version = {SERVICE_VERSION: __version__}
    resource = Resource.create(version)
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):  # the name is not set
        resource = Resource.create(version | {SERVICE_NAME: "ossa-registry"})
    return resource


def _exporters() -> Iterator[SpanExporter]:
    names = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    for name in (name.strip() for name in names.split(",")):
        if name == "none":
            continue
        if name not in _EXPORTERS:
            raise ConfigurationError("trace.enabled: OTEL_TRACES_EXPORTER must be otlp, console or none")
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next((value for each in variables if (value := os.environ.get(each))), "http/protobuf")
        if name == "otlp" and protocol != "http/protobuf":
            raise ConfigurationError(
                "trace.enabled: OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, the only supported OTLP protocol"
            )
        yield _EXPORTERS[name]()
