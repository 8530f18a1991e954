"""No HTTP request stops the event loop, however often its body or its parameters repeat something."""

import asyncio
from typing import Final

import aiohttp
import pytest
from yarl import URL

from registry_server.config import HttpSettings
from tests.grpc.test_turns import register_costly_services
from tests.support.floods import document_floods
from tests.support.server import Server
from tests.support.stalls import MAX_TURN_SECONDS, measured_turns

LARGEST: Final = HttpSettings().max_body_bytes
JSON: Final = {"Content-Type": "application/json"}


@pytest.mark.parametrize("size", [LARGEST, 128 << 10], ids=["largest", "128 KiB"])
async def test_flood_of_any_member_does_not_stop_the_event_loop(server: Server, size: int) -> None:
    longest = 0.0, ""
    async with aiohttp.ClientSession() as client:
        url = f"{server.http}/api/v1/registry/services"
        for flood, body in document_floods(size):
            for method, path in (("POST", url), ("PUT", f"{url}/a"))[: 1 if size == LARGEST else 2]:
                with measured_turns() as turns:
                    async with client.request(method, path, data=body, headers=JSON) as response:
                        assert response.status < 500
                longest = max(longest, (turns.longest, f"{method} {flood}: {response.status}"))
    print(longest)
    assert longest[0] < MAX_TURN_SECONDS, longest


QUERIES: Final = {
    "parameters": "&".join(f"a{i}" for i in range(1_200)),
    "labels": "&".join(f"label.{i:03x}=" for i in range(600)),
    "tags": "tags=" + "a," * 4_000,
    "statuses": "health=" + "up," * 2_600,
    "repeated": "&".join(["tags=a"] * 1_100),
    "escapes": "tags=" + "%61%2C" * 1_300,
    "version": "version=" + "%3E1%20" * 1_100,
    "pattern": "namePattern=" + "(a|b)*" * 1_300,
}


@pytest.mark.parametrize("path", ["services", "events", "capabilities"])
@pytest.mark.parametrize("query", QUERIES)
async def test_flood_of_parameters_does_not_stop_the_event_loop(server: Server, path: str, query: str) -> None:
    url = URL(f"{server.http}/api/v1/registry/{path}?{QUERIES[query]}", encoded=True)
    async with aiohttp.ClientSession() as client:
        with measured_turns() as turns:
            async with client.get(url) as response:
                assert response.status == 400
    assert turns.longest < MAX_TURN_SECONDS


async def test_services_with_costly_schemas_are_listed_in_slices(server: Server) -> None:
    await register_costly_services(server)
    async with aiohttp.ClientSession() as client:
        for path, size in (("services?pageSize=1000", 2_300_000), ("events?snapshot=true", 2_800_000)):
            with measured_turns() as turns:
                async with client.get(f"{server.http}/api/v1/registry/{path}") as response:
                    await response.content.readexactly(size)
            print(path, turns.longest)
            assert turns.longest < MAX_TURN_SECONDS


async def test_costly_services_that_are_read_at_once_do_not_stop_the_event_loop(server: Server) -> None:
    await register_costly_services(server)
    async with aiohttp.ClientSession() as client:

        async def read(name: str) -> int:
            async with client.get(f"{server.http}/api/v1/registry/services/{name}") as response:
                return len(await response.read())

        with measured_turns() as turns:
            sizes = await asyncio.gather(*(read(f"s{i}") for i in range(30)))
    assert min(sizes) > 90_000
    assert turns.longest < MAX_TURN_SECONDS


async def test_explanations_with_costly_services_do_not_stop_the_event_loop(server: Server) -> None:
    await register_costly_services(server)
    async with aiohttp.ClientSession() as client:

        async def explain(name: str) -> int:
            async with client.get(f"{server.http}/api/v1/registry/explain?for={name}") as response:
                return len(await response.read())

        with measured_turns() as turns:
            sizes = await asyncio.gather(*(explain(f"s{i}") for i in range(30)))
    print(turns.longest)
    assert min(sizes) > 90_000
    assert turns.longest < MAX_TURN_SECONDS
