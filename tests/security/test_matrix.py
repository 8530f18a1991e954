"""Every RPC and route answers every kind of credential as documented in docs/security.md."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from registry_server.gateway.routes import BASE, ROUTES
from registry_server.rpc.service import RPCS
from tests.support.markdown import bare, rows, section, text_of
from tests.support.redis_process import RedisProcess
from tests.support.security import ROLES, Policy, bearer, jwks, token
from tests.support.server import Server, running

OWN, OTHER_OWNER, NOT_MATCHING = "fleet-own", "fleet-other", "other-one"
MAX_STREAM_ATTEMPTS = 10
COLUMNS = ("none", "bad", "viewer", "agent, own", "agent, another's", "operator", "admin")
TABLE = {
    bare(row[0]): dict(zip(COLUMNS, row[1:], strict=True))
    for row in rows(section(text_of("docs/security.md"), "## Permissions"))
}
"""Documented answers by call and column."""

Metadata = tuple[tuple[str, str], ...]
Call = Callable[[grpc.aio.Channel, str, Metadata], Awaitable[object]]


def service(name: str) -> Service:
    result = Service(name=name, endpoint="http://agent.test:8080", version="1.0.0")
    result.health_check.none.SetInParent()
    return result


def health_stub(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def watch(channel: grpc.aio.Channel, _: str, metadata: Metadata) -> None:
    call = RegistryServiceStub(channel).WatchEvents(pb.WatchEventsRequest(), metadata=metadata)
    await call.read()
    call.cancel()


async def call_stream(start: Callable[[], Any], message: Any) -> None:
    """Call a streaming RPC with one message; raise ``Failed`` if it fails.

    Writing to a call that has just ended fails in the client, which then reports INTERNAL itself: try again. The
    registry's own INTERNAL refers to its log.
    """
    code, details = grpc.StatusCode.INTERNAL, ""
    attempts = 0
    while code is grpc.StatusCode.INTERNAL and "server's log" not in details and attempts < MAX_STREAM_ATTEMPTS:
        attempts += 1
        call = start()
        with suppress(grpc.aio.AioRpcError):
            await call.write(message)
            await call.read()
            await call.done_writing()
        code, details = await call.code(), await call.details() or ""
    if code is not grpc.StatusCode.OK:
        raise Failed(code)


async def keep_alive(channel: grpc.aio.Channel, name: str, metadata: Metadata) -> None:
    stub = RegistryServiceStub(channel)
    await call_stream(lambda: stub.KeepAlive(metadata=metadata), pb.KeepAliveRequest(names=[name]))


async def batch(channel: grpc.aio.Channel, name: str, metadata: Metadata) -> None:
    """Register a batch of one service; raise ``Failed`` with the status of that service."""
    answer = await RegistryServiceStub(channel).BatchRegisterServices(
        pb.BatchRegisterServicesRequest(services=[service(name)]), metadata=metadata
    )
    status = answer.results[0].status
    if status.code:
        raise Failed(next(code for code in grpc.StatusCode if code.value[0] == status.code))


class Failed(Exception):
    """A call ended with this code."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code
        super().__init__(code)


async def health_watch(channel: grpc.aio.Channel, _: str, metadata: Metadata) -> None:
    call = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
    await call.read()
    call.cancel()


def reflect(version: str) -> Call:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    message = reflection_pb2.ServerReflectionRequest(list_services="")

    async def call(channel: Any, _: str, metadata: Metadata) -> None:
        serialize = reflection_pb2.ServerReflectionRequest.SerializeToString
        await call_stream(lambda: channel.stream_stream(path, serialize)(metadata=metadata), message)

    return call


def unary(method: str, request: Callable[[str], Any]) -> Call:
    async def call(channel: grpc.aio.Channel, name: str, metadata: Metadata) -> object:
        return await getattr(RegistryServiceStub(channel), method)(request(name), metadata=metadata)

    return call


