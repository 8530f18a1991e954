"""``GET /metrics`` in the Prometheus text format."""

import asyncio
import re
import time
from pathlib import Path

import aiohttp
import grpc
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import HealthStatus
from ossa_common.cursors import Cursor, encode_cursor
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running
from tests.support.waiting import TIMEOUT_SECONDS, until

METRICS = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
LABELS = {"method", "code", "route", "status", "cache", "result", "outcome", "script", "pool", "state", "start"} | {
    *("reason", "le", "version", "python_version")
}


async def families(server: Server) -> list[Metric]:
    async with aiohttp.ClientSession() as client, client.get(f"{server.http}/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return list(text_string_to_metric_families(await response.text()))


async def samples(server: Server) -> dict[str, float]:
    """Return all samples by name without prefix, followed by their labels."""
    return {
        sample.name.removeprefix("ossa_registry_")
        + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in await families(server)
        for sample in family.samples
    }


async def register(server: Server, name: str, **fields: object) -> None:
    await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name, **fields)))


async def test_metrics_are_exactly_the_documented_ones(server: Server) -> None:
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in await families(server)
        if not family.name.startswith(("process_", "python_gc_"))
    }
    assert exported == dict(re.findall(r"^\| `(ossa_registry_\w+)` \| (\w+) \|", METRICS, re.MULTILINE))


async def test_metric_names_and_labels_follow_the_conventions(server: Server) -> None:
    await register(server, "a")
    for family in await families(server):
        assert family.documentation
        if family.name.startswith("ossa_registry_"):
            assert family.type != "histogram" or family.name.endswith("_seconds")
            assert {label for sample in family.samples for label in sample.labels} <= LABELS


async def test_process_metrics_are_exported(server: Server) -> None:
    names = {family.name for family in await families(server)}
    assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds"} <= names


async def test_probe_metrics_exist_without_probing(server: Server) -> None:
    values = await samples(server)
    assert values["probed_services"] == 0
    assert values["probes_total outcome=ok"] == 0


async def test_probes_are_counted_by_outcome_and_lateness(redis: RedisProcess) -> None:
    async with running(redis.url, health_check={"interval_ms": 3_600_000, "timeout_ms": 10_000}) as server:
        for name, endpoint in (("alive", server.http), ("dead", "http://127.0.0.1:1")):
            await register(server, name, endpoint=endpoint)
            await server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name))
        values = await samples(server)
    assert values["probes_total outcome=ok"] >= 1
    assert values["probes_total outcome=failed"] >= 1
    assert values["probes_total outcome=degraded"] == 0
    assert values["probed_services"] == 2
    assert values["members"] == 1
    assert values["self_preservation_active"] == 0
    count = values["probe_lateness_seconds_count"]
    assert values["probe_lateness_seconds_bucket le=+Inf"] == count


async def test_rpcs_are_timed_and_counted_by_method_and_code(server: Server) -> None:
    request = pb.DiscoverServicesRequest()
    for _ in range(3):
        await server.stub.DiscoverServices(request)
    with pytest.raises(grpc.aio.AioRpcError):
        await server.stub.GetService(pb.GetServiceRequest(name="unknown"))
    async with asyncio.timeout(TIMEOUT_SECONDS):  # a call is counted after its client has received the status
        while "grpc_requests_total code=NOT_FOUND method=GetService" not in (values := await samples(server)):
            await asyncio.sleep(0.01)
    assert values["grpc_requests_total code=OK method=DiscoverServices"] == 3
    assert values["grpc_requests_total code=NOT_FOUND method=GetService"] == 1
    assert values["grpc_requests_total code=OK method=GetService"] == 0
    assert values["grpc_request_duration_seconds_count method=DiscoverServices"] == 3
    assert 0 < values["grpc_request_duration_seconds_sum method=DiscoverServices"] < 30
    assert values["cache_requests_total cache=discovery result=miss"] == 1
    assert values["cache_requests_total cache=discovery result=hit"] == 2


async def test_call_of_a_disconnected_client_is_counted_as_cancelled(server: Server) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await server.stub.DiscoverServices(pb.DiscoverServicesRequest(min_revision=1_000), timeout=0.1)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not (ended := await discovery_calls(server)):
            await asyncio.sleep(0.01)
    assert ended in ({"CANCELLED": 1}, {"DEADLINE_EXCEEDED": 1}), "client and server race at the deadline"


async def discovery_calls(server: Server) -> dict[str, float]:
    """Return the number of ``DiscoverServices`` calls by code, without zeros."""
    found = {
        match[1]: value
        for key, value in (await samples(server)).items()
        if (match := re.fullmatch(r"grpc_requests_total code=(\w+) method=DiscoverServices", key))
    }
    return {code: value for code, value in found.items() if value}


async def test_http_requests_are_counted_by_route_not_by_path(server: Server) -> None:
    base = f"{server.http}/api/v1/registry"
    async with aiohttp.ClientSession() as client:
        for path in ("/services", "/services", "/services/missing-agent", "/services/bad%20name", "/nowhere"):
            async with client.get(base + path) as response:
                await response.read()
        async with client.request("PROPFIND", f"{base}/services") as response:
            assert response.status == 405
    values = await samples(server)
    route = "/api/v1/registry/services"
    assert values[f"http_requests_total method=GET route={route} status=200"] == 2
    assert values[f"http_requests_total method=OTHER route={route} status=405"] == 1
    missing = {key: value for key, value in values.items() if "{name} status=" in key}
    assert sum(missing.values()) == 2
    assert values["http_requests_total method=GET route=OTHER status=404"] == 1
    assert values[f"http_request_duration_seconds_count route={route}"] == 3
    assert values["cache_requests_total cache=listing result=hit"] == 1
    assert not any("missing-agent" in key or "nowhere" in key for key in values)


