"""Every RPC and route with every kind of credential answers exactly what docs/security.md says."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from registry_server.gateway.routes import BASE
from registry_server.security.permissions import ROUTES, RPCS
from tests.support.markdown import bare, rows, section, text_of
from tests.support.redis_process import RedisProcess
from tests.support.security import ROLES, Policy, bearer, jwks, token
from tests.support.server import Server, running

OWN, ANOTHERS, NOT_MATCHING = "fleet-own", "fleet-other", "other-one"
COLUMNS = ("none", "bad", "viewer", "agent, own", "agent, another's", "operator", "admin")
TABLE = {
    bare(row[0]): dict(zip(COLUMNS, row[1:], strict=True))
    for row in rows(section(text_of("docs/security.md"), "## Permissions"))
}
"""Call to what each caller is answered, as it is documented."""

Metadata = tuple[tuple[str, str], ...]
Call = Callable[[grpc.aio.Channel, str, Metadata], Awaitable[object]]


def service(name: str) -> Service:
    made = Service(name=name, endpoint="http://agent.test:8080", version="1.0.0")
    made.health_check.none.SetInParent()
    return made


def health_stub(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def reflection_stub(channel: Any) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub
    return stub(channel)


async def watch(channel: grpc.aio.Channel, _: str, metadata: Metadata) -> None:
    call = RegistryServiceStub(channel).WatchEvents(pb.WatchEventsRequest(), metadata=metadata)
    await call.read()
    call.cancel()


async def streamed(start: Callable[[], Any], message: Any) -> None:
    """Makes a call that takes a stream; raises what it ended with.

    To write to one that has just ended is an error of the client's own, which then is the status of the call: again.
    """
    code, details = grpc.StatusCode.INTERNAL, "execute_batch"
    while code is grpc.StatusCode.INTERNAL and "execute_batch" in details:
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
    await streamed(lambda: stub.KeepAlive(metadata=metadata), pb.KeepAliveRequest(names=[name]))


async def batch(channel: grpc.aio.Channel, name: str, metadata: Metadata) -> None:
    """Each service of a batch stands alone: raises what became of this one."""
    answer = await RegistryServiceStub(channel).BatchRegisterServices(
        pb.BatchRegisterServicesRequest(services=[service(name)]), metadata=metadata
    )
    status = answer.results[0].status
    if status.code:
        raise Failed(next(code for code in grpc.StatusCode if code.value[0] == status.code))


class Failed(Exception):
    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code
        super().__init__(code)


async def health_watch(channel: grpc.aio.Channel, _: str, metadata: Metadata) -> None:
    call = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
    await call.read()
    call.cancel()


async def reflect(channel: grpc.aio.Channel, _: str, metadata: Metadata) -> None:
    stub = reflection_stub(channel)
    message = reflection_pb2.ServerReflectionRequest(list_services="")
    await streamed(lambda: stub.ServerReflectionInfo(metadata=metadata), message)


def unary(method: str, request: Callable[[str], Any]) -> Call:
    async def call(channel: grpc.aio.Channel, name: str, metadata: Metadata) -> object:
        return await getattr(RegistryServiceStub(channel), method)(request(name), metadata=metadata)

    return call


def updated(name: str) -> pb.UpdateServiceRequest:
    request = pb.UpdateServiceRequest(service=service(name))
    request.update_mask.paths.append("version")
    return request


RPC_CALLS: dict[str, Call] = {
    "RegisterService": unary("RegisterService", lambda name: pb.RegisterServiceRequest(service=service(name))),
    "BatchRegisterServices": batch,
    "GetService": unary("GetService", lambda name: pb.GetServiceRequest(name=name)),
    "DiscoverServices": unary("DiscoverServices", lambda _: pb.DiscoverServicesRequest()),
    "UpdateService": unary("UpdateService", updated),
    "UnregisterService": unary("UnregisterService", lambda name: pb.UnregisterServiceRequest(name=name)),
    "GetServiceHealth": unary("GetServiceHealth", lambda name: pb.GetServiceHealthRequest(name=name)),
    "ReportServiceHealth": unary(
        "ReportServiceHealth",
        lambda name: pb.ReportServiceHealthRequest(name=name, status=HealthStatus.HEALTH_STATUS_MAINTENANCE),
    ),
    "CheckServiceHealth": unary("CheckServiceHealth", lambda name: pb.CheckServiceHealthRequest(name=name)),
    "Heartbeat": unary("Heartbeat", lambda name: pb.HeartbeatRequest(names=[name])),
    "KeepAlive": keep_alive,
    "WatchEvents": watch,
    "ListCapabilities": unary("ListCapabilities", lambda _: pb.ListCapabilitiesRequest()),
    "GetStats": unary("GetStats", lambda _: pb.GetStatsRequest()),
    "GetRegistryHealth": unary("GetRegistryHealth", lambda _: pb.GetRegistryHealthRequest()),
    "Cleanup": unary("Cleanup", lambda _: pb.CleanupRequest()),
    "grpc.health.v1.Health/Check": lambda channel, _, metadata: health_stub(channel).Check(
        health_pb2.HealthCheckRequest(), metadata=metadata
    ),
    "grpc.health.v1.Health/Watch": health_watch,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflect,
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
}


def credentials(policy: Policy) -> dict[str, list[str]]:
    """Column of the table to all credentials that fall under it."""
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


def target_of(column: str) -> list[str]:
    return [ANOTHERS, NOT_MATCHING] if column == "agent, another's" else [OWN]


async def prepare(server: Server, policy: Policy, *names: str) -> None:
    """Registers the services as they are to be before a call, each by its owner."""
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
    """The cell, of which ``A / B`` is A where the part is public and B where it is not."""
    cell = TABLE[call][column]
    open_, _, closed = cell.partition(" / ")
    return open_ if public or not closed else closed


def test_the_table_has_every_rpc_and_route_and_nothing_else() -> None:
    routes = {f"{method} {path}" for method, path in ROUTES}
    assert set(TABLE) == set(RPC_CALLS) | routes
    assert set(RPCS) < set(RPC_CALLS)


async def test_the_routes_are_those_that_are_served(guarded: Server) -> None:
    del guarded
    from registry_server.gateway.docs import docs_routes  # noqa: PLC0415

    assert {("GET", route.path) for route in docs_routes() if hasattr(route, "path")} <= set(ROUTES)


async def test_every_rpc_answers_what_is_documented(
    site: tuple[Server, bool], policy: Policy, subtests: pytest.Subtests
) -> None:
    server, public = site
    for column, shown in credentials(policy).items():
        for credential in shown:
            for name in target_of(column):
                for call, make in RPC_CALLS.items():
                    await prepare(server, policy, name)
                    with subtests.test(call, column=column, credential=credential[:12], name=name):
                        expected = documented(call, column, public=public)
                        assert await code_of(make, server, name, bearer(credential) if credential else ()) == expected


async def code_of(make: Call, server: Server, name: str, metadata: Metadata) -> str:
    try:
        await make(server.channel, name, metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except Failed as error:
        return error.code.name
    return "OK"


async def test_every_route_answers_what_is_documented(
    site: tuple[Server, bool], policy: Policy, subtests: pytest.Subtests
) -> None:
    server, public = site
    async with aiohttp.ClientSession(server.http) as session:
        for column, shown in credentials(policy).items():
            for credential in shown:
                for name in target_of(column):
                    for method, path in ROUTES:
                        await prepare(server, policy, name)
                        call = f"{method} {path}"
                        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
                        body = BODIES[call](name) if call in BODIES else None
                        with subtests.test(call, column=column, credential=credential[:12], name=name):
                            async with session.request(
                                method, path.replace("{name}", name), json=body, headers=headers
                            ) as answer:
                                assert str(answer.status) == documented(call, column, public=public)
                                if answer.status == 401:
                                    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_x_api_key_is_the_same_as_a_bearer_key(guarded: Server, policy: Policy) -> None:
    key = policy.keys["viewer"]
    await guarded.stub.GetStats(pb.GetStatsRequest(), metadata=(("x-api-key", key),))
    async with aiohttp.ClientSession(guarded.http) as session:
        async with session.get(f"{BASE}/stats", headers={"X-Api-Key": key}) as answer:
            assert answer.status == 200
        async with session.get(f"{BASE}/stats", headers={"X-Api-Key": token(roles=["admin"])}) as answer:
            assert answer.status == 401


async def test_two_credentials_are_refused_whatever_they_are(guarded: Server, policy: Policy) -> None:
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


async def test_a_path_or_method_that_is_not_there_is_told_to_anybody(guarded: Server) -> None:
    async with aiohttp.ClientSession(guarded.http) as session:
        async with session.get("/nothing") as answer:
            assert answer.status == 404
        async with session.delete(f"{BASE}/stats") as answer:
            assert answer.status == 405
        async with session.options(f"{BASE}/stats") as answer:
            assert answer.status == 204
        async with session.head(f"{BASE}/stats") as answer:
            assert answer.status == 401


def test_the_keys_of_the_tests_are_not_secret(tmp_path: Path) -> None:
    Policy(tmp_path)
    assert all("d" not in key for key in jwks()["keys"])
