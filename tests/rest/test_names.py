"""Names with slashes and a leading ``@`` in paths, and endpoints with any scheme."""

import json
from typing import Final
from urllib.parse import quote

import pytest
import redis as redis_client

from tests.rest.client import Rest, service
from tests.support.redis_process import RedisProcess

NAMES: Final = ("@acme/agent", "io.github.acme/weather", "@", "a/.b/c@d", "health", "a/health/b")


@pytest.mark.parametrize("name", NAMES)
async def test_name_works_in_every_path(rest: Rest, name: str) -> None:
    path = f"/services/{quote(name, safe='')}"
    answer = await rest.post("/services", service(name, group="@acme/agents"))
    assert answer.headers["Location"] == f"/api/v1/registry/services/{quote(name, safe='@')}"
    assert (await rest.get(answer.headers["Location"].removeprefix("/api/v1/registry"))).data["name"] == name
    assert (await rest.get(path)).data["name"] == name
    assert (await rest.get(path.lower())).data["name"] == name  # escapes are equal in both cases
    assert (await rest.put(path, {"version": "2"})).data["version"] == "2"
    assert (await rest.get(f"{path}/health")).data["status"] == "unknown"
    assert (await rest.post(f"{path}/heartbeat")).status == 200
    listed = (await rest.get(f"/services?name=^{quote(name, safe='')}$&group=%40acme%2Fagents")).data
    assert [each["name"] for each in listed["services"]] == [name]
    assert (await rest.delete(path)).data == {"message": f"Service {name} unregistered"}
    assert (await rest.get(path)).code == "SERVICE_NOT_FOUND"


@pytest.mark.parametrize("name", ["a//b", "a/", "a/../b", "a/.", "a/health", "a/b/explain", "/a"])
async def test_name_that_is_no_path_segment_is_refused(rest: Rest, name: str) -> None:
    answer = await rest.post("/services", service(name))
    assert (answer.status, answer.fields) == (400, ["name"])
    answer = await rest.get(f"/services/{quote(name, safe='')}")
    assert (answer.status, answer.fields) == (400, ["name"])


async def test_slash_that_is_not_escaped_is_explained(rest: Rest) -> None:
    answer = await rest.call("GET", "/services/@acme/agent")
    assert (answer.status, answer.code) == (404, "NOT_FOUND")
    assert "%2F" in answer.body["error"]["message"]


async def test_document_in_redis_has_the_name_in_its_key(rest: Rest, redis: RedisProcess) -> None:
    await rest.post("/services", service("@acme/agent"))
    with redis_client.Redis.from_url(redis.url) as client:
        assert client.keys("ossa:services:@acme/*") == [b"ossa:services:@acme/agent"]
        document = json.loads(client.get("ossa:services:@acme/agent") or b"")
    assert document == (await rest.get("/services/%40acme%2Fagent")).data


async def test_endpoint_without_a_scheme_gets_a_hint(rest: Rest) -> None:
    answer = await rest.post("/services", service(endpoint="agent.company.com:8080"))
    assert (answer.status, answer.fields) == (400, ["endpoint"])
    assert "write 'http://agent.company.com:8080'" in answer.body["error"]["message"]


async def test_service_that_cannot_be_probed_is_healthy_by_heartbeats(rest: Rest) -> None:
    registered = (await rest.post("/services", service(endpoint="mcp://tools.company.com"))).data
    assert (registered["endpoint"], registered["health"]["status"]) == ("mcp://tools.company.com", "healthy")
    probed = (await rest.post("/services", service("b", endpoint="mcp://tools.company.com:9000"))).data
    assert probed["health"]["status"] == "unknown"
