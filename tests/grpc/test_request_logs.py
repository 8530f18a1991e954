"""The request log: logged calls and the fields of their lines."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running
from tests.support.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01")


@asynccontextmanager
async def logging_requests(redis: RedisProcess, requests: str) -> AsyncIterator[tuple[Server, list[Any]]]:
    with capture_logs() as logs:
        async with running(redis.url, log={"requests": requests}) as server:
            yield server, logs


def lines(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line["event"] == "request"]


async def fail(server: Server, *metadata: tuple[str, str]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.stub.GetService(pb.GetServiceRequest(name="missing"), metadata=metadata)
    return caught.value


async def test_failed_call_is_logged_with_its_ids(redis: RedisProcess) -> None:
    async with logging_requests(redis, "errors") as (server, logs):
        await server.stub.GetStats(pb.GetStatsRequest())
        error = await fail(server, ("x-request-id", "mine-1"), TRACEPARENT)
        await until(lambda: lines(logs))  # the line is written after the client has received its answer
        (line,) = lines(logs)
    assert line.pop("milliseconds") >= 0
    assert line.pop("peer").startswith(("ipv4:127.0.0.1:", "ipv6:"))
    assert line == {
        "event": "request",
        "log_level": "info",
        "transport": "grpc",
        "method": "GetService",
        "code": "NOT_FOUND",
        "request_id": "mine-1",
        "trace_id": TRACE,
    }
    assert dict(error.trailing_metadata() or ())["x-request-id"] == "mine-1"


@pytest.mark.own_redis
async def test_server_side_failure_is_logged_as_a_warning(server: Server, redis: RedisProcess) -> None:
    redis.kill()
    await until(lambda: not server.parts.follower.connected)
    with capture_logs() as logs:
        with pytest.raises(grpc.aio.AioRpcError):
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        await until(lambda: lines(logs))
    (line,) = lines(logs)
    assert (line["code"], line["log_level"]) == ("UNAVAILABLE", "warning")


@pytest.mark.parametrize("request_id", ["a b", "x" * 129, 'quo"te', "<b>"])
async def test_invalid_request_id_is_replaced(request_id: str, server: Server) -> None:
    error = await fail(server, ("x-request-id", request_id))
    assert dict(error.trailing_metadata() or ())["x-request-id"] != request_id


async def test_nothing_is_logged_when_the_request_log_is_off(redis: RedisProcess) -> None:
    async with logging_requests(redis, "off") as (server, logs):
        await fail(server)
        await fail(server)  # by then the server has finished the first call
        assert lines(logs) == []


async def unary(server: Server) -> None:
    call = server.stub.DiscoverServices(pb.DiscoverServicesRequest(), metadata=(("x-request-id", "mine-2"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-2"


async def stream(server: Server) -> None:
    call = server.stub.WatchEvents(pb.WatchEventsRequest(), metadata=(("x-request-id", "mine-2"),))
    await anext(aiter(call))
    call.cancel()


async def stream_to_its_end(server: Server) -> None:
    call = server.stub.KeepAlive(metadata=(("x-request-id", "mine-2"),))
    await call.write(pb.KeepAliveRequest(names=["a"]))
    await call.done_writing()
    assert [list(answer.unknown_names) async for answer in call] == [["a"]]
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine-2"


@pytest.mark.parametrize(
    ("call", "method", "code"),
    [
        (unary, "DiscoverServices", "OK"),
        (stream, "WatchEvents", "CANCELLED"),
        (stream_to_its_end, "KeepAlive", "OK"),
    ],
)
async def test_all_calls_are_logged_if_configured(
    call: Callable[[Server], Coroutine[Any, Any, None]], method: str, code: str, redis: RedisProcess
) -> None:
    async with logging_requests(redis, "all") as (server, logs):
        await call(server)
        await until(lambda: lines(logs))
        (line,) = lines(logs)
    assert (line["method"], line["code"], line["request_id"]) == (method, code, "mine-2")
    assert line["log_level"] == "info"
    assert "trace_id" not in line
