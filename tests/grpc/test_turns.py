"""No request of any size stops the event loop: what a client repeats is bounded before it is parsed and walked."""

import asyncio
import gc
from typing import Any, Final

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Capability, Metadata, Service, ServiceFilter
from registry_server.config import GrpcSettings
from registry_server.errors import InvalidRequest
from registry_server.model.wire import bytes_field, integer_field
from registry_server.rpc.calls import RpcCall
from tests.grpc.calls import HEALTHY, failure_of, find_names, get, redis_client, register
from tests.support.floods import floods
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running
from tests.support.stalls import MAX_TURN_SECONDS, measured_turns
from tests.support.waiting import until

RPCS: Final = pb.DESCRIPTOR.services_by_name["RegistryService"]
LARGEST: Final = GrpcSettings().max_message_bytes
MAX_PARSED_BYTES: Final = {"Heartbeat": 2 << 20, "KeepAlive": 2 << 20, "BatchRegisterServices": LARGEST}
"""Largest request that is parsed, of RPCs that need a large one."""
INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT
OK: Final = grpc.StatusCode.OK
SCHEMA_VALUES: Final = 31_000


def number(message: Any, field: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[field].number)


def valid(name: str = "a") -> bytes:
    return small_service(name).SerializeToString()


BASES: Final = {
    "RegisterService": bytes_field(1, valid()),
    "UpdateService": bytes_field(1, valid()),
    "ReportServiceHealth": pb.ReportServiceHealthRequest(name="a", status=HEALTHY).SerializeToString(),
}
"""Valid content, so that the other fields are checked too."""


async def send(server: Server, rpc: str, wire: bytes) -> grpc.StatusCode:
    """Send bytes as the request of an RPC and return the code; fail if the error names no field."""
    method = RPCS.methods_by_name[rpc]
    channel: Any = server.channel  # typed for messages, not for bytes
    path = f"/{RPCS.full_name}/{rpc}"
    try:
        if method.client_streaming:
            await channel.stream_stream(path)(iter([wire]), timeout=60).read()
        elif method.server_streaming:
            call = channel.unary_stream(path)(wire, timeout=60)
            await call.read()
            call.cancel()
        else:
            await channel.unary_unary(path)(wire, timeout=60)
    except grpc.aio.AioRpcError as error:
        failure_of(error)
        code: grpc.StatusCode = error.code()
        return code
    return OK


@pytest.mark.parametrize("rpc", [method.name for method in RPCS.methods])
async def test_flood_of_any_field_does_not_stop_the_event_loop(server: Server, rpc: str) -> None:
    size = min(MAX_PARSED_BYTES.get(rpc, 256 << 10), 512 << 10)
    await register(server, small_service("a"))  # floods of `min_revision` then wait for nothing
    longest = 0.0, ""
    for flood, wire in floods(RPCS.methods_by_name[rpc].input_type, size, BASES.get(rpc, b"")):
        assert size - 200 < len(wire) <= size
        with measured_turns() as turns:
            code = await send(server, rpc, wire)
        longest = max(longest, (turns.longest, f"{flood}: {code.name}"))
    print(rpc, longest)
    assert longest[0] < MAX_TURN_SECONDS, longest