def update_request(name: str) -> pb.UpdateServiceRequest:
    request = pb.UpdateServiceRequest(service=service(name))
    request.update_mask.paths.append("version")
    return request


def simple_request(kind: type[Message]) -> Callable[[str], Message]:
    """Return a function that builds a request for a name; the name is in the field that requests have for it."""
    fields: dict[str, Callable[[str], Any]] = {
        "name": str,
        "names": lambda name: [name],
        "service": service,
        "query": str,
    }
    known = [field for field in fields if field in kind.DESCRIPTOR.fields_by_name]
    return lambda name: kind(**{field: fields[field](name) for field in known})


RPC_CALLS: dict[str, Call] = {
    **{
        method.name: unary(method.name, simple_request(GetMessageClass(method.input_type)))
        for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods
    },
    "BatchRegisterServices": batch,
    "UpdateService": unary("UpdateService", update_request),
    "ReportServiceHealth": unary(
        "ReportServiceHealth",
        lambda name: pb.ReportServiceHealthRequest(name=name, status=HealthStatus.HEALTH_STATUS_MAINTENANCE),
    ),
    "KeepAlive": keep_alive,
    "WatchEvents": watch,
    "grpc.health.v1.Health/Check": lambda channel, _, metadata: health_stub(channel).Check(
        health_pb2.HealthCheckRequest(), metadata=metadata
    ),
    "grpc.health.v1.Health/Watch": health_watch,
    **{f"grpc.reflection.{each}.ServerReflection/ServerReflectionInfo": reflect(each) for each in ("v1", "v1alpha")},
}


def document(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "endpoint": "http://agent.test:8080",
        "version": "1.0.0",
        "capabilities": [],
        "healthCheck": {"type": "none"},
    }


BODIES: dict[str, Callable[[str], Any]] = {
    f"POST {BASE}/services": document,
    f"PUT {BASE}/services/{{name}}": lambda _: {"version": "2.0.0"},
    f"PUT {BASE}/services/{{name}}/maintenance": lambda _: {"enabled": True, "reason": "disk replacement"},
}


QUERIES = {f"GET {BASE}/search": "?q=x"}


def credentials(policy: Policy) -> dict[str, list[str]]:
    """Return the credentials of each column of the table."""
    return {
        "none": [""],
        "bad": [
            "ossa_not-a-key",
            policy.keys["expired"],
            token(roles=["admin"], exp=int(time.time()) - 60),
            token(roles=["admin"], aud="another"),
            token(roles=["admin"], iss="https://another.test"),
            token(roles=["admin"])[:-8] + "AAAAAAAA",
            token(roles=["no-such-role"]),
        ],
        "agent, own": [policy.keys["agent"]],
        "agent, another's": [policy.keys["agent"], token("test-agent", roles=["agent"])],
        **{role: [policy.keys[role], token(roles=[role])] for role in ROLES if role != "agent"},
    }


def targets_of(column: str) -> list[str]:
    return [OTHER_OWNER, NOT_MATCHING] if column == "agent, another's" else [OWN]


async def register_targets(server: Server, policy: Policy, *names: str) -> None:
    """Register services, each as its owner."""
    for name in names:
        owner = "agent" if name == OWN else "other"
        await server.stub.RegisterService(
            pb.RegisterServiceRequest(service=service(name)), metadata=policy.metadata(owner)
        )


@pytest.fixture(params=["everything public", "nothing public"])
async def site(
    request: pytest.FixtureRequest, redis: RedisProcess, policy: Policy
) -> AsyncIterator[tuple[Server, bool]]:
    public = request.param == "everything public"
    security = policy.section | {"public": ("health", "metrics", "docs", "reflection") if public else ()}
    async with running(redis.url, security=security, health_check={"enabled": True}) as served:
        yield served, public


