"""gRPC probes: requests, and the outcome of each answer and failure."""

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from registry_server import __version__
from registry_server.probes import OutcomeKind
from registry_server.probes.prober import Prober
from registry_server.security.egress import EgressPolicy
from tests.support.endpoints import Target, closed_port, grpc_server, listening
from tests.unit.probes.probe_tables import GRPC, UNKNOWN_SERVICE
from tests.unit.probes.probing import OK, SHORT_TIMEOUT, TIMED_OUT, plan, resolve_names, send_probe


@pytest.mark.parametrize(("target", "kind", "error"), [row[1:] for row in GRPC], ids=[row[0] for row in GRPC])
async def test_grpc_outcomes(target: Target, kind: OutcomeKind, error: str) -> None:
    async with target() as port:
        outcome = await send_probe(f"grpc://127.0.0.1:{port}", {"timeout": SHORT_TIMEOUT} if error == TIMED_OUT else {})
    assert (outcome.kind, outcome.error, outcome.details) == (kind, error, None)
    assert 0 < outcome.response_time < 5


async def test_grpc_probe_checks_the_configured_service() -> None:
    servicer = health.aio.HealthServicer()
    await servicer.set("acme.v1.Chat", HealthCheckResponse.NOT_SERVING)
    server = grpc.aio.server()
    add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        endpoint = f"grpc://127.0.0.1:{port}"
        assert (await send_probe(endpoint)).kind is OK
        outcome = await send_probe(endpoint, {"grpc": {"service": "acme.v1.Chat"}})
        assert outcome.error == "the service reports NOT_SERVING"
        assert (await send_probe(endpoint, {"grpc": {"service": "acme.v1.Gone"}})).error == UNKNOWN_SERVICE
    finally:
        await server.stop(0)


async def test_grpc_probe_sends_user_agent_deadline_and_service(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    seen: dict[str, object] = {}

    async def check(sent: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        seen["agent"] = str(metadata["user-agent"]).partition(" ")[0]
        seen["remaining"] = context.time_remaining()
        seen["service"] = HealthCheckRequest.FromString(sent).service
        seen["peer"] = context.peer()
        return bytes((8, 1))

    async with grpc_server(check) as port:
        check_chat = {"grpc": {"service": "acme.v1.Chat"}, "timeout": "3s"}
        for _ in range(2):
            assert (await send_probe(f"grpc://agent.test:{port}", check_chat)).kind is OK
            remaining = seen.pop("remaining")
            assert isinstance(remaining, float)
            assert 0 < remaining < 3.5  # gRPC rounds it up slightly
            assert seen.pop("peer") not in seen.values()
    assert seen == {"agent": f"ossa-registry/{__version__}", "service": "acme.v1.Chat"}


async def test_grpc_probe_sends_the_host_name_as_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    sent = b""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # SETTINGS, which gRPC waits for before it sends requests
        while b"agent.test" not in sent:
            sent += await reader.read(4_096)

    async with listening(handle) as port:
        await send_probe(f"grpc://agent.test:{port}")
    assert f"agent.test:{port}".encode() in sent
    assert b"127.0.0.1" not in sent


async def test_each_grpc_probe_opens_a_new_connection() -> None:
    """A server that has recovered is detected immediately: neither a connection nor its back-off is reused."""
    peers: set[str] = set()

    async def check(_: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        peers.add(context.peer())
        return bytes((8, 1))

    async with Prober(EgressPolicy()) as prober:
        with closed_port() as port:
            target_plan = plan(f"grpc://127.0.0.1:{port}")
            assert [(await prober.send_probe(target_plan)).error for _ in range(3)] == ["connection refused"] * 3
        async with grpc_server(check) as port:
            target_plan = plan(f"grpc://127.0.0.1:{port}")
            assert [(await prober.send_probe(target_plan)).kind for _ in range(3)] == [OK] * 3
    assert len(peers) == 3
