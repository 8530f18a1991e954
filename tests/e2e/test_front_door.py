"""The server as a process: discovered by reflection, stopped by signals, restarted after a kill."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter
from tests.grpc.calls import TIMEOUT, kind_and_name, open_watch
from tests.support.leases import pass_time
from tests.support.processes import run_to_end
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import ServerProcess, connected

SERVICE: Final = "ossa.registry.v1.RegistryService"
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

# The example of the OSSA reference implementation, as protobuf JSON.
OSSA_EXAMPLE: Final = {
    "name": "ai-text-processor",
    "endpoint": "https://ai-service.company.com:8080",
    "version": "2.1.0",
    "capabilities": [
        {
            "name": "text-analysis",
            "version": "2.0.0",
            "description": "Advanced text analysis with sentiment detection",
        }
    ],
    "health": {"status": "HEALTH_STATUS_UNKNOWN", "lastCheck": "2026-11-24T09:30:00.125Z"},
    "metadata": {"tags": ["ai", "nlp"], "environment": "production"},
}


REQUESTS: Final = {
    "RegisterService": pb.RegisterServiceRequest(service=small_service("a")),
    "UpdateService": pb.UpdateServiceRequest(service=small_service("a")),
    "UnregisterService": pb.UnregisterServiceRequest(name="a"),
    "GetService": pb.GetServiceRequest(name="a"),
    "DiscoverServices": pb.DiscoverServicesRequest(),
    "GetServiceHealth": pb.GetServiceHealthRequest(name="a"),
    "ReportServiceHealth": pb.ReportServiceHealthRequest(name="a", status=HealthStatus.HEALTH_STATUS_HEALTHY),
    "Heartbeat": pb.HeartbeatRequest(names=["a"]),
    "ListCapabilities": pb.ListCapabilitiesRequest(),
    "GetStats": pb.GetStatsRequest(),
    "Cleanup": pb.CleanupRequest(),
    "KeepAlive": pb.KeepAliveRequest(names=["a"]),
    "WatchEvents": pb.WatchEventsRequest(),
}
"""A valid request for each RPC that needs loaded services."""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """The data directory of the embedded Redis. pytest's directory may be too long for the path of a socket."""
    with tempfile.TemporaryDirectory(prefix="ossa-") as directory:
        yield Path(directory)


@pytest.fixture
def flags(data_dir: Path) -> tuple[str, ...]:
    # A probe would change the services that the tests compare.
    return (f"--data-dir={data_dir}", "--health-check.enabled=false")


# Reflection: a client without the protos.


class ReflectionClient:
    """A client that is given an address only."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))

    def call(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Call a unary RPC with JSON."""
        method = self._pool.FindServiceByName(SERVICE).methods_by_name[name]
        output = GetMessageClass(method.output_type)
        rpc: Any = self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=output.FromString,
        )
        message = ParseDict(dict(request), GetMessageClass(method.input_type)(), descriptor_pool=self._pool)
        answer: dict[str, Any] = MessageToDict(rpc(message, timeout=TIMEOUT), descriptor_pool=self._pool)
        return answer


