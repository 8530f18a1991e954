"""Probes over gRPC: what is asked, and what each answer and each fault is told as."""

import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from registry_server import __version__
from registry_server.probes import OutcomeKind, Prober
from registry_server.security.egress import EgressPolicy
from tests.support.endpoints import Target, closed_port, grpc_server, listening
from tests.unit.probes.probe_tables import GRPC, UNKNOWN
from tests.unit.probes.probing import HANGS, LONG, OK, names, plan, probe


@pytest.mark.parametrize(("target", "kind", "error"), [row[1:] for row in GRPC], ids=[row[0] for row in GRPC])
async def test_grpc(target: Target, kind: OutcomeKind, error: str) -> None:
    async with target() as port:
        outcome = await probe(f"grpc://127.0.0.1:{port}", {"timeout": LONG} if error == HANGS else {})
    assert (outcome.kind, outcome.error, outcome.details) == (kind, error, None)
    assert 0 < outcome.response_time < 5


async def test_grpc_asks_the_standard_servicer_for_the_service_of_the_check() -> None:
    servicer = health.aio.HealthServicer()
    await servicer.set("acme.v1.Chat", HealthCheckResponse.NOT_SERVING)
    server = grpc.aio.server()
    add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        endpoint = f"grpc://127.0.0.1:{port}"
        assert (await probe(endpoint)).kind is OK
        outcome = await probe(endpoint, {"grpc": {"service": "acme.v1.Chat"}})
        assert outcome.error == "the service reports NOT_SERVING"
        assert (await probe(endpoint, {"grpc": {"service": "acme.v1.Gone"}})).error == UNKNOWN
    finally:
        await server.stop(0)


async def test_grpc_sends_user_agent_deadline_and_service(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    seen: dict[str, object] = {}

    async def check(sent: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        seen["agent"] = str(metadata["user-agent"]).partition(" ")[0]
        seen["left"] = context.time_remaining()
        seen["service"] = HealthCheckRequest.FromString(sent).service
        seen["peer"] = context.peer()
        return bytes((8, 1))

    async with grpc_server(check) as port:
        check_chat = {"grpc": {"service": "acme.v1.Chat"}, "timeout": "3s"}
        for _ in range(2):
            assert (await probe(f"grpc://agent.test:{port}", check_chat)).kind is OK
            left = seen.pop("left")
            assert isinstance(left, float)
            assert 0 < left < 3.5  # gRPC rounds it up a little
            assert seen.pop("peer") not in seen.values()
    assert seen == {"agent": f"ossa-registry/{__version__}", "service": "acme.v1.Chat"}


async def test_grpc_names_the_host_as_the_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    sent = b""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # SETTINGS: now requests may come
        while b"agent.test" not in sent:
            sent += await reader.read(4_096)

    async with listening(handle) as port:
        await probe(f"grpc://agent.test:{port}")
    assert f"agent.test:{port}".encode() in sent
    assert b"127.0.0.1" not in sent


async def test_each_grpc_probe_has_a_connection_of_its_own() -> None:
    """So a server that is back up is seen at once: no connection, and no back-off of one, is left from before."""
    peers: set[str] = set()

    async def check(_: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        peers.add(context.peer())
        return bytes((8, 1))

    async with Prober(EgressPolicy()) as prober:
        with closed_port() as port:
            one = plan(f"grpc://127.0.0.1:{port}")
            assert [(await prober.probe(one)).error for _ in range(3)] == ["connection refused"] * 3
        async with grpc_server(check) as port:
            one = plan(f"grpc://127.0.0.1:{port}")
            assert [(await prober.probe(one)).kind for _ in range(3)] == [OK] * 3
    assert len(peers) == 3
