"""A non-UTF-8 path ends the accept loop of grpc.aio; the listener restarts it."""

import asyncio

import grpc
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.fuzz.requests import END_HEADERS, HEADERS, PREFACE, SETTINGS, call_fields, frame, header_block
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, ServerProcess, connected

SECRET = b"secret-in-bytes-\xff"
INVALID_PATH = b"/ossa.registry.v1.RegistryService/GetStats\xff"


async def send_call(address: str, path: bytes = INVALID_PATH) -> None:
    """Send one call with this path and a credential that is not UTF-8, and disconnect."""
    host, _, port = address.rpartition(":")
    fields = call_fields(path, (b"authorization", b"Bearer " + SECRET))
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, header_block(fields)))
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()


async def wait_until_served(address: str) -> None:
    """Wait until the server answers a new client."""
    async with asyncio.timeout(30):
        while True:
            async with connected(address) as (_, stub):
                if await stub.GetStats(pb.GetStatsRequest(), timeout=5).code() is grpc.StatusCode.OK:
                    return


async def test_server_survives_calls_with_a_non_utf8_path(server: Server) -> None:
    async with connected(server.grpc_address) as (_, watching):
        watch = watching.WatchEvents(pb.WatchEventsRequest())
        await watch.read()
        with capture_logs() as logs:
            for _ in range(4):
                await send_call(server.grpc_address)
                await wait_until_served(server.grpc_address)
        # Calls in flight continue.
        async with connected(server.grpc_address) as (_, stub):
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("one")), timeout=10)
        async with asyncio.timeout(20):
            message = await watch.read()
        assert isinstance(message, pb.WatchEventsResponse)
        assert [event.service.name for event in message.events] == ["one"]
        watch.cancel()
    restarts = [line for line in logs if line["event"] == "gRPC accept loop restarted"]
    assert 1 <= len(restarts) <= 4


async def test_server_drains_after_invalid_paths_and_logs_no_request_bytes(redis: RedisProcess) -> None:
    async with ServerProcess(f"--redis.url={redis.url}") as server:
        for _ in range(3):
            await send_call(server.grpc_address)
            await wait_until_served(server.grpc_address)
        await send_call(server.grpc_address, b"/ossa.registry.v1.RegistryService/GetStats")
        async with connected(server.grpc_address) as (_, stub):
            watch = stub.WatchEvents(pb.WatchEventsRequest())
            await watch.read()
            await send_call(server.grpc_address)
            await wait_until_served(server.grpc_address)
            assert await server.stop() == 0
            assert await watch.code() is grpc.StatusCode.UNAVAILABLE
    assert [line for line in server.log if line.get("level") in {"error", "critical"}] == []
    assert "secret-in-bytes" not in str(server.log)
    assert "GetStats" not in str(server.log)