async def test_ossa_example_registers_by_reflection_alone(flags: tuple[str, ...]) -> None:
    def register_and_find(address: str) -> tuple[dict[str, Any], dict[str, Any]]:
        with grpc.insecure_channel(address) as channel:
            client = ReflectionClient(channel)
            registered = client.call("RegisterService", {"service": OSSA_EXAMPLE})
            return registered, client.call("DiscoverServices", {"filter": {"capability": "text-analysis"}})

    async with ServerProcess(*flags) as server:
        registered, found = await asyncio.to_thread(register_and_find, server.grpc_address)

    service = registered["service"]
    assert {key: service[key] for key in OSSA_EXAMPLE if key != "health"} == {
        key: OSSA_EXAMPLE[key] for key in OSSA_EXAMPLE if key != "health"
    }
    assert found == {"services": [service], "totalSize": 1, "revision": "1"}


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not in PATH")
async def test_ossa_example_registers_with_grpcurl(flags: tuple[str, ...]) -> None:
    async def grpcurl(*arguments: str, send: object = None) -> str:
        process = await asyncio.create_subprocess_exec(
            *("grpcurl", "-plaintext", *(() if send is None else ("-d", "@")), *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate(json.dumps(send).encode())
        assert (process.returncode, errors) == (0, b"")
        return output.decode()

    async with ServerProcess(*flags) as server:
        address = server.grpc_address
        listed = (await grpcurl(address, "list")).split()
        rpcs = (await grpcurl(address, "list", SERVICE)).split()
        registered = json.loads(await grpcurl(address, f"{SERVICE}/RegisterService", send={"service": OSSA_EXAMPLE}))
        query = {"filter": {"tags": ["nlp"]}}
        found = json.loads(await grpcurl(address, f"{SERVICE}/DiscoverServices", send=query))
        health = json.loads(await grpcurl(address, "grpc.health.v1.Health/Check"))

    assert {SERVICE, "grpc.health.v1.Health"} <= set(listed)
    assert rpcs == sorted(
        f"{SERVICE}.{method.name}" for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods
    )
    assert registered["service"]["endpoint"] == OSSA_EXAMPLE["endpoint"]
    assert found["services"] == [registered["service"]]
    assert health == {"status": "SERVING"}


async def test_redis_holds_the_ossa_document_until_the_lease_ends(flags: tuple[str, ...], data_dir: Path) -> None:
    async with (
        ServerProcess(*flags) as server,
        connected(server.grpc_address) as (_, stub),
        Redis(unix_socket_path=str(data_dir / "redis.sock")) as client,
    ):
        service = (
            await stub.RegisterService(ParseDict({"service": OSSA_EXAMPLE}, pb.RegisterServiceRequest()))
        ).service
        document = json.loads(await client.get("ossa:services:ai-text-processor") or "")
        ttl = await client.pttl("ossa:services:ai-text-processor")
        await asyncio.sleep(0.02)
        later = await client.pttl("ossa:services:ai-text-processor")

    assert document == {
        "name": "ai-text-processor",
        "endpoint": "https://ai-service.company.com:8080",
        "version": "2.1.0",
        "capabilities": OSSA_EXAMPLE["capabilities"],
        "health": {
            "status": "unknown",
            "lastCheck": "2026-11-24T09:30:00.125Z",
            "statusChangedAt": iso(service.registered_at),
        },
        "metadata": {"tags": ["ai", "nlp"], "environment": "production", "labels": {}},
        "registeredAt": iso(service.registered_at),
        "updatedAt": iso(service.updated_at),
        "group": "ai-text-processor",
        "revision": 1,
    }
    assert 290_000 < later < ttl <= 300_000


def iso(time: Timestamp) -> str:
    return time.ToDatetime(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_registration_time_is_the_current_time(flags: tuple[str, ...]) -> None:
    async with ServerProcess(*flags) as server, connected(server.grpc_address) as (_, stub):
        before = datetime.now(UTC)
        service = (await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))).service
        after = datetime.now(UTC)
    assert before <= service.registered_at.ToDatetime(UTC) <= after


@pytest.mark.skipif(sys.platform != "linux", reason="SCHED_BATCH exists on Linux only")
async def test_busy_server_runs_under_sched_batch(flags: tuple[str, ...]) -> None:
    async with ServerProcess(*flags) as server, connected(server.grpc_address) as (_, stub):
        services = [small_service(f"agent-{i}") for i in range(1_000)]
        for start in range(0, len(services), 500):
            await stub.BatchRegisterServices(
                pb.BatchRegisterServicesRequest(services=services[start : start + 500]), timeout=TIMEOUT
            )
        async with asyncio.timeout(60):
            for i in count():  # a new pattern each time, which is matched with every name
                request = pb.DiscoverServicesRequest(filter=ServiceFilter(name_pattern=f"x{i}|y"), page_size=1)
                await asyncio.gather(*(stub.DiscoverServices(request) for _ in range(4)))
                if os.sched_getscheduler(server.pid) == os.SCHED_BATCH:
                    break
            while os.sched_getscheduler(server.pid) != os.SCHED_OTHER:
                await asyncio.sleep(0.1)


# SIGTERM.


async def test_sigterm_reports_not_serving_and_finishes_calls_in_flight(redis: RedisProcess) -> None:
    flags = (f"--redis.url={redis.url}", "--health-check.enabled=false", "--shutdown.grace-seconds=20")
    async with (
        ServerProcess(*flags) as leaving,
        ServerProcess(*flags) as staying,
        connected(leaving.grpc_address) as (channel, stub),
        connected(staying.grpc_address) as (_, other),
    ):
        health_stub: Any = HealthStub(channel)
        health = health_stub.Watch(HealthCheckRequest(service=SERVICE))
        assert (await health.read()).status == SERVING
        in_flight = stub.GetService(pb.GetServiceRequest(name="late", min_revision=1), timeout=TIMEOUT)
        await stub.GetStats(pb.GetStatsRequest())  # sent later on the same connection: the first call has arrived

        leaving.signal(signal.SIGTERM)

        assert (await health.read()).status == NOT_SERVING
        assert await answer(leaving, "/health") == (503, {"status": "unhealthy"})
        assert (await answer(leaving, "/health/live"))[0] == 200
        async with connected(leaving.grpc_address) as (_, newcomer):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await newcomer.GetStats(pb.GetStatsRequest())
        assert refused.value.code() is UNAVAILABLE
        assert not in_flight.done()

        await other.RegisterService(pb.RegisterServiceRequest(service=small_service("late")))

        assert (await in_flight).service.name == "late"
        assert await leaving.wait() == 0


@pytest.mark.own_redis
async def test_sigterm_commits_and_answers_a_write_in_flight(redis: RedisProcess) -> None:
    flags = (f"--redis.url={redis.url}", "--redis.timeout-ms=20000", "--shutdown.grace-seconds=20")
    async with ServerProcess(*flags) as server, connected(server.grpc_address) as (_, stub):
        redis.pause()
        in_flight = stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        await stub.GetStats(pb.GetStatsRequest())
        server.signal(signal.SIGTERM)
        await server.logged("draining")
        redis.resume()

        assert (await in_flight).service.revision == 1
        assert await server.wait() == 0
    async with Redis.from_url(redis.url) as client:
        assert await client.exists("ossa:services:a")


async def test_watch_ended_by_sigterm_resumes_after_a_restart_without_loss(
    flags: tuple[str, ...],
) -> None:
    server = ServerProcess(*flags)
    async with server, connected(server.grpc_address) as (_, stub):
        async with open_watch(stub, include_snapshot=True) as watch:
            assert await watch.snapshot() == []
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("handled")))
            assert kind_and_name(await watch.event()) == ("REGISTERED", "handled")
            handled = watch.cursor
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("sent")))
            assert kind_and_name(await watch.event()) == ("REGISTERED", "sent")

            server.signal(signal.SIGTERM)
            ended = await watch.failure()
            sent = watch.cursor
        assert await server.wait() == 0

    assert (ended.code, ended.reason) == (UNAVAILABLE, "SHUTTING_DOWN")

    async with server, connected(server.grpc_address) as (_, stub):
        await stub.UnregisterService(pb.UnregisterServiceRequest(name="handled"))
        expected = [("REGISTERED", "sent"), ("UNREGISTERED", "handled")]
        async with open_watch(stub, cursor=handled) as watch:
            assert [kind_and_name(event) for event in await watch.until(3)] == expected
        async with open_watch(stub, cursor=sent) as watch:
            assert [kind_and_name(event) for event in await watch.until(3)] == expected[1:]


