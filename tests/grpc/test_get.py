import asyncio

import grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.grpc.calls import failure, get, register, unregister
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server, running


async def test_service_is_read_as_registered(server: Server) -> None:
    registered = await register(server, example_service())
    assert await get(server, registered.name) == registered


async def test_names_are_case_sensitive(server: Server) -> None:
    lower = await register(server, small_service("agent"))
    upper = await register(server, small_service("Agent"))
    assert [await get(server, name) for name in ("agent", "Agent")] == [lower, upper]
    assert (await failure(get(server, "AGENT"))).code is grpc.StatusCode.NOT_FOUND


async def test_unknown_name_is_not_found(server: Server) -> None:
    await register(server, small_service("missing-1"))
    refused = await failure(get(server, "missing"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")
    assert refused.metadata == {"name": "missing"}
    assert "missing" in refused.message


async def test_bad_fields_are_reported(server: Server) -> None:
    for name in ("", "-a", "a b", "a//b", "a" * 129, "ä"):
        refused = await failure(get(server, name, min_revision=-1))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name", "min_revision"])
    await register(server, small_service("a"))
    refused = await failure(get(server, "a", min_revision=-1))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["min_revision"])


async def test_reached_min_revision_is_not_waited_for(server: Server) -> None:
    service = await register(server, small_service("a"))
    assert await get(server, "a", min_revision=service.revision) == service
    refused = await failure(get(server, "b", min_revision=service.revision))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_get_waits_for_min_revision(server: Server) -> None:
    first = await register(server, small_service("a"))
    request = pb.GetServiceRequest(name="a", min_revision=first.revision + 2)
    call = server.stub.GetService(request, timeout=20)
    waiting = asyncio.ensure_future(call)
    await register(server, small_service("other"))
    assert await get(server, "a", min_revision=first.revision + 1) == first
    assert not waiting.done()
    second = await register(server, small_service("a", version="2.0.0"))
    assert (await waiting).service == second


async def test_get_with_min_revision_returns_the_state_at_that_revision(server: Server) -> None:
    first = await register(server, small_service("a"))
    waiting = asyncio.ensure_future(get(server, "b", min_revision=first.revision + 1))
    b = await register(server, small_service("b"))
    assert await waiting == b
    waiting = asyncio.ensure_future(get(server, "b", min_revision=b.revision + 1))
    await unregister(server, "b")
    assert (await failure(waiting)).code is grpc.StatusCode.NOT_FOUND


async def test_unreached_min_revision_ends_with_the_deadline(server: Server) -> None:
    await register(server, small_service("a"))
    started = asyncio.get_running_loop().time()
    call = server.stub.GetService(pb.GetServiceRequest(name="a", min_revision=2**62), timeout=0.3)
    try:
        await call
    except grpc.aio.AioRpcError as error:
        code = error.code()
    else:
        code = grpc.StatusCode.OK
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.2 < asyncio.get_running_loop().time() - started < 5


async def test_min_revision_waits_for_writes_of_another_server(server: Server, redis: RedisProcess) -> None:
    async with running(redis.url) as other:
        for i in range(20):
            written = await register(server, small_service("a", version=f"{i}.0.0"))
            assert await get(other, "a", min_revision=written.revision) == written
