"""REST endpoints of the registry as a whole, and paths outside the API."""

import re

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.registry_service_pb2 import HeartbeatRequest
from registry_server.app import serving
from tests.rest.client import Rest, client, service
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, settings

CAPABILITIES = [{"name": "a", "version": "1"}, {"name": "a", "version": "2"}, {"name": "b", "version": "1"}]


async def register_services(rest: Rest) -> None:
    await rest.post("/services", service("one", capabilities=CAPABILITIES, health={"status": "healthy"}))
    capabilities = [{"name": "a", "version": "1", "description": "Description of a"}]
    await rest.post("/services", service("two", capabilities=capabilities, health={"status": "degraded"}))
    await rest.post("/services", service("three", metadata={"tags": ["x"]}))


STATISTICS = {
    "totalServices": 3,
    "healthyServices": 1,
    "unhealthyServices": 0,
    "degradedServices": 1,
    "unknownServices": 1,
    "servicesInMaintenance": 0,
    "uniqueCapabilities": 2,
    "totalCapabilities": 4,
    "uniqueVersions": 1,
    "uniqueTags": 1,
    "averageCapabilitiesPerService": 1.33,
}


async def test_stats_count_the_registered_services(rest: Rest) -> None:
    await register_services(rest)
    assert (await rest.get("/stats")).data == STATISTICS


async def test_registry_health_includes_statistics(rest: Rest) -> None:
    await register_services(rest)
    health = (await rest.get("/health")).data
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", health.pop("timestamp"))
    assert health == {"status": "healthy", "statistics": STATISTICS}


async def test_one_unhealthy_service_makes_the_registry_degraded(rest: Rest) -> None:
    await rest.post("/services", service(health={"status": "unhealthy"}))
    assert (await rest.get("/health")).data["status"] == "degraded"
    await rest.put("/services/agent", {"health": {"status": "healthy"}})
    assert (await rest.get("/health")).data["status"] == "healthy"


async def test_capabilities_are_aggregated_over_services(rest: Rest) -> None:
    await register_services(rest)
    assert (await rest.get("/capabilities")).data == {
        "capabilities": [
            {
                "name": "a",
                "versions": ["1", "2"],
                "services": ["one", "two"],
                "serviceCount": 2,
                "description": "Description of a",
            },
            {"name": "b", "versions": ["1"], "services": ["one"], "serviceCount": 1},
        ],
        "totalCapabilities": 2,
        "nextPageToken": None,
    }


async def test_capabilities_are_paginated(rest: Rest) -> None:
    await register_services(rest)
    first = (await rest.get("/capabilities?pageSize=1")).data
    second = (await rest.get(f"/capabilities?pageSize=1&pageToken={first['nextPageToken']}")).data
    assert [page["capabilities"][0]["name"] for page in (first, second)] == ["a", "b"]
    assert second["nextPageToken"] is None


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("pageSize=0", ["pageSize"]),
        ("pageSize=1001", ["pageSize"]),
        ("pageToken=x", ["pageToken"]),
        ("name=a", ["name"]),
        ("label.a=b", ["label.a"]),
    ],
)
async def test_bad_parameters_of_capabilities_are_refused(query: str, fields: list[str], rest: Rest) -> None:
    answer = await rest.get(f"/capabilities?{query}")
    assert (answer.status, answer.fields) == (400, fields)


async def test_cleanup_removes_only_services_with_expired_leases(redis: RedisProcess) -> None:
    # Without periodic sweeps.
    async with serving(settings(redis.url, lease={"sweep_interval_ms": 86_400_000})) as served:
        await served.parts.loaded.wait()
        async with client(f"http://{served.http_address}") as rest:
            await rest.post("/services", service("kept"))
            await rest.post("/services", service("expired"))
            answer = await rest.post("/cleanup")
            assert answer.data == {"message": "Cleanup completed", "servicesRemoved": 0}
            async with Redis.from_url(redis.url) as store:
                await store.zadd("ossa:registry:leases", {"expired": 1}, xx=True)
            answer = await rest.post("/cleanup")
            assert answer.data == {"message": "Cleanup completed", "servicesRemoved": 1}
            assert (await rest.get("/services/expired")).status == 404
            assert (await rest.get("/services/kept")).status == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/stats"), ("GET", "/health"), ("POST", "/cleanup")])