async def test_sigterm_ends_keep_alive_streams_with_a_retry_delay(flags: tuple[str, ...]) -> None:
    async with ServerProcess(*flags) as server, connected(server.grpc_address) as (_, stub):
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        call = stub.KeepAlive()
        await call.write(pb.KeepAliveRequest(names=["a", "b"]))
        assert await call.read() == pb.KeepAliveResponse(renewed_count=1, unknown_names=["b"])

        server.signal(signal.SIGTERM)

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is UNAVAILABLE
        assert retry_seconds(status_of(ended.value)) > 0
        assert await server.wait() == 0


async def test_sigterm_stops_the_embedded_redis(flags: tuple[str, ...], data_dir: Path) -> None:
    async with ServerProcess(*flags) as server:
        redis = (await server.logged("redis-server started"))["pid"]
        assert is_alive(redis)
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
        assert not is_alive(redis)
    assert not plain_lines(server)
    # The directory is unlocked and its data is intact.
    async with ServerProcess(*flags):
        assert (data_dir / "redis.sock").is_socket()


async def test_second_sigterm_ends_the_process_immediately(redis: RedisProcess) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}", "--shutdown.grace-seconds=3600") as server,
        connected(server.grpc_address) as (_, stub),
    ):
        in_flight = stub.GetService(pb.GetServiceRequest(name="a", min_revision=1), timeout=TIMEOUT)
        await stub.GetStats(pb.GetStatsRequest())
        server.signal(signal.SIGTERM)
        await server.logged("draining")
        server.signal(signal.SIGTERM)
        assert await server.wait() == -signal.SIGTERM
        in_flight.cancel()


