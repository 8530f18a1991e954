"""Answers hold what the types of the OSSA reference implementation require, and its requests are understood."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from tests.rest.client import Rest, service
from tests.rest.sse_client import streaming
from tests.support.redis_process import RedisProcess
from tests.support.server import Server

Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def date(value: Any) -> bool:
    """Whether JavaScript's ``new Date`` reads the value, as a time in UTC."""
    return isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value) is not None


def plain_object(value: Any) -> bool:
    return isinstance(value, dict)


def status(value: Any) -> bool:
    return value in ("healthy", "unhealthy", "degraded", "unknown", "maintenance")


def array(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


class Shape:
    """An interface of the reference implementation: its required members, and those that may be absent."""

    def __init__(self, required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> None:
        self._required, self._optional = required, optional or {}

    def __call__(self, value: Any) -> bool:
        """Return whether a value has this shape; further members are allowed."""
        return (
            isinstance(value, dict)
            and all(key in value and check(value[key]) for key, check in self._required.items())
            and all(check(value[key]) for key, check in self._optional.items() if key in value)
        )


HEALTH: Final = Shape(
    {"status": status, "lastCheck": date}, {"responseTime": count, "details": plain_object, "error": text}
)
CAPABILITY: Final = Shape(
    {"name": text, "version": text}, {"inputs": plain_object, "outputs": plain_object, "description": text}
)
METADATA: Final = Shape(
    {}, {"tags": array(text), "environment": text, "description": text, "author": text, "documentation": text}
)
DEFINITION: Final = Shape(
    {
        "name": text,
        "endpoint": text,
        "capabilities": array(CAPABILITY),
        "version": text,
        "health": HEALTH,
        "registeredAt": date,
        "updatedAt": date,
    },
    {"metadata": METADATA},
)
STATISTICS: Final = Shape(
    dict.fromkeys(
        (
            "totalServices",
            "healthyServices",
            "unhealthyServices",
            "degradedServices",
            "uniqueCapabilities",
            "averageCapabilitiesPerService",
        ),
        count,
    )
)
OFFERED: Final = Shape(
    {"name": text, "versions": array(text), "services": array(text), "serviceCount": count}, {"description": text}
)
FILTER: Final = Shape(
    {},
    dict.fromkeys(("namePattern", "capability", "healthStatus", "version", "environment"), text)
    | {"tags": array(text)},
)

EXAMPLE: Final = {
    "name": "ai-text-processor",
    "endpoint": "https://ai-service.company.com:8080",
    "version": "2.1.0",
    "capabilities": [
        {"name": "text-analysis", "version": "2.0.0", "inputs": {"type": "object"}, "description": "Reads."}
    ],
    "health": {"status": "unknown", "lastCheck": "2026-11-24T05:00:00.000Z"},
    "metadata": {"tags": ["ai", "nlp"], "environment": "production"},
}
MINIMAL: Final = {key: EXAMPLE[key] for key in ("name", "endpoint", "version", "capabilities")}


@pytest.mark.parametrize("registration", [EXAMPLE, MINIMAL], ids=["with health", "without health"])
async def test_every_answer_has_the_required_members(rest: Rest, registration: dict[str, Any]) -> None:
    name = registration["name"]
    answers: dict[str, tuple[Any, Check]] = {
        "register": ((await rest.post("/services", registration)).data, DEFINITION),
        "get": ((await rest.get(f"/services/{name}")).data, DEFINITION),
        "update": ((await rest.put(f"/services/{name}", {"version": "2.2.0"})).data, DEFINITION),
        "discover": (
            (
                await rest.get("/services?name=ai&health=unknown&tags=" + ("ai" if "metadata" in registration else ""))
            ).data,
            Shape({"services": array(DEFINITION), "count": count, "filter": FILTER}),
        ),
        "health": ((await rest.get(f"/services/{name}/health")).data, HEALTH),
        "stats": ((await rest.get("/stats")).data, STATISTICS),
        "capabilities": (
            (await rest.get("/capabilities")).data,
            Shape({"capabilities": array(OFFERED), "totalCapabilities": count}),
        ),
        "registry health": (
            (await rest.get("/health")).data,
            Shape({"status": status, "timestamp": date, "statistics": STATISTICS}),
        ),
        "cleanup": ((await rest.post("/cleanup")).data, Shape({"message": text, "servicesRemoved": count})),
        "unregister": ((await rest.delete(f"/services/{name}")).data, Shape({"message": text})),
    }
    assert [operation for operation, (answer, shape) in answers.items() if not shape(answer)] == []
    assert answers["discover"][0]["count"] == 1


async def test_events_and_documents_in_redis_hold_definitions(server: Server, redis: RedisProcess, rest: Rest) -> None:
    async with streaming(server.http) as stream:
        await stream.read_until_id()
        await rest.post("/services", MINIMAL)
        await rest.put("/services/ai-text-processor", {"health": {"status": "degraded"}})
        async with Redis.from_url(redis.url) as client:
            document = json.loads(await client.get("ossa:services:ai-text-processor") or "")
        await rest.delete("/services/ai-text-processor")
        events = await stream.next_events(3)
    assert [event.name for event in events] == ["service:registered", "service:health:changed", "service:unregistered"]
    assert all(DEFINITION(event.data["service"]) for event in events)
    assert DEFINITION(document)


async def test_last_check_is_the_registration_until_the_first_check(rest: Rest) -> None:
    registered = (await rest.post("/services", MINIMAL)).data
    name = registered["name"]
    assert registered["health"]["lastCheck"] == registered["registeredAt"]
    assert (await rest.get(f"/services/{name}/health")).data["lastCheck"] == registered["registeredAt"]
    same = (await rest.put(f"/services/{name}", registered)).data
    assert same == registered  # also its revision: sending back what was read changes nothing
    report = {"health": {"status": "degraded", "lastCheck": "2030-01-01T00:00:00Z"}}
    assert (await rest.put(f"/services/{name}", report)).data["health"]["lastCheck"] == "2030-01-01T00:00:00.000Z"


async def test_filter_is_echoed_with_the_names_of_ossa(rest: Rest) -> None:
    query = "name=ai&capability=c&health=HEALTHY,Degraded&tags=%20a%20,b&tags=c&version=1&environment=production"
    assert (await rest.get(f"/services?{query}")).data["filter"] == {
        "namePattern": "ai",
        "capability": "c",
        "healthStatus": "healthy,degraded",
        "tags": ["a", "b", "c"],
        "version": "1",
        "environment": "production",
    }
    assert (await rest.get("/services?tags=")).data["filter"] == {}


async def test_every_path_accepts_a_trailing_slash(rest: Rest) -> None:
    assert (await rest.post("/services/", service())).status == 201
    for path in ("/services/", "/services/agent/", "/services/agent/health/", "/health/", "/stats/", "/capabilities/"):
        assert (await rest.get(path)).status == 200, path
    assert (await rest.put("/services/agent/", {"version": "2"})).data["version"] == "2"
    assert (await rest.post("/services/agent/heartbeat/")).status == 200
    assert (await rest.post("/cleanup/")).status == 200
    assert (await rest.delete("/services/agent/")).status == 200
    assert (await rest.call("PATCH", "/services/agent/")).status == 405
    assert (await rest.get("/services//")).status == 404


async def test_capabilities_count_those_of_all_pages(rest: Rest) -> None:
    await rest.post("/services", service(capabilities=[{"name": name, "version": "1"} for name in "abc"]))
    page = (await rest.get("/capabilities?pageSize=2")).data
    assert ([each["name"] for each in page["capabilities"]], page["totalCapabilities"]) == (["a", "b"], 3)
