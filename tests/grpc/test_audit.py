"""The audit log: caller, origin and outcome of every change, including refused ones."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import HealthStatus
from tests.grpc.calls import redis_client, set_remaining_lease
from tests.support.auditing import audit_lines
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, ServerProcess, connected, running
from tests.support.waiting import until

METADATA = (("x-request-id", "mine"), ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))


@asynccontextmanager
async def audited(redis: RedisProcess, **sections: Any) -> AsyncIterator[tuple[Server, list[Any]]]:
    with audit_lines() as changes:
        async with running(redis.url, **sections) as server:
            yield server, changes


def summarize(changes: list[Any]) -> list[tuple[Any, ...]]:
    keys = ("operation", "service", "outcome", "revision_before", "revision_after")
    return [tuple(line[key] for key in keys) for line in changes]


async def register(server: Server, name: str, **fields: Any) -> None:
    request = pb.RegisterServiceRequest(service=small_service(name, **fields))
    await server.stub.RegisterService(request, metadata=METADATA)


async def test_change_is_audited_with_caller_and_origin(redis: RedisProcess) -> None:
    async with audited(redis) as (server, changes):
        await register(server, "a")
        (line,) = changes
    assert line.pop("peer").startswith(("ipv4:127.0.0.1:", "ipv6:"))
    assert line == {
        "operation": "register",
        "service": "a",
        "outcome": "ok",
        "identity": "anonymous",
        "revision_before": None,
        "revision_after": 1,
        "transport": "grpc",
        "request_id": "mine",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }


@pytest.mark.parametrize("requests", ["errors", "all"])
async def test_request_log_and_audit_line_have_the_same_request_id(requests: str, redis: RedisProcess) -> None:
    with capture_logs() as logs:
        async with audited(redis, log={"requests": requests}) as (server, changes):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await server.stub.UnregisterService(pb.UnregisterServiceRequest(name="missing"))
            await until(lambda: any(line["event"] == "request" for line in logs))
    ids = {line["request_id"] for line in [*changes, *logs] if "request_id" in line}
    assert len(changes) == 1
    assert ids == {dict(caught.value.trailing_metadata() or ())["x-request-id"]}


async def test_every_kind_of_change_is_audited_with_its_revisions(redis: RedisProcess) -> None:
    async with audited(redis) as (server, changes):
        await register(server, "a")
        await register(server, "a", version="2.0.0")
        update = pb.UpdateServiceRequest(service=small_service("a", version="3.0.0"))
        update.update_mask.paths.append("version")
        await server.stub.UpdateService(update)
        for status in (HealthStatus.HEALTH_STATUS_UNHEALTHY, HealthStatus.HEALTH_STATUS_UNHEALTHY):
            await server.stub.ReportServiceHealth(pb.ReportServiceHealthRequest(name="a", status=status))
        await server.stub.UnregisterService(pb.UnregisterServiceRequest(name="a"))
        batch = pb.BatchRegisterServicesRequest(services=[small_service("b"), small_service("c")])
        await server.stub.BatchRegisterServices(batch)
        found = summarize(changes)
    assert found[:5] == [
        ("register", "a", "ok", None, 1),
        ("register", "a", "ok", 1, 2),
        ("update", "a", "ok", 2, 3),
        ("report_health", "a", "ok", 3, 4),
        ("unregister", "a", "ok", 4, None),
    ]
    assert sorted(found[5:]) == [("register", "b", "ok", None, 6), ("register", "c", "ok", None, 7)]


async def test_call_without_effect_is_not_audited(redis: RedisProcess) -> None:
    async with audited(redis) as (server, changes):
        await register(server, "a")
        await register(server, "a")
        await server.stub.Heartbeat(pb.HeartbeatRequest(names=["a"]))
        await server.stub.GetService(pb.GetServiceRequest(name="a"))
        await server.stub.Cleanup(pb.CleanupRequest())
        assert summarize(changes) == [("register", "a", "ok", None, 1)]


@pytest.mark.own_redis
async def test_refused_change_is_audited_with_its_reason(redis: RedisProcess) -> None:
    async with audited(redis) as (server, changes):
        await register(server, "a")
        refused: list[Callable[[], Awaitable[object]]] = [
            lambda: server.stub.RegisterService(
                pb.RegisterServiceRequest(service=small_service("a"), create_only=True)
            ),
            lambda: server.stub.RegisterService(
                pb.RegisterServiceRequest(service=small_service("no\n good" + "x" * 1000))
            ),
            lambda: server.stub.UpdateService(pb.UpdateServiceRequest(service=small_service("a"), expected_revision=9)),
            lambda: server.stub.UnregisterService(pb.UnregisterServiceRequest(name="missing")),
            lambda: server.stub.ReportServiceHealth(pb.ReportServiceHealthRequest(name="a")),
            lambda: server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest()),
        ]
        for call in refused:
            with pytest.raises(grpc.aio.AioRpcError):
                await call()
        redis.kill()
        await until(lambda: not server.parts.follower.connected)
        with pytest.raises(grpc.aio.AioRpcError):
            await server.stub.UnregisterService(pb.UnregisterServiceRequest(name="a"))
        with pytest.raises(grpc.aio.AioRpcError):
            await server.stub.Cleanup(pb.CleanupRequest())
        found = summarize(changes)[1:]
    assert found == [
        ("register", "a", "SERVICE_EXISTS", 1, None),
        ("register", ("no\n good" + "x" * 1000)[:256], "INVALID_REQUEST", None, None),
        ("update", "a", "REVISION_MISMATCH", 1, None),
        ("unregister", "missing", "SERVICE_NOT_FOUND", None, None),
        ("report_health", "a", "INVALID_REQUEST", None, None),
        ("register", "", "INVALID_REQUEST", None, None),
        ("unregister", "a", "STORE_UNAVAILABLE", 1, None),
        ("cleanup", "", "STORE_UNAVAILABLE", None, None),
    ]


async def test_expired_lease_is_audited_as_a_change_by_the_registry(redis: RedisProcess) -> None:
    async with audited(redis, lease={"sweep_interval_ms": 20}) as (server, changes):
        await register(server, "a", ttl={"seconds": 5})
        async with redis_client(redis) as client:
            await set_remaining_lease(client, "a", 0)
        await until(lambda: len(changes) > 1)
        line = changes[1]
    assert line["operation"] == "expire"
    assert line["service"] == "a"
    assert line["identity"] == "registry"
    assert "peer" not in line


async def test_changes_through_rest_are_audited(redis: RedisProcess) -> None:
    body = {"name": "a", "endpoint": "http://a.test", "version": "1.0.0", "capabilities": []}
    async with audited(redis) as (server, changes), aiohttp.ClientSession(f"{server.http}/api/v1/registry/") as client:
        async with client.post("services", json=body, headers={"X-Request-Id": "web"}) as response:
            assert response.status == 201, await response.text()
        async with client.delete("services/a") as response:
            assert response.status == 200
        async with client.delete("services/a") as response:
            assert response.status == 404
        assert summarize(changes) == [
            ("register", "a", "ok", None, 1),
            ("unregister", "a", "ok", 1, None),
            ("unregister", "a", "SERVICE_NOT_FOUND", None, None),
        ]
    assert changes[0]["request_id"] == "web"
    assert changes[0]["transport"] == "http"
    assert changes[0]["peer"].startswith("127.0.0.1:")


async def test_nothing_is_audited_when_the_audit_is_off(redis: RedisProcess) -> None:
    async with audited(redis, log={"audit": "off"}) as (server, changes):
        await register(server, "a")
        assert changes == []


async def test_audit_file_contains_only_the_audit_and_can_be_rotated(redis: RedisProcess, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    async with (
        ServerProcess(f"--redis.url={redis.url}", f"--log.audit={file}") as server,
        connected(server.grpc_address) as (_, stub),
    ):
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        file.rename(tmp_path / "audit.log.1")
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("b")))
        assert [line for line in server.log if line.get("event") == "change"] == []
    first = json.loads((tmp_path / "audit.log.1").read_text())
    second = json.loads(file.read_text())
    assert (first["service"], second["service"]) == ("a", "b")
    assert first["logger"] == "audit"
    assert first["timestamp"]


async def test_audit_file_is_appended_to(redis: RedisProcess, tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    file.write_text('{"event": "older"}\n')
    async with (
        ServerProcess(f"--redis.url={redis.url}", f"--log.audit={file}") as server,
        connected(server.grpc_address) as (_, stub),
    ):
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["older", "change"]


async def test_full_disk_does_not_block_changes(redis: RedisProcess) -> None:
    flags = (f"--redis.url={redis.url}", "--log.audit=/dev/full")
    async with ServerProcess(*flags) as server, connected(server.grpc_address) as (_, stub):
        for i in range(20):
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service(f"a{i}")))
        await server.logged("--- Logging error ---")
        assert any("No space left on device" in str(line) for line in server.log)
        assert await server.stop() == 0