# SIGKILL.


async def test_kill_9_leaves_no_redis_and_the_next_start_finds_data_and_leases(
    flags: tuple[str, ...], data_dir: Path
) -> None:
    services = [small_service(f"a{i}", ttl={"seconds": 5}) for i in range(50)]
    server = ServerProcess(*flags)
    async with server, connected(server.grpc_address) as (_, stub):
        redis = (await server.logged("redis-server started"))["pid"]
        answers = await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=services))
        registered = [result.service for result in answers.results]
        assert registered[-1].revision == 50
        async with Redis(unix_socket_path=str(data_dir / "redis.sock")) as client:
            await pass_time(client, 5.5)  # longer than the leases, which are suspended while no registry runs
        await server.kill()

        async with asyncio.timeout(TIMEOUT):
            while is_alive(redis):
                await asyncio.sleep(0.02)

    async with (
        server,
        connected(server.grpc_address) as (_, stub),
        Redis(unix_socket_path=str(data_dir / "redis.sock")) as client,
    ):
        found = await stub.DiscoverServices(pb.DiscoverServicesRequest())
        assert list(found.services) == sorted(registered, key=lambda service: service.name)
        assert found.revision == 50
        await stub.Cleanup(pb.CleanupRequest())
        renewed = await stub.Heartbeat(pb.HeartbeatRequest(names=[service.name for service in services]))
        assert renewed == pb.HeartbeatResponse(renewed_count=50)
        async with asyncio.timeout(TIMEOUT):
            while len(await client.keys("ossa:services:*")) < 50:
                await asyncio.sleep(0.02)


# Failed and delayed starts.


@pytest.mark.parametrize("setting", ["grpc.address", "http.address"])
async def test_port_in_use_is_reported_in_one_line_with_exit_code_2(setting: str, flags: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, lines = await run_to_the_end(*flags, f"--{setting}={address}")

    assert code == 2
    (line,) = (line for line in lines if not line.startswith("{"))
    assert line.startswith(f"ossa-registry: {setting}: cannot listen on {address}")


async def test_data_directory_in_use_is_reported_with_exit_code_2(flags: tuple[str, ...]) -> None:
    async with ServerProcess(*flags) as server:
        code, lines = await run_to_the_end(*flags)
        pid = server.pid

    assert code == 2
    (line,) = (line for line in lines if not line.startswith("{"))
    assert line.startswith("ossa-registry: data_dir: ")
    assert line.endswith(f"in use by another server, pid {pid}")


@pytest.mark.own_redis
async def test_server_starts_without_redis_and_serves_once_redis_is_up(redis: RedisProcess) -> None:
    await redis.stop()
    async with starting(f"--redis.url={redis.url}") as server, connected(server.grpc_address) as (channel, stub):
        health_stub: Any = HealthStub(channel)
        health = health_stub.Watch(HealthCheckRequest())
        assert (await health.read()).status == NOT_SERVING
        assert (await answer(server, "/health"))[0] == 503
        assert (await answer(server, "/health/live"))[0] == 200
        for rpc, request in REQUESTS.items():
            refused = await refusal(channel, rpc, request)
            assert refused.code() is UNAVAILABLE, rpc
            assert retry_seconds(status_of(refused)) > 0
        batch = await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=[small_service("a")]))
        assert batch.results[0].status.code == UNAVAILABLE.value[0]
        assert retry_seconds(batch.results[0].status) > 0
        registry_health = await stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        assert registry_health.status == HealthStatus.HEALTH_STATUS_UNHEALTHY
        assert not registry_health.store_connected

        await redis.start()

        async with asyncio.timeout(TIMEOUT):
            assert (await health.read()).status == SERVING
        assert await answer(server, "/health") == (200, {"status": "healthy"})
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        assert (await stub.GetService(pb.GetServiceRequest(name="a"))).service.revision == 1
        health.cancel()


