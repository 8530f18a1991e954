"""A caller that sees some services gets the same answers from every call whether others exist or not."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from registry_server.app import serving
from registry_server.errors import CursorExpired
from registry_server.gateway.routes import BASE, ROUTES
from registry_server.rpc.service import RPCS, SERVICE
from registry_server.security.permissions import HEALTH, READ
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import Server, connected, running, settings

SECTIONS: Final[dict[str, dict[str, Any]]] = {
    "health_check": {"enabled": True},
    "lease": {"sweep_interval_ms": 24 * 60 * 60 * 1000},
}
"""The sweeper runs once, at the start."""
VISIBLE, HIDDEN, FREE, OWN = "shop-1", "vault-1", "nowhere-1", "fleet-1"
CALLERS: Final = ("viewer", "agent", "operator", "")
"""Names of keys; empty = without a credential."""
VOLATILE: Final = re.compile(
    r"revision|_?(at|check|time|expires)(At)?$|etag|token|cursor|requestId|timestamp|lag", re.IGNORECASE
)
"""Fields whose values differ between two registries in any case; the revision is not hidden."""


def service(name: str, environment: str, **fields: Any) -> Service:
    result = small_service(name, endpoint="http://agent.test:8080", **fields)
    result.metadata.environment = environment
    result.health_check.none.SetInParent()
    return result


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    """Every role and callers without a credential see production; an administrator sees everything."""
    roles = {role: {"environments": ["production"]} for role in ("anonymous", "viewer", "agent", "operator")}
    return Policy(tmp_path / "policy", anonymous="viewer", sees=roles)


@pytest.fixture
async def sites(redis: RedisProcess, policy: Policy) -> AsyncIterator[list[Server]]:
    """Two registries with the same services, and one with services that only the administrator sees, too."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                running(redis.url, redis={"key_prefix": f"site{i}"}, security=policy.section, **SECTIONS)
            )
            for i in range(2)
        ]
        for i, server in enumerate(servers):
            await put(server, policy, service(OWN, "staging"), key="agent")
            await put(server, policy, service(VISIBLE, "production", capabilities=[{"name": "read", "version": "1"}]))
            if i:
                hidden = service(HIDDEN, "staging", version="9.9.9", capabilities=[{"name": "guard", "version": "2"}])
                hidden.metadata.tags.append("secret")
                hidden.health.status = HealthStatus.HEALTH_STATUS_UNHEALTHY
                await put(server, policy, hidden)
                await put(server, policy, service("vault-gone", "staging"))
                await call(server, policy, "admin", "UnregisterService", pb.UnregisterServiceRequest(name="vault-gone"))
        yield servers


async def put(server: Server, policy: Policy, registered: Service, key: str = "admin") -> None:
    await server.stub.RegisterService(pb.RegisterServiceRequest(service=registered), metadata=policy.metadata(key))