async def test_commits_events_and_services_are_counted(server: Server) -> None:
    await register(server, "a", health={"status": HealthStatus.HEALTH_STATUS_HEALTHY})
    await register(server, "b")
    values = await samples(server)
    assert values["commits_total outcome=committed"] == 2
    assert values["store_calls_total outcome=ok script=commit"] == 2
    assert values["store_call_duration_seconds_count script=commit"] == 2
    assert values["event_lag_seconds_count"] == 2
    assert values["event_lag_seconds_sum"] < 30
    assert values["revision"] == 2
    assert sum(value for key, value in values.items() if key.startswith("services status=")) == 2
    assert values["services status=unknown"] + values["services status=healthy"] == 2
    assert (
        values["follower_state state=following"] == values["store_connected"] == values["store_connections_total"] == 1
    )
    assert values["follower_state state=disconnected"] == values["follower_lag_seconds"] == values["resyncs_total"] == 0
    assert values["redis_connections pool=follower state=in_use"] == 1
    assert values["redis_connections_max pool=commands"] == 100


async def test_watches_are_counted_by_start_and_end_reason(server: Server) -> None:
    counters = server.parts.hub.counters
    watch = server.stub.WatchEvents(pb.WatchEventsRequest(include_snapshot=True))
    first = await anext(aiter(watch))
    assert (await samples(server))["watchers"] == 1
    await register(server, "a")
    second = await anext(aiter(watch))
    assert [event.service.name for event in second.events] == ["a"]
    watch.cancel()
    await until(lambda: counters.ended["CLIENT_LEFT"] == 1)
    again = server.stub.WatchEvents(pb.WatchEventsRequest(cursor=first.cursor))
    assert [event.service.name for event in (await anext(aiter(again))).events] == ["a"]
    again.cancel()
    await until(lambda: counters.ended["CLIENT_LEFT"] == 2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(server.stub.WatchEvents(pb.WatchEventsRequest(cursor=expired_cursor(server)))))
    assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
    values = await samples(server)
    assert values["watches_started_total start=snapshot"] == values["watches_started_total start=cursor"] == 1
    assert values["watches_ended_total reason=client_left"] == 2
    assert values["watches_ended_total reason=watcher_too_slow"] == values["watchers"] == 0
    assert values["watch_cursors_expired_total"] == 1
    assert values["watch_events_total"] == 1
    assert values["grpc_requests_total code=OUT_OF_RANGE method=WatchEvents"] == 1


def expired_cursor(server: Server) -> str:
    return encode_cursor(Cursor(server.parts.replica.position.epoch, 10**6, resumable=False))


async def test_dropped_watcher_is_counted(redis: RedisProcess) -> None:
    async with running(redis.url, watch={"buffer_events": 2}) as server:
        with await server.parts.registry.watch(pb.WatchEventsRequest()):  # never reads
            for name in ("a", "b", "c"):
                await register(server, name)
            assert (await samples(server))["watches_ended_total reason=watcher_too_slow"] == 1
        assert (await samples(server))["watches_ended_total reason=client_left"] == 0


async def test_leases_heartbeats_and_takeovers_are_counted(redis: RedisProcess) -> None:
    async with running(redis.url, lease={"sweep_interval_ms": 20}) as server:
        await register(server, "a", ttl={"seconds": 5})
        await server.stub.Heartbeat(pb.HeartbeatRequest(names=["a", "unknown"]))
        await register(server, "a", ttl={"seconds": 5}, instance_id="one")
        await server.stub.Heartbeat(pb.HeartbeatRequest(leases=[pb.Lease(name="a", instance_id="old")]))
        counters = server.parts.store.counters
        await until(lambda: counters.active_leases == 1)
        values = await samples(server)
        assert (
            values["leases"]
            == values["heartbeats_total result=renewed"]
            == values["heartbeats_total result=unknown"]
            == values["heartbeats_total result=superseded"]
            == values["takeovers_total"]
            == 1
        )
        await until(lambda: counters.expired_services["lease_expired"])
        assert (await samples(server))["leases_expired_total reason=lease_expired"] == 1


@pytest.mark.own_redis
async def test_unavailable_store_is_visible_in_metrics(server: Server, redis: RedisProcess) -> None:
    await register(server, "a")
    redis.kill()
    await until(lambda: not server.parts.follower.connected)
    with pytest.raises(grpc.aio.AioRpcError):
        await register(server, "b")
    values = await samples(server)
    assert values["store_connected"] == 0
    assert values["follower_state state=disconnected"] == 1
    assert values["follower_lag_seconds"] > 0
    assert values["commits_total outcome=failed"] == values["store_calls_total outcome=failed script=commit"] == 1
    assert values["services status=unknown"] == 1, "reads continue from memory"


async def test_stall_of_the_event_loop_is_counted_and_logged(server: Server) -> None:
    with capture_logs() as logs:
        ends = time.thread_time() + 0.6
        while time.thread_time() < ends:
            pass
        await until(lambda: any(line["event"] == "event loop stalled" for line in logs))
    values = await samples(server)
    assert values["event_loop_stall_seconds_count"] >= 1
    assert values["event_loop_stall_seconds_sum"] > 0.4


async def test_event_loop_and_redis_are_sampled(server: Server) -> None:
    await until(lambda: sum(server.parts.samples.loop.lag.counts) and server.parts.store.counters.memory)
    values = await samples(server)
    assert values["event_loop_lag_seconds_count"] >= 1
    assert values["redis_memory_bytes"] > 100_000
    assert values["redis_memory_max_bytes"] == 0
    assert values["redis_persistence_ok"] == 1
