"""What an operator must correct in Redis is named in /health and as a metric until it is corrected."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import registry_acl
from tests.support.server import Server, running

TIMEOUT = 30.0


async def read_health(server: Server) -> tuple[str, dict[str, str]]:
    """Return the status, and the texts of the problems by their key."""
    async with aiohttp.ClientSession() as http, http.get(f"{server.http}/health") as response:
        document = await response.json()
    return document["status"], {each["key"]: each["text"] for each in document.get("problems", ())}


async def read_metrics(server: Server) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"{server.http}/metrics") as response:
        return await response.text()


async def until_health(server: Server, condition: Callable[[str, dict[str, str]], bool]) -> dict[str, str]:
    async with asyncio.timeout(TIMEOUT):
        while True:
            await server.parts.store.sample_memory()
            status, problems = await read_health(server)
            if condition(status, problems):
                return problems
            await asyncio.sleep(0.05)


def is_healthy(status: str, problems: dict[str, str]) -> bool:
    return status == "healthy" and not problems


async def test_policy_that_evicts_is_named_until_it_is_changed(redis: RedisProcess) -> None:
    async with Redis.from_url(redis.url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        async with running(redis.url) as server:
            problems = await until_health(server, lambda status, _: status == "degraded")
            assert "maxmemory-policy is allkeys-lru" in problems["store_maxmemory_policy"]
            assert 'ossa_registry_problem{problem="store_maxmemory_policy"} 1.0' in await read_metrics(server)
            await client.config_set("maxmemory-policy", "noeviction")
            await until_health(server, is_healthy)
            assert "ossa_registry_problem{" not in await read_metrics(server)


ROTATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a changed password": (("resetpass", ">other"), (">secret",)),
    "a disabled user": (("off",), ("on",)),
}


@pytest.mark.parametrize(("revoke", "restore"), ROTATIONS.values(), ids=ROTATIONS)
async def test_refused_credentials_are_named_until_they_are_accepted(
    redis: RedisProcess, revoke: tuple[str, ...], restore: tuple[str, ...]
) -> None:
    async with Redis.from_url(redis.url) as client:

        async def set_user(*rules: str) -> None:
            command: tuple[Any, ...] = ("ACL", "SETUSER", "registry", *rules)
            await client.execute_command(*command)  # type: ignore[no-untyped-call]

        await set_user(*registry_acl("secret"))
        async with running(redis.url.replace("//", "//registry:secret@")) as server:
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service("agent")))
            await set_user(*revoke)
            await client.execute_command("CLIENT", "KILL", "USER", "registry")  # type: ignore[no-untyped-call]

            problems = await until_health(server, lambda _, found: "WRONGPASS" in found.get("store", ""))
            assert "secret" not in str(problems)
            found = await server.stub.GetService(pb.GetServiceRequest(name="agent"))
            assert found.service.name == "agent", "reads continue"

            await set_user(*restore)
            await until_health(server, is_healthy)
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service("another")))