async def call(server: Server, policy: Policy, key: str, rpc: str, request: Any) -> Any:
    """Return the answer of an RPC, or the code and details of its error, without what differs in any case."""
    metadata = policy.metadata(key) if key else ()
    method = SERVICE.methods_by_name[rpc]
    try:
        if method.client_streaming:
            stream = getattr(server.stub, rpc)(metadata=metadata)
            await stream.write(request)
            answer = await stream.read()
            stream.cancel()
        elif method.server_streaming:
            stream = getattr(server.stub, rpc)(request, metadata=metadata)
            answer = [await stream.read()]
            while not answer[-1].snapshot_complete:
                answer.append(await stream.read())
            stream.cancel()
            return [stable(MessageToDict(message)) for message in answer]
        else:
            answer = await getattr(server.stub, rpc)(request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        return error.code(), error.details(), details
    return stable(MessageToDict(answer))


def stable(value: Any) -> Any:
    """Return a JSON value without what differs between two registries in any case."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if not VOLATILE.search(key)}
    return [stable(item) for item in value] if isinstance(value, list) else value


SEARCHES: Final = ("guard", "grd", "gua", "vault shop", HIDDEN, VISIBLE, "secret agent")


def requests_of(rpc: str) -> list[Any]:
    """Return requests of an RPC that name visible, hidden and free services, or filter for what is hidden."""
    kind = GetMessageClass(SERVICE.methods_by_name[rpc].input_type)
    fields = kind.DESCRIPTOR.fields_by_name
    requests: list[Any] = [kind()]
    if "name" in fields:
        requests += [kind(name=name) for name in (VISIBLE, HIDDEN, FREE, OWN, "vault-gone")]
    if "names" in fields:
        requests += [kind(names=[name]) for name in (HIDDEN, FREE, OWN)] + [kind(names=[OWN, FREE, HIDDEN, "free-2"])]
    if "leases" in fields:
        requests += [kind(leases=[{"name": name, "instance_id": "i"}]) for name in (HIDDEN, FREE)]
    if "filter" in fields:
        hidden: list[dict[str, Any]] = [{"environment": "staging"}, {"tags": ["secret"]}, {"capability": "guard"}]
        requests += [kind(filter=each) for each in hidden]
    requests += [kind(query=text) for text in SEARCHES if "query" in fields]
    if "service" in fields and "update_mask" in fields:
        for name in (HIDDEN, FREE):
            requests.append(kind(service=small_service(name), update_mask={"paths": ["version"]}))
    for request in requests:
        if "include_snapshot" in fields:
            request.include_snapshot = True
        if "status" in fields:
            request.status = 1
    return requests


WRITES_OF_SERVICES: Final = {"RegisterService", "BatchRegisterServices", "Cleanup"}
"""A registration reveals that a name is taken; ``Cleanup`` is tested below."""


async def test_no_answer_of_any_rpc_depends_on_what_is_hidden(
    sites: list[Server], policy: Policy, subtests: pytest.Subtests
) -> None:
    for rpc in sorted(RPCS.keys() - WRITES_OF_SERVICES):
        for request in requests_of(rpc):
            for caller in CALLERS:
                with subtests.test(rpc, caller=caller, request=str(request)):
                    answers = [await call(site, policy, caller, rpc, request) for site in sites]
                    assert answers[0] == answers[1]
    for rpc in ("GetService", "DiscoverServices", "GetStats", "GetRegistryHealth", "ListCapabilities", "WatchEvents"):
        request = requests_of(rpc)[2 if rpc == "GetService" else 0]
        answers = [await call(site, policy, "admin", rpc, request) for site in sites]
        assert answers[0] != answers[1], "a caller that sees everything sees the difference"


async def test_no_answer_of_any_route_depends_on_what_is_hidden(
    sites: list[Server], policy: Policy, subtests: pytest.Subtests
) -> None:
    queries = ("", "environment=staging", "capability=guard", f"name={HIDDEN}", "pageSize=1", "q=guard", "q=vault+shop")
    paths = {
        path
        for route in ROUTES
        if route.method == "GET" and route.permission in (READ, HEALTH) and not route.streams
        for path in (
            [route.path.replace("{name}", name) for name in (VISIBLE, HIDDEN, FREE)]
            if "{name}" in route.path
            else [f"{route.path}?{query}" for query in queries]
        )
    }
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(aiohttp.ClientSession(site.http)) for site in sites]
        for path in sorted(paths):
            for caller in CALLERS:
                with subtests.test(path, caller=caller):
                    answers = []
                    for session in sessions:
                        async with session.get(path, headers=policy.headers(caller) if caller else {}) as answer:
                            answers.append((answer.status, stable(await answer.json())))
                    assert answers[0] == answers[1]
        for route in ("stats", "health", "capabilities", "services"):
            answers = []
            for session in sessions:
                async with session.get(f"{BASE}/{route}", headers=policy.headers("admin")) as answer:
                    answers.append(stable(await answer.json()))
            assert answers[0] != answers[1], "a caller that sees everything sees the difference"
        async with sessions[0].get("/metrics", headers=policy.headers("viewer")) as answer:
            assert answer.status == 403, "metrics count all services"


async def test_registration_alone_reveals_that_a_name_is_taken(sites: list[Server], policy: Policy) -> None:
    request = pb.RegisterServiceRequest(service=service(HIDDEN, "production"))
    code, *_ = await call(sites[1], policy, "operator", "RegisterService", request)
    assert code is grpc.StatusCode.ALREADY_EXISTS
    hidden = await sites[1].stub.GetService(pb.GetServiceRequest(name=HIDDEN), metadata=policy.metadata("admin"))
    assert hidden.service.metadata.environment == "staging"


async def test_cleanup_names_only_what_its_caller_sees(sites: list[Server], policy: Policy) -> None:
    parts = sites[1].parts
    client: Any = parts.store._client
    async with asyncio.timeout(30):
        while not await client.exists(parts.store.keys.sweep):
            await asyncio.sleep(0.01)
    await client.zadd(parts.store.keys.leases, {VISIBLE: 1, HIDDEN: 1})
    answer = await sites[1].stub.Cleanup(pb.CleanupRequest(), metadata=policy.metadata("operator"))
    assert (answer.services_removed, list(answer.names)) == (1, [VISIBLE])
    assert HIDDEN not in parts.replica.records


async def test_service_that_leaves_what_a_watcher_sees_is_named_only(sites: list[Server], policy: Policy) -> None:
    server, metadata = sites[0], policy.metadata("viewer")
    watch: Any = server.stub.WatchEvents(pb.WatchEventsRequest(), metadata=metadata)
    first = await watch.read()
    async with (
        aiohttp.ClientSession(server.http, headers=policy.headers("viewer")) as session,
        session.get(f"{BASE}/events") as stream,
    ):
        moved = service(VISIBLE, "staging", version="2.0.0")
        await put(server, policy, moved)
        async with asyncio.timeout(30):
            (left,) = (await watch.read()).events
            data = [line async for line in lines_until(stream, "service:unmatched")]
        assert (left.type, left.reason) == (EventType.EVENT_TYPE_SERVICE_UNMATCHED, 0)
        assert left.service == Service(name=VISIBLE, revision=left.revision)
        assert json.loads(data[-1])["service"] == {"name": VISIBLE, "revision": left.revision}
    moved.metadata.environment = "production"
    await put(server, policy, moved)
    async with asyncio.timeout(30):
        (returned,) = (await watch.read()).events
    assert (returned.type, returned.previous_health) == (EventType.EVENT_TYPE_SERVICE_UPDATED, 0)
    assert returned.service.version == "2.0.0"
    watch.cancel()
    # A cursor is bound to what its caller sees, as a page token is.
    for key in ("viewer", "agent", "admin"):
        resumed = server.stub.WatchEvents(pb.WatchEventsRequest(cursor=first.cursor), metadata=policy.metadata(key))
        if key == "viewer":
            await resumed.read()
            resumed.cancel()
        else:
            assert await resumed.code() is grpc.StatusCode.OUT_OF_RANGE


async def lines_until(stream: aiohttp.ClientResponse, event: str) -> AsyncIterator[str]:
    """Yield the data of Server-Sent Events up to that of the first event of a kind."""
    name = ""
    async for line in stream.content:
        field, _, value = line.decode().strip().partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield value
            if name == event:
                return


async def test_page_token_is_bound_to_what_its_caller_sees(sites: list[Server], policy: Policy) -> None:
    server = sites[1]
    first = await server.stub.DiscoverServices(
        pb.DiscoverServicesRequest(page_size=1), metadata=policy.metadata("admin")
    )
    request = pb.DiscoverServicesRequest(page_size=1, page_token=first.next_page_token)
    code, *_ = await call(server, policy, "viewer", "DiscoverServices", request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    capabilities = pb.ListCapabilitiesRequest(page_size=1)
    page = await server.stub.ListCapabilities(capabilities, metadata=policy.metadata("admin"))
    capabilities.page_token = page.next_page_token
    code, *_ = await call(server, policy, "viewer", "ListCapabilities", capabilities)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_watch_ends_when_a_reload_changes_what_its_caller_sees(redis: RedisProcess, policy: Policy) -> None:
    async with serving(settings(redis.url, security=policy.section)) as served, connected(served.grpc_address) as to:
        _, stub = to
        await served.parts.loaded.wait()
        watches = {
            key: stub.WatchEvents(pb.WatchEventsRequest(), metadata=policy.metadata(key)) for key in ("viewer", "admin")
        }
        for watch in watches.values():
            await watch.read()
        del policy.document["sees"]["viewer"]
        policy.write()
        served.guard.reload()
        async with asyncio.timeout(30):
            assert await watches["viewer"].code() is grpc.StatusCode.OUT_OF_RANGE
        assert CursorExpired.reason in str(await watches["viewer"].trailing_metadata())
        assert not watches["admin"].done()
        watches["admin"].cancel()