@pytest.mark.own_redis
async def test_sigterm_ends_a_server_that_waits_for_redis(redis: RedisProcess) -> None:
    await redis.stop()
    async with starting(f"--redis.url={redis.url}") as server:
        server.signal(signal.SIGTERM)
        assert await server.wait() == 0
    assert not plain_lines(server)


# Health of the registry.


async def test_http_health_is_degraded_while_a_service_is_unhealthy(flags: tuple[str, ...]) -> None:
    async with ServerProcess(*flags) as server, connected(server.grpc_address) as (_, stub):
        assert await answer(server, "/health") == (200, {"status": "healthy"})
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        assert await answer(server, "/health") == (200, {"status": "healthy"})
        for status, word in (
            (HealthStatus.HEALTH_STATUS_UNHEALTHY, "degraded"),
            (HealthStatus.HEALTH_STATUS_HEALTHY, "healthy"),
            (HealthStatus.HEALTH_STATUS_MAINTENANCE, "healthy"),
        ):
            await stub.ReportServiceHealth(pb.ReportServiceHealthRequest(name="a", status=status))
            assert await answer(server, "/health") == (200, {"status": word})
        assert await answer(server, "/health/live") == (200, {"status": "alive"})


# Helpers.


@asynccontextmanager
async def starting(*flags: str) -> AsyncIterator[ServerProcess]:
    """Run a server until the block ends; return once it listens, whether or not it serves."""
    server = ServerProcess(*flags)
    start = asyncio.create_task(server.start())
    try:
        async with asyncio.timeout(TIMEOUT):
            while not server.http_address:
                await asyncio.sleep(0.01)
        yield server
    finally:
        start.cancel()
        await asyncio.wait([start])
        await server.stop()


async def run_to_the_end(*flags: str) -> tuple[int, list[str]]:
    """Run a server that cannot start; return its exit code and the lines of its standard error."""
    code, errors = await run_to_end(
        *(sys.executable, "-m", "registry_server", "--grpc.address=127.0.0.1:0", "--http.address=127.0.0.1:0", *flags),
        max_seconds=TIMEOUT,
        env={name: value for name, value in os.environ.items() if not name.startswith("OSSA_REGISTRY_")},
        stderr_only=True,
    )
    return code, errors.splitlines()


async def answer(server: ServerProcess, path: str) -> tuple[int, Any]:
    """Return the status and the JSON of a GET."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{server.http_address}{path}") as response:
        return response.status, await response.json()


async def refusal(channel: grpc.aio.Channel, rpc: str, request: Message) -> grpc.aio.AioRpcError:
    """Call an RPC that must fail; return its error."""
    path, wire = f"/{SERVICE}/{rpc}", request.SerializeToString()
    untyped: Any = channel
    match rpc:
        case "KeepAlive":
            call = untyped.stream_stream(path)(iter([wire]), timeout=TIMEOUT).read()
        case "WatchEvents":
            call = untyped.unary_stream(path)(wire, timeout=TIMEOUT).read()
        case _:
            call = untyped.unary_unary(path)(wire, timeout=TIMEOUT)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


def status_of(error: grpc.aio.AioRpcError) -> Status:
    return Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])


def retry_seconds(status: Status) -> float:
    """Return the delay in ``RetryInfo``."""
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details), "RetryInfo is missing"
    return float(retry.retry_delay.ToTimedelta().total_seconds())


def plain_lines(server: ServerProcess) -> list[str]:
    """Return the lines on standard error that are not log lines, such as tracebacks."""
    return [line["event"] for line in server.log if list(line) == ["event"]]


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")