def documented(call: str, column: str, *, public: bool) -> str:
    """Return the documented answer; a cell ``A / B`` means A if the part is public and B if not."""
    cell = TABLE[call][column]
    if_public, _, if_private = cell.partition(" / ")
    return if_public if public or not if_private else if_private


def test_documented_table_has_exactly_the_rpcs_and_routes() -> None:
    routes = {f"{route.method} {route.path}" for route in ROUTES}
    assert set(TABLE) == set(RPC_CALLS) | routes
    assert set(RPCS) < set(RPC_CALLS)


async def test_every_rpc_answers_as_documented(
    site: tuple[Server, bool], policy: Policy, subtests: pytest.Subtests
) -> None:
    server, public = site
    for column, column_credentials in credentials(policy).items():
        for credential in column_credentials:
            for name in targets_of(column):
                for rpc, call in RPC_CALLS.items():
                    await register_targets(server, policy, name)
                    with subtests.test(rpc, column=column, credential=credential[:12], name=name):
                        expected = documented(rpc, column, public=public)
                        assert await code_of(call, server, name, bearer(credential) if credential else ()) == expected


async def code_of(call: Call, server: Server, name: str, metadata: Metadata) -> str:
    try:
        await call(server.channel, name, metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except Failed as error:
        return error.code.name
    return "OK"


async def test_every_route_answers_as_documented(
    site: tuple[Server, bool], policy: Policy, subtests: pytest.Subtests
) -> None:
    server, public = site
    async with aiohttp.ClientSession(server.http) as session:
        for column, column_credentials in credentials(policy).items():
            for credential in column_credentials:
                for name in targets_of(column):
                    for method, path in ((route.method, route.path) for route in ROUTES):
                        await register_targets(server, policy, name)
                        call = f"{method} {path}"
                        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
                        body = BODIES[call](name) if call in BODIES else None
                        with subtests.test(call, column=column, credential=credential[:12], name=name):
                            async with session.request(
                                method, path.replace("{name}", name) + QUERIES.get(call, ""), json=body, headers=headers
                            ) as answer:
                                assert str(answer.status) == documented(call, column, public=public)
                                if answer.status == 401:
                                    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_x_api_key_header_accepts_api_keys_only(guarded: Server, policy: Policy) -> None:
    key = policy.keys["viewer"]
    await guarded.stub.GetStats(pb.GetStatsRequest(), metadata=(("x-api-key", key),))
    async with aiohttp.ClientSession(guarded.http) as session:
        async with session.get(f"{BASE}/stats", headers={"X-Api-Key": key}) as answer:
            assert answer.status == 200
        async with session.get(f"{BASE}/stats", headers={"X-Api-Key": token(roles=["admin"])}) as answer:
            assert answer.status == 401


async def test_two_credentials_are_refused_even_if_both_are_valid(guarded: Server, policy: Policy) -> None:
    good = policy.metadata("admin")
    for metadata in ((*good, ("x-api-key", policy.keys["admin"])), (*good, *good)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await guarded.stub.GetStats(pb.GetStatsRequest(), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    headers = [("X-Api-Key", policy.keys["admin"]), ("X-Api-Key", policy.keys["admin"])]
    async with (
        aiohttp.ClientSession(guarded.http) as session,
        session.get(f"{BASE}/stats", headers=headers) as answer,
    ):
        assert answer.status == 401


async def test_unknown_paths_and_methods_need_no_credential(guarded: Server) -> None:
    async with aiohttp.ClientSession(guarded.http) as session:
        async with session.get("/nothing") as answer:
            assert answer.status == 404
        async with session.delete(f"{BASE}/stats") as answer:
            assert answer.status == 405
        async with session.options(f"{BASE}/stats") as answer:
            assert answer.status == 204
        async with session.head(f"{BASE}/stats") as answer:
            assert answer.status == 401


def test_published_test_keys_contain_no_private_key(tmp_path: Path) -> None:
    Policy(tmp_path)
    assert all("d" not in key for key in jwks()["keys"])
