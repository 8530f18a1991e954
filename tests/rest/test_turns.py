"""No HTTP request stops the event loop, however often its body or its parameters repeat something."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import aiohttp
import pytest
from yarl import URL

from registry_server.config import HttpSettings
from registry_server.model.wire import bytes_field
from tests.grpc.test_turns import OK, costly_service, send
from tests.support.server import Server
from tests.support.stalls import MAX_TURN_SECONDS, measured_turns

LARGEST: Final = HttpSettings().max_body_bytes
JSON: Final = {"Content-Type": "application/json"}
PATHS: Final[Mapping[str, Mapping[str, Any]]] = {
    "capabilities": {},
    "schema": {"capabilities": [{"name": "c", "inputs": {"k": ...}}]},
    "details": {"health": {"status": "healthy", "details": {"k": ...}}},
    "tags": {"metadata": {"tags": ...}},
    "labels": {"metadata": {"labels": ...}},
    "headers": {"healthCheck": {"type": "http", "headers": ...}},
    "statuses": {"healthCheck": {"type": "http", "expectedStatuses": ...}},
    "unknown": {"unknown": ...},
    "version": {"version": ...},
}
"""Members of a registration; the ellipsis is replaced by a flood."""
VALUES: Final = ("1", "null", "{}", "[]", '""', '"a,b"', "1e308", "true")


def bodies(size: int) -> Iterator[tuple[str, bytes]]:
    """Yield a description and a registration of at most ``size`` bytes for each kind of repetition."""
    for path, members in PATHS.items():
        document = {"name": "a", "endpoint": "http://a", "version": "1", "capabilities": [], **members}
        head, _, tail = json.dumps(document, default=lambda _: "@").partition('"@"')
        room = size - len(head) - len(tail) - 2
        if not tail:
            head, tail = '{"name": "a", "endpoint": "http://a", "version": "1", "capabilities": ', "}"
        for value in VALUES:
            items = ",".join([value] * (room // (len(value) + 1)))
            yield f"{path}: array of {value}", f"{head}[{items}]{tail}".encode()
            members_ = ",".join(f'"{i:06x}":{value}' for i in range(room // (len(value) + 10)))
            yield f"{path}: object of {value}", f"{head}{{{members_}}}{tail}".encode()
        yield f"{path}: text", f'{head}"{"a," * (room // 2)}"{tail}'.encode()
        yield f"{path}: escapes", f'{head}"{chr(92)}u00e9{f"{chr(92)}u00e9" * (room // 6 - 1)}"{tail}'.encode()
        yield f"{path}: nested arrays", f"{head}{'[' * (room // 2)}{']' * (room // 2)}{tail}".encode()
        yield f"{path}: number", f"{head}{'9' * room}{tail}".encode()


@pytest.mark.parametrize("size", [LARGEST, 128 << 10], ids=["largest", "128 KiB"])
async def test_flood_of_any_member_does_not_stop_the_event_loop(server: Server, size: int) -> None:
    longest = 0.0, ""
    async with aiohttp.ClientSession() as client:
        url = f"{server.http}/api/v1/registry/services"
        for flood, body in bodies(size - 1_000):
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
    "escapes": "tags=" + "%2C" * 2_600,
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
    services = b"".join(bytes_field(1, costly_service(f"s{i}")) for i in range(60))
    assert await send(server, "BatchRegisterServices", services) is OK
    async with aiohttp.ClientSession() as client:
        for path, size in (("services?pageSize=1000", 3_500_000), ("events?snapshot=true", 4_500_000)):
            with measured_turns() as turns:
                async with client.get(f"{server.http}/api/v1/registry/{path}") as response:
                    await response.content.readexactly(size)
            print(path, turns.longest)
            assert turns.longest < MAX_TURN_SECONDS