@pytest.mark.parametrize("rpc", [method.name for method in RPCS.methods if method.name not in MAX_PARSED_BYTES])
async def test_request_larger_than_any_valid_one_is_refused_unparsed(server: Server, rpc: str) -> None:
    wire = bytes_field(1, b"") * ((LARGEST - 100) // 2)
    with measured_turns() as turns:
        assert await send(server, rpc, wire) is INVALID
    assert turns.longest < MAX_TURN_SECONDS


def costly_service(name: str) -> bytes:
    """Return a valid service of almost 128 KiB with a schema of as many values as possible, and many capabilities."""
    values = bytes_field(1, b"\x32\0") * SCHEMA_VALUES  # empty lists: they cost the most
    schema = bytes_field(1, bytes_field(1, b"k") + bytes_field(2, bytes_field(6, values)))
    capability = bytes_field(number(Capability, "name"), b"c") + bytes_field(number(Capability, "inputs"), schema)
    others = [bytes_field(number(Capability, "name"), f"c{i}".encode()) for i in range(60)]
    return valid(name) + b"".join(bytes_field(number(Service, "capabilities"), each) for each in (*others, capability))


async def register_costly_services(server: Server) -> float:
    """Register 30 costly services in a batch, and return the longest turn."""
    wire = b"".join(bytes_field(1, costly_service(f"s{i}")) for i in range(30))
    with measured_turns() as turns:
        assert await send(server, "BatchRegisterServices", wire) is OK
    while len(await find_names(server, ServiceFilter())) < 30:  # Redis of a busy machine takes too long for some
        await send(server, "BatchRegisterServices", wire)
    return turns.longest


async def test_batch_of_costly_services_does_not_stop_the_event_loop(server: Server) -> None:
    assert await register_costly_services(server) < MAX_TURN_SECONDS
    with measured_turns() as turns:
        assert await send(server, "ListCapabilities", b"") is OK
    assert turns.longest < MAX_TURN_SECONDS


async def test_draining_of_costly_services_does_not_stop_the_event_loop(server: Server) -> None:
    await register_costly_services(server)
    leases = [pb.Lease(name=f"s{i}", draining=True) for i in range(30)]
    wire = pb.HeartbeatRequest(leases=leases).SerializeToString()
    with measured_turns() as turns:
        code = await send(server, "Heartbeat", wire)
    assert turns.longest < MAX_TURN_SECONDS
    while code is not OK:  # Redis of a busy machine takes too long for some
        code = await send(server, "Heartbeat", wire)
    assert all(record.draining for record in server.parts.replica.records.values())


async def test_concurrent_batches_take_turns(server: Server) -> None:
    tags = bytes_field(number(Service, "metadata"), bytes_field(number(Metadata, "tags"), b",") * 60)
    bad = bytes_field(1, tags) * 500
    with measured_turns() as turns:
        codes = await asyncio.gather(*(send(server, "BatchRegisterServices", bad) for _ in range(10)))
    assert set(codes) == {OK}  # each service has its own error
    assert turns.longest < MAX_TURN_SECONDS


async def test_batch_refuses_only_the_service_that_is_too_large(server: Server) -> None:
    large = small_service("large", metadata={"documentation": "a" * 300_000})
    request = pb.BatchRegisterServicesRequest(services=[small_service("a"), large, small_service("b")])
    results = (await server.stub.BatchRegisterServices(request)).results
    assert [result.WhichOneof("result") for result in results] == ["service", "status", "service"]
    assert "services[1]: takes 300" in results[1].status.message
    assert await find_names(server, ServiceFilter()) == ["a", "b"]


async def test_batch_with_a_malformed_service_registers_none(server: Server) -> None:
    wire = bytes_field(1, valid("a")) + bytes_field(1, b"\xff")
    assert await send(server, "BatchRegisterServices", wire) is INVALID
    assert await find_names(server, ServiceFilter()) == []


async def test_schema_of_the_largest_service_is_returned(server: Server) -> None:
    assert await send(server, "RegisterService", bytes_field(1, costly_service("a"))) is OK
    inputs = (await get(server, "a")).capabilities[-1].inputs
    assert len(inputs.fields["k"].list_value.values) == SCHEMA_VALUES


@pytest.mark.parametrize("rpc", ["GetService", "RegisterService", "WatchEvents", "KeepAlive", "Heartbeat"])
async def test_refused_calls_release_their_request(server: Server, rpc: str) -> None:
    with measured_turns():  # without the garbage collector, which frees cycles only after thousands of calls
        for _ in range(10):
            assert await send(server, rpc, b"\xff" * 200_000) is INVALID
        await until(lambda: count(RpcCall) <= 1)


async def test_batch_with_refused_services_releases_them(server: Server) -> None:
    request = pb.BatchRegisterServicesRequest(services=[small_service("-"), small_service("a")]).SerializeToString()
    with measured_turns():
        for _ in range(10):
            assert await send(server, "BatchRegisterServices", request) is OK
        await until(lambda: count(InvalidRequest) == 0)


def count(kind: type) -> int:
    """Return the number of objects of a class."""
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def test_large_records_are_loaded_in_slices(redis: RedisProcess) -> None:
    revision = integer_field(number(Service, "revision"), 1)
    async with redis_client(redis) as client:
        await client.set("ossa:registry:revision", 1)
        for start in range(0, 1_000, 100):
            names = [f"s{i}" for i in range(start, start + 100)]
            await client.hset(
                "ossa:registry:records", mapping={each: costly_service(each) + revision for each in names}
            )
    with measured_turns() as turns:
        async with running(redis.url) as server:
            assert len(server.parts.replica.records) == 1_000
    assert turns.longest < MAX_TURN_SECONDS
