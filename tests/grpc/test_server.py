import asyncio
import gc
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Capability
from registry_server.rpc.calls import RpcStream
from tests.grpc.calls import TIMEOUT, Failure, failure, failure_of, get, register
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, connected, running
from tests.support.waiting import until

REGISTRY = pb.DESCRIPTOR.services_by_name["RegistryService"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# grpc.health.v1.


def health_of(channel: grpc.aio.Channel) -> Any:
    """Return a client of the health protocol, whose stubs are not typed for asyncio."""
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", "ossa.registry.v1.RegistryService"])
async def test_health_service_reports_serving(server: Server, service: str) -> None:
    health = health_of(server.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
    watch = health.Watch(health_pb2.HealthCheckRequest(service=service))
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_health_of_an_unknown_service_is_not_found(server: Server) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await health_of(server.channel).Check(health_pb2.HealthCheckRequest(service="missing"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_watch_reports_not_serving_when_the_server_drains(redis: RedisProcess) -> None:
    async with AsyncExitStack() as outer:
        async with running(redis.url) as server:
            channel, _ = await outer.enter_async_context(connected(server.grpc_address))
            watches = [
                health_of(channel).Watch(health_pb2.HealthCheckRequest(service=name))
                for name in ("", REGISTRY.full_name)
            ]
            for watch in watches:
                assert (await watch.read()).status == SERVING
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING


# Draining.


async def test_keep_alive_ends_with_unavailable_when_the_server_drains(redis: RedisProcess) -> None:
    async with AsyncExitStack() as outer:
        async with running(redis.url) as server:
            _, stub = await outer.enter_async_context(connected(server.grpc_address))
            await register(server, small_service("a"))
            stream = stub.KeepAlive()
            await stream.write(pb.KeepAliveRequest(names=["a"]))
            assert await stream.read() == pb.KeepAliveResponse(renewed_count=1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        refused = failure_of(raised.value)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


# Memory.


async def test_ended_streams_are_freed_without_the_garbage_collector(server: Server) -> None:
    gc.collect()
    gc.disable()
    try:
        watch = server.stub.WatchEvents(pb.WatchEventsRequest(include_snapshot=True))
        await watch.read()
        watch.cancel()
        keep_alive = server.stub.KeepAlive()
        await keep_alive.write(pb.KeepAliveRequest(names=["a"]))
        await keep_alive.read()
        await keep_alive.done_writing()
        assert await keep_alive.read() is grpc.aio.EOF
        await until(lambda: not any(type(each) is RpcStream for each in gc.get_objects()))
    finally:
        gc.enable()


# Reflection.


async def reflected(channel: Any, version: str = "v1", **request: str) -> reflection_pb2.ServerReflectionResponse:
    stream = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await stream.write(reflection_pb2.ServerReflectionRequest(**request))  # type: ignore[arg-type]
    answer = await stream.read()
    assert isinstance(answer, reflection_pb2.ServerReflectionResponse)
    stream.cancel()
    return answer


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_the_services(version: str, server: Server) -> None:
    answer = await reflected(server.channel, version, list_services="")
    assert {service.name for service in answer.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "ossa.registry.v1.RegistryService",
    }


async def test_reflection_returns_all_files_of_the_contract(server: Server) -> None:
    files: dict[str, FileDescriptorProto] = {}
    wanted = {"file_containing_symbol": [REGISTRY.full_name], "file_by_filename": []}
    while pending := next(((kind, names.pop()) for kind, names in wanted.items() if names), None):
        answer = await reflected(server.channel, **{pending[0]: pending[1]})
        for wire in answer.file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(wire)
            files[file.name] = file
            wanted["file_by_filename"] += [name for name in file.dependency if name not in files]

    pool = DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name not in added:
            added.add(name)
            for dependency in files[name].dependency:
                add(dependency)
            pool.Add(files[name])

    for name in files:
        add(name)
    service = pool.FindServiceByName(REGISTRY.full_name)
    assert [method.name for method in service.methods] == [method.name for method in REGISTRY.methods]
    for method, known in zip(service.methods, REGISTRY.methods, strict=True):
        assert method.input_type.fields_by_name.keys() == known.input_type.fields_by_name.keys()
        assert method.output_type.fields_by_name.keys() == known.output_type.fields_by_name.keys()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_itself(version: str, server: Server) -> None:
    name = f"grpc.reflection.{version}"
    answer = await reflected(server.channel, file_containing_symbol=f"{name}.ServerReflection.ServerReflectionInfo")
    (wire,) = answer.file_descriptor_response.file_descriptor_proto
    file = FileDescriptorProto.FromString(wire)
    assert (file.package, file.service[0].method[0].input_type) == (name, f".{name}.ServerReflectionRequest")
    answer = await reflected(server.channel, file_by_filename=file.name)
    assert list(answer.file_descriptor_response.file_descriptor_proto) == [wire]


@pytest.mark.parametrize("name", ["RegistryService", "RegistryService.WatchEvents", "Service", "Service.name"])
async def test_reflection_finds_the_file_of_a_symbol(name: str, server: Server) -> None:
    answer = await reflected(server.channel, file_containing_symbol=f"ossa.registry.v1.{name}")
    assert any(b"ossa/registry/v1" in file for file in answer.file_descriptor_response.file_descriptor_proto)


async def test_reflection_reports_an_unknown_symbol_as_not_found(server: Server) -> None:
    answer = await reflected(server.channel, file_containing_symbol="ossa.registry.v1.RegistryService.Nothing")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_reflection_can_be_disabled(redis: RedisProcess) -> None:
    async with running(redis.url, grpc={"reflection": False}) as server:
        # A single request: grpc.aio reports INTERNAL if a stream is refused before its first message is written.
        channel: Any = server.channel
        call = channel.unary_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(b"")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


# Invalid calls.


def raw(server: Server, path: str) -> Any:
    """Return a call with encoded request and response."""
    channel: Any = server.channel
    return channel.unary_unary(path)


async def send_bytes(channel: Any, method: Any, wire: bytes) -> Failure:
    """Send bytes as the request of a method and return the error."""
    path = f"/{REGISTRY.full_name}/{method.name}"
    if method.client_streaming:
        stream = channel.stream_stream(path)()
        await stream.write(wire)
        return await failure(stream.read())
    if method.server_streaming:
        return await failure(channel.unary_stream(path)(wire).read())
    return await failure(channel.unary_unary(path)(wire))


@pytest.mark.parametrize("method", list(REGISTRY.methods), ids=lambda method: str(method.name))
async def test_undecodable_request_is_an_invalid_argument(server: Server, method: Any) -> None:
    for wire in (b"\xff", b"\x0a\x05ab", b"\x0b", b"\x00"):
        refused = await send_bytes(server.channel, method, wire)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert method.input_type.full_name in refused.message
    await register(server, small_service("a"))


async def test_name_that_is_not_utf8_is_an_invalid_argument(server: Server) -> None:
    refused = await send_bytes(server.channel, REGISTRY.methods_by_name["GetService"], b"\x0a\x01\xff")
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize("path", ["/ossa.registry.v1.RegistryService/Nothing", "/ossa.registry.v2.RegistryService/Get"])
async def test_unknown_method_is_unimplemented(server: Server, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await raw(server, path)(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_unknown_fields_are_ignored(server: Server) -> None:
    newer = b"\xa2\x06\x03new"  # field 100
    request = pb.RegisterServiceRequest(service=small_service("a")).SerializeToString()
    wire = await raw(server, f"/{REGISTRY.full_name}/RegisterService")(request + newer)
    assert pb.RegisterServiceResponse.FromString(wire).service == await get(server, "a")
    for _ in range(2):
        wire = await raw(server, f"/{REGISTRY.full_name}/DiscoverServices")(newer)
        assert [service.name for service in pb.DiscoverServicesResponse.FromString(wire).services] == ["a"]


async def test_server_keeps_serving_after_refusing_a_large_message(redis: RedisProcess) -> None:
    async with running(redis.url, grpc={"max_message_bytes": 128 * 1024}) as server:
        services = [
            small_service(f"s{i}", capabilities=[Capability(name="c", description="d" * 4000)]) for i in range(40)
        ]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=services))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=services[:20]))
        assert all(result.HasField("service") for result in answer.results)


async def test_response_may_exceed_the_request_size_limit(redis: RedisProcess) -> None:
    async with running(redis.url, grpc={"max_message_bytes": 64 * 1024}) as server:
        for i in range(40):
            await register(server, small_service(f"s{i}", capabilities=[Capability(name="c", description="d" * 4000)]))
        answer = await server.stub.DiscoverServices(pb.DiscoverServicesRequest())
        assert answer.ByteSize() > 128 * 1024
        assert len(answer.services) == 40


# Connections.


@pytest.mark.slow
@pytest.mark.parametrize(("min_ping_interval_ms", "stays"), [(900, True), (5_000, False)])
async def test_idle_clients_may_ping_at_the_configured_interval(
    redis: RedisProcess, min_ping_interval_ms: int, *, stays: bool
) -> None:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.keepalive_time_ms", 1_000),  # the minimum of clients on gRPC's C core
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with (
        running(redis.url, grpc={"min_ping_interval_ms": min_ping_interval_ms}) as server,
        grpc.aio.insecure_channel(server.grpc_address, options=options) as channel,
    ):
        await asyncio.wait_for(channel.channel_ready(), TIMEOUT)
        with suppress(TimeoutError):  # the server closes the connection after the third early ping
            await asyncio.wait_for(channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 5)
        assert (channel.get_state() is grpc.ChannelConnectivity.READY) == stays
