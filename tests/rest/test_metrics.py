"""``GET /metrics``: what a Prometheus would read."""

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running

NAMES = {
    "ossa_registry_members",
    "ossa_registry_probe_lateness_seconds",
    "ossa_registry_probed_services",
    "ossa_registry_probes",
    "ossa_registry_probes_late",
    "ossa_registry_protection_active",
    "ossa_registry_standstills",
}


async def samples(server: Server) -> dict[str, float]:
    """Every sample by its name, with the labels behind it."""
    async with aiohttp.ClientSession() as client, client.get(f"{server.http}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await response.text()
    families = list(text_string_to_metric_families(text))
    assert {family.name for family in families} == NAMES
    assert all(family.documentation for family in families)
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


async def test_metrics_are_there_without_probing_too(server: Server) -> None:
    read = await samples(server)
    assert read["ossa_registry_probed_services"] == 0
    assert read["ossa_registry_probes_total outcome=ok"] == 0


async def test_probes_are_counted_by_outcome_and_lateness(redis: RedisProcess) -> None:
    async with running(redis.url, health_check={"interval_ms": 3_600_000, "timeout_ms": 10_000}) as server:
        for name, endpoint in (("alive", server.http), ("dead", "http://127.0.0.1:1")):
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name, endpoint=endpoint)))
            await server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name))
        read = await samples(server)
    assert read["ossa_registry_probes_total outcome=ok"] >= 1
    assert read["ossa_registry_probes_total outcome=failed"] >= 1
    assert read["ossa_registry_probes_total outcome=degraded"] == 0
    assert read["ossa_registry_probed_services"] == 2
    assert read["ossa_registry_members"] == 1
    assert read["ossa_registry_protection_active"] == 0
    count = read["ossa_registry_probe_lateness_seconds_count"]
    assert read["ossa_registry_probe_lateness_seconds_bucket le=+Inf"] == count