async def test_registry_paths_have_no_parameters(method: str, path: str, rest: Rest) -> None:
    answer = await rest.call(method, f"{path}?verbose=1")
    assert (answer.status, answer.fields) == (400, ["verbose"])


async def test_liveness_and_readiness_have_no_envelope(rest: Rest) -> None:
    assert (await rest.get_outside_api("/health/live")).body == {"status": "alive"}
    assert (await rest.get_outside_api("/health")).body == {"status": "healthy"}


async def test_problems_degrade_readiness_and_are_a_metric(rest: Rest, server: Server) -> None:
    server.parts.problems.report("store_maxmemory_policy", "allkeys-lru evicts services")
    answer = await rest.get_outside_api("/health")
    assert (answer.status, answer.body) == (
        200,
        {"status": "degraded", "problems": [{"key": "store_maxmemory_policy", "text": "allkeys-lru evicts services"}]},
    )
    metrics = (await rest.get_outside_api("/metrics")).raw
    assert b'ossa_registry_problem{problem="store_maxmemory_policy"} 1.0' in metrics
    server.parts.problems.resolve("store_maxmemory_policy")
    assert (await rest.get_outside_api("/health")).body == {"status": "healthy"}


async def test_before_loading_all_calls_fail_with_a_retry_delay() -> None:
    async with serving(settings("redis://127.0.0.1:1")) as served, client(f"http://{served.http_address}") as rest:
        calls = [
            ("GET", "/services", None),
            ("GET", "/services/a", None),
            ("GET", "/services/a/health", None),
            ("GET", "/stats", None),
            ("GET", "/capabilities", None),
            ("GET", "/events", None),
            ("POST", "/services", service()),
            ("PUT", "/services/a", {}),
            ("DELETE", "/services/a", None),
            ("POST", "/services/a/heartbeat", None),
            ("POST", "/cleanup", None),
        ]
        for method, path, document in calls:
            answer = await rest.call(method, path, document)
            assert (answer.status, answer.code) == (503, "STORE_UNAVAILABLE"), path
            assert answer.headers["Retry-After"] == "1"
        assert (await rest.get_outside_api("/health")).status == 503
        problem = {"key": "store", "text": "Redis cannot be followed: INFO: no connection"}
        assert (await rest.get_outside_api("/health")).body == {"status": "unhealthy", "problems": [problem]}
        assert (await rest.get("/health")).data["status"] == "unhealthy"
        assert (await rest.get_outside_api("/health/live")).status == 200


@pytest.mark.own_redis
async def test_without_redis_reads_continue_and_writes_fail(redis: RedisProcess, server: Server, rest: Rest) -> None:
    await register_services(rest)
    await server.stub.Heartbeat(HeartbeatRequest(names=["one"]))
    await redis.stop()
    assert (await rest.get("/services")).data["count"] == 3
    assert (await rest.get("/services/one")).data["name"] == "one"
    assert (await rest.get("/services/one/health")).data["status"] == "healthy"
    assert (await rest.get("/stats")).data == STATISTICS
    for method, path, document in (
        ("POST", "/services", service("four")),
        ("PUT", "/services/one", {"version": "2"}),
        ("DELETE", "/services/one", None),
        ("POST", "/services/one/heartbeat", None),
        ("POST", "/cleanup", None),
    ):
        answer = await rest.call(method, path, document)
        assert (answer.status, answer.code) == (503, "STORE_UNAVAILABLE"), path
        assert answer.headers["Retry-After"] == "1"
    assert (await rest.get("/health")).data["status"] == "degraded"
