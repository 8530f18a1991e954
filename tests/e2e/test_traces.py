"""Traces that an OpenTelemetry collector receives from a registry over OTLP."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import ServerProcess, connected
from tests.support.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SERVICE = "ossa.registry.v1.RegistryService"


class Collector:
    """Receives spans over OTLP/HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []

    async def receive_spans(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    async def wait_for_span(self, name: str) -> Span:
        """Wait until a span of this name has arrived."""
        await until(lambda: any(span.name == name for span in self.spans))
        return next(span for span in self.spans if span.name == name)


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


class Traced(NamedTuple):
    collector: Collector
    server: ServerProcess
    stub: Any


@asynccontextmanager
async def traced(redis: RedisProcess, **environment: str) -> AsyncIterator[Traced]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.receive_spans)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        **environment,
    }
    flags = (f"--redis.url={redis.url}", "--trace.enabled=true", "--log.requests=all")
    try:
        async with ServerProcess(*flags, env=variables) as server, connected(server.grpc_address) as (_, stub):
            yield Traced(collector, server, stub)
    finally:
        await runner.cleanup()


async def test_call_continues_the_trace_of_its_client_down_to_redis(redis: RedisProcess) -> None:
    async with traced(redis) as (collector, server, stub):
        request = pb.RegisterServiceRequest(service=small_service("a"))
        await stub.RegisterService(request, metadata=(("traceparent", TRACEPARENT),))
        call, commit = (
            await collector.wait_for_span(f"{SERVICE}/RegisterService"),
            await collector.wait_for_span("redis commit"),
        )
        line = await server.logged("request")
        change = await server.logged("change")
    assert call.kind == Span.SPAN_KIND_SERVER
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert (commit.trace_id, commit.parent_span_id) == (call.trace_id, call.span_id)
    assert commit.kind == Span.SPAN_KIND_CLIENT
    assert call.start_time_unix_nano <= commit.start_time_unix_nano < commit.end_time_unix_nano
    assert attributes(call) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "RegisterService",
        "rpc.grpc.status_code": 0,
    }
    assert attributes(commit)["db.stored_procedure.name"] == "commit"
    assert line["trace_id"] == change["trace_id"] == TRACE
    assert collector.resources[0]["service.name"] == "ossa-registry"
    assert collector.resources[0]["service.version"]


async def test_call_without_a_trace_starts_one_that_is_logged(redis: RedisProcess) -> None:
    async with traced(redis, OTEL_SERVICE_NAME="mine") as (collector, server, stub):
        await stub.GetStats(pb.GetStatsRequest())
        span = await collector.wait_for_span(f"{SERVICE}/GetStats")
        assert (await server.logged("request"))["trace_id"] == span.trace_id.hex()
    assert not span.parent_span_id
    assert collector.resources[0]["service.name"] == "mine"


async def test_opentelemetry_sdk_can_be_disabled(redis: RedisProcess) -> None:
    async with traced(redis, OTEL_SDK_DISABLED="true") as (collector, server, stub):
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        assert "trace_id" not in await server.logged("request")
        assert await server.stop() == 0
    assert collector.spans == []


@pytest.mark.own_redis
async def test_only_server_errors_set_the_span_status(redis: RedisProcess) -> None:
    async with traced(redis) as (collector, _, stub):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetService(pb.GetServiceRequest(name="absent"))
        missing = await collector.wait_for_span(f"{SERVICE}/GetService")
        redis.pause()
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("secret-name")))
            failed, commit = (
                await collector.wait_for_span(f"{SERVICE}/RegisterService"),
                await collector.wait_for_span("redis commit"),
            )
        finally:
            redis.resume()
    assert attributes(missing)["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert missing.status.code == Status.STATUS_CODE_UNSET
    assert attributes(failed)["rpc.grpc.status_code"] == grpc.StatusCode.UNAVAILABLE.value[0]
    assert failed.status.code == commit.status.code == Status.STATUS_CODE_ERROR
    assert attributes(commit)["error.type"] == "StoreUnavailable"
    assert not any(span.events for span in collector.spans), "exceptions may quote client data"
    assert "secret-name" not in str(collector.spans)


async def test_stream_is_one_span(redis: RedisProcess) -> None:
    async with traced(redis) as (collector, _, stub):
        watch = stub.WatchEvents(pb.WatchEventsRequest(), metadata=(("traceparent", TRACEPARENT),))
        await anext(aiter(watch))
        watch.cancel()
        span = await collector.wait_for_span(f"{SERVICE}/WatchEvents")
    assert span.trace_id.hex() == TRACE
    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]


async def test_http_is_traced_by_route(redis: RedisProcess) -> None:
    async with traced(redis) as (collector, server, _), aiohttp.ClientSession() as client:
        path = "/api/v1/registry/services/secret-name"
        headers: Mapping[str, str] = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
        async with client.get(f"http://{server.http_address}{path}", headers=headers) as response:
            assert response.status == 404
        span = await collector.wait_for_span("GET /api/v1/registry/services/{name}")
        assert (await server.logged("request"))["trace_id"] == TRACE
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.route": "/api/v1/registry/services/{name}",
        "http.response.status_code": 404,
    }
    assert span.status.code == Status.STATUS_CODE_UNSET


async def test_background_work_is_not_traced(redis: RedisProcess) -> None:
    async with traced(redis) as (collector, _, stub):
        await asyncio.sleep(1.5)  # time for sweeps and reads of the event stream
        await stub.GetStats(pb.GetStatsRequest())
        await collector.wait_for_span(f"{SERVICE}/GetStats")
    assert [span.name for span in collector.spans] == [f"{SERVICE}/GetStats"]


async def test_pending_spans_are_sent_at_shutdown(redis: RedisProcess) -> None:
    async with traced(redis, OTEL_BSP_SCHEDULE_DELAY="600000") as (collector, server, stub):
        await stub.GetStats(pb.GetStatsRequest())
        assert await server.stop() == 0
        assert [span.name for span in collector.spans] == [f"{SERVICE}/GetStats"]


async def test_unreachable_collector_delays_no_call(redis: RedisProcess) -> None:
    async with traced(redis, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as (_, server, stub):
        for _ in range(5):
            await stub.GetStats(pb.GetStatsRequest())
        assert await server.stop() == 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "trace.enabled: OTEL_TRACES_EXPORTER must be otlp, console or none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "trace.enabled: OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf"),
    ],
)
def test_unsupported_exporter_is_a_configuration_error(
    environment: dict[str, str], message: str, redis: RedisProcess
) -> None:
    code, output = run_server(redis, environment)
    assert code == 2
    assert message in output


def test_missing_extra_is_reported_with_the_install_command(redis: RedisProcess) -> None:
    # A module that is None in sys.modules cannot be imported, as if it were not installed.
    code, output = run_server(redis, {}, "import sys; sys.modules['opentelemetry'] = None")
    assert code == 2
    assert "trace.enabled: needs OpenTelemetry: pip install 'ossa-registry[otel]'" in output


def run_server(redis: RedisProcess, environment: Mapping[str, str], preamble: str = "import sys") -> tuple[int, str]:
    flags = [
        f"--redis.url={redis.url}",
        "--trace.enabled=true",
        "--grpc.address=127.0.0.1:0",
        "--http.address=127.0.0.1:0",
    ]
    program = f"{preamble}\nfrom registry_server.__main__ import serve\nsys.exit(serve({flags!r}))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={key: value for key, value in os.environ.items() if not re.match("OTEL_|OSSA_", key)} | dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_opentelemetry_is_imported_only_for_tracing() -> None:
    program = "import sys, registry_server.app; print('registry_server.telemetry.otel' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
