"""The REST API of an embedded registry inside an aiohttp application of another program."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import ClientSession, web

from registry_server import EmbeddedRegistry, open_registry
from tests.rest.client import BASE, Rest, client, service
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import settings
from tests.support.waiting import until

TIMEOUT = 20.0


@pytest.fixture(autouse=True)
def reset_logging() -> Iterator[None]:
    """Reset structlog afterwards: opening a registry configures it for the whole process."""
    yield
    structlog.reset_defaults()


async def own_health(_: web.Request) -> web.Response:
    return web.json_response({"program": "mine"})


@asynccontextmanager
async def program(registry: EmbeddedRegistry, prefix: str = BASE) -> AsyncIterator[str]:
    """Run an application with a route of its own and the API; yield its base URL."""
    app = web.Application()
    app.router.add_get("/health", own_health)
    app.add_subapp(prefix, registry.rest_api())
    runner = web.AppRunner(app, shutdown_timeout=TIMEOUT)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def mounted(redis: RedisProcess, **sections: Any) -> AsyncIterator[tuple[EmbeddedRegistry, Rest]]:
    async with (
        await open_registry(settings(redis.url, **sections)) as registry,
        program(registry) as base,
        client(base) as rest,
    ):
        yield registry, rest


async def test_api_is_served_beside_the_routes_of_the_program(redis: RedisProcess) -> None:
    async with mounted(redis) as (registry, rest):
        answer = await rest.post("/services/", service("@acme/agent"))
        assert (answer.status, answer.headers["Location"]) == (201, f"{BASE}/services/@acme%2Fagent")
        await registry.register(small_service("b"))
        assert (await rest.get("/services")).data["total"] == 2
        assert (await rest.put("/services/b", {"version": "2"})).data["version"] == "2"
        assert (await rest.get("/services/%40acme%2Fagent/health")).data["status"] == "unknown"
        assert (await rest.get("/health")).data["statistics"]["totalServices"] == 2
        assert (await rest.delete("/services/b")).status == 200
        assert (await registry.discover())[0].name == "@acme/agent"

        assert (await rest.get("/nothing")).code == "NOT_FOUND"
        assert (await rest.call("PATCH", "/services")).code == "METHOD_NOT_ALLOWED"
        async with rest.session.get(f"{rest.base}/health") as response:
            assert await response.json() == {"program": "mine"}
        for path in ("/metrics", "/docs", "/openapi.yaml", "/health/live"):
            async with rest.session.get(rest.base + path) as response:
                assert response.status == 404, path


async def test_any_prefix_is_possible(redis: RedisProcess) -> None:
    async with (
        await open_registry(settings(redis.url)) as registry,
        program(registry, "/agents") as base,
        client(base) as rest,
    ):
        answer = await rest.call("POST", "/services", service(), base="/agents")
        assert answer.headers["Location"] == "/agents/services/agent"
        assert (await rest.call("GET", "/services/agent", base="/agents")).data["name"] == "agent"


async def test_large_and_compressed_bodies_are_read_and_written(redis: RedisProcess) -> None:
    async with mounted(redis) as (_, rest):
        description, headers = "d" * 4_000, {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        for i in range(50):
            body = json.dumps(service(f"a{i}", metadata={"description": description})).encode()
            assert (await rest.call("POST", "/services", data=gzip.compress(body), headers=headers)).status == 201
        data = (await rest.get("/services", Accept_Encoding="identity")).data
        assert [each["metadata"]["description"] for each in data["services"]] == [description] * 50
        garbage = await rest.call("POST", "/services", data=b"no gzip", headers=headers)
        assert garbage.status == 400


async def test_event_stream_ends_when_the_program_stops(redis: RedisProcess) -> None:
    async with await open_registry(settings(redis.url)) as registry, ClientSession() as session:
        async with asyncio.timeout(TIMEOUT / 2):  # less than the program waits for its requests
            async with program(registry) as base:
                response = await session.get(f"{base}{BASE}/events")
                await registry.register(small_service("a"))
                await response.content.readuntil(b'"name":"a"')
            assert b"SHUTTING_DOWN" in await response.read()
        async with program(registry) as base, client(base) as rest:  # the registry itself has not stopped
            response = await session.get(f"{base}{BASE}/events?snapshot=true")
            async with asyncio.timeout(TIMEOUT):
                await response.content.readuntil(b'"name":"a"')
            response.close()
            assert (await rest.get("/stats")).data["totalServices"] == 1


async def test_stream_of_a_client_that_left_is_ended(redis: RedisProcess) -> None:
    async with mounted(redis, http={"events_keep_alive_ms": 3_600_000}) as (registry, rest):
        _, writer = await asyncio.open_connection("127.0.0.1", int(rest.base.rpartition(":")[2]))
        writer.write(f"GET {BASE}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await until(lambda: registry._hub.watchers == 1)
        writer.close()
        await until(lambda: registry._hub.watchers == 0)


async def test_stream_of_a_client_that_does_not_read_is_ended(redis: RedisProcess) -> None:
    async with mounted(redis, http={"write_timeout_ms": 100}) as (registry, rest):
        _, writer = await asyncio.open_connection("127.0.0.1", int(rest.base.rpartition(":")[2]), limit=1)
        try:
            writer.write(f"GET {BASE}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            hub = registry._hub
            async with asyncio.timeout(TIMEOUT * 2):
                while not hub._group_of:
                    await asyncio.sleep(0.01)
                for i in range(100_000):
                    if not hub._group_of:
                        break
                    await registry.register(small_service(f"a{i % 2}", metadata={"description": "d" * 4_000 + str(i)}))
            assert not hub._group_of
        finally:
            writer.transport.abort()


async def test_policy_of_the_registry_applies(redis: RedisProcess, tmp_path: Path) -> None:
    policy = Policy(tmp_path / "policy")
    async with mounted(redis, security=policy.section) as (_, rest):
        assert (await rest.get("/services")).code == "UNAUTHENTICATED"
        answer = await rest.call("POST", "/services", service("fleet-1"), headers=policy.headers("agent"))
        assert answer.status == 201
        answer = await rest.call("POST", "/services", service("other-1"), headers=policy.headers("agent"))
        assert answer.code == "PERMISSION_DENIED"


async def test_without_a_policy_other_host_names_are_refused(redis: RedisProcess) -> None:
    async with mounted(redis) as (_, rest):
        answer = await rest.get("/services", Host="registry.example.com")
        assert (answer.status, answer.code) == (403, "PERMISSION_DENIED")
        assert "http.allowed_hosts" in answer.body["error"]["message"]
    async with mounted(redis, http={"allowed_hosts": ("registry.example.com",)}) as (_, rest):
        assert (await rest.get("/services", Host="registry.example.com")).status == 200
