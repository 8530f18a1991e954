"""This version and its predecessor serve one Redis: docs/stability.md, and the procedure of docs/upgrading.md.

The predecessor runs from its own source tree, with the libraries of this checkout.
"""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.rolling_fleet import Fleet
from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Capability, HealthStatus, Service
from registry_client import RegistryClient
from tests.support.previous import previous_source
from tests.support.processes import run_to_end
from tests.support.redis_process import RedisProcess, free_port
from tests.support.samples import small_service
from tests.support.server import ROOT, ServerProcess, connected, import_from

SERVICES, WATCHERS = 60, 10
UNEXPECTED = {"resynchronised with the store", "store repaired from memory", "store disconnected"}

CLI = "from registry_cli.main import main; main()"
# Its lease must be renewed, or it expires in the meantime.
AGENT = """
import asyncio, os
from registry_client import RegistryClient, make_service

async def main():
    async with RegistryClient(os.environ["OSSA_REGISTRY_TARGET"]) as client:
        agent = make_service("agent", "http://agent.test", version="1", health_check="heartbeat", ttl=5)
        async with client.registration(agent) as registration:
            await asyncio.sleep(8)
            print(registration.state.value, (await client.get_service("agent")).name, sep="\\n")

asyncio.run(main())
"""

pytestmark = [pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree of the predecessor."""
    return previous_source(tmp_path_factory.mktemp("previous"))


async def imported_from(source: Path) -> str:
    """Return where a process that is started like a server of a source tree imports the registry from."""
    command = (
        sys.executable,
        "-P",
        "-c",
        "import ossa, registry_server; print(ossa.__path__, registry_server.__path__)",
    )
    code, output = await run_to_end(*command, max_seconds=60, env=os.environ | import_from(source), cwd=source)
    assert code == 0, output
    return output


async def test_predecessor_is_imported_from_its_own_source(previous: Path) -> None:
    output = await imported_from(previous)
    assert output.count(str(previous)) == 2
    assert str(ROOT) not in output


async def test_rolling_upgrade_and_rollback_lose_nothing_under_load(redis: RedisProcess, previous: Path) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    flags = (f"--redis.url={redis.url}", "--shutdown.grace-seconds=5", "--health-check.enabled=true")
    servers: list[ServerProcess] = []
    logs: list[dict[str, Any]] = []

    async def start(source: Path, number: int) -> ServerProcess:
        server = ServerProcess(*flags, f"--grpc.address={addresses[number]}", source=source)
        return await stack.enter_async_context(server)

    async with AsyncExitStack() as stack:
        servers = [await start(previous, number) for number in range(2)]
        fleet, stop, ready = Fleet(f"ipv4:{','.join(addresses)}", changes_every=0.05), asyncio.Event(), asyncio.Event()
        load = asyncio.create_task(fleet.run(SERVICES, 2, WATCHERS, stop, ready))
        await ready.wait()
        await verify(servers, "before")
        for step, (source, number) in enumerate([(ROOT, 0), (ROOT, 1), (previous, 0), (previous, 1), (ROOT, 0)]):
            old = servers[number]
            assert await old.stop() == 0
            logs += old.log
            servers[number] = await start(source, number)
            await verify(servers, f"step-{step}")
        stop.set()
        await load
        for server in servers:
            assert await server.stop() == 0
            logs += server.log
    assert (fleet.lost, fleet.missed_or_repeated) == (0, 0), fleet.counters()
    assert fleet.renewed >= SERVICES
    assert len(fleet.resumed) == WATCHERS
    failures = [line for line in logs if line.get("level") in {"error", "critical"} or line["event"] in UNEXPECTED]
    assert failures == []


async def verify(servers: list[ServerProcess], label: str) -> None:
    """Write through each process what it can write, change it through the other, and compare what both read."""
    async with AsyncExitStack() as stack:
        stubs = [(await stack.enter_async_context(connected(server.grpc_address)))[1] for server in servers]
        for number, (writer, other) in enumerate([stubs, stubs[::-1]]):
            service = newest_service(f"{label}-{number}")
            await call(writer.RegisterService, pb.RegisterServiceRequest(service=service))
            await verify_leases(stubs, service)
            report = pb.ReportServiceHealthRequest(name=service.name, status=HealthStatus.HEALTH_STATUS_DEGRADED)
            await call(other.ReportServiceHealth, report)
            service.metadata.description = "changed"
            update = pb.UpdateServiceRequest(service=service)
            update.update_mask.paths.append("metadata.description")
            changed = (await call(other.UpdateService, update)).service
            get = pb.GetServiceRequest(name=service.name, min_revision=changed.revision)
            read = [(await call(stub.GetService, get)).service for stub in stubs]
            assert read[0] == read[1] == changed
            assert changed.health.status == HealthStatus.HEALTH_STATUS_DEGRADED
            assert changed.capabilities == service.capabilities
            await call(other.UnregisterService, pb.UnregisterServiceRequest(name=service.name))
            service.instance_id = "two"
            await call(other.RegisterService, pb.RegisterServiceRequest(service=service))
            await verify_leases(stubs, service)
            service.instance_id = "three"
            await call(writer.RegisterService, pb.RegisterServiceRequest(service=service))
            await verify_leases(stubs, service)
            service.instance_id = "four"
            await call(other.RegisterService, pb.RegisterServiceRequest(service=service))
            await verify_leases(stubs, service)
            await call(writer.UnregisterService, pb.UnregisterServiceRequest(name=service.name))
            await verify_maintenance(writer, other, f"{label}-{number}-maintained")
        everything = pb.DiscoverServicesRequest(consistency=pb.CONSISTENCY_STRONG)
        names = [[each.name for each in (await call(stub.DiscoverServices, everything)).services] for stub in stubs]
        assert names[0] == names[1]
        assert len(names[0]) == SERVICES


async def verify_leases(stubs: list[Any], service: Service) -> None:
    """Verify that the newest instance keeps its lease through each version; the older one reads only the names."""
    lease = pb.Lease(name=service.name, instance_id=service.instance_id)
    for stub in stubs:
        beat = await call(stub.Heartbeat, pb.HeartbeatRequest(names=[service.name], leases=[lease]))
        assert (list(beat.unknown_names), list(beat.superseded_names)) == ([], [])


async def verify_maintenance(writer: Any, other: Any, name: str) -> None:
    """Let one version set a maintenance that the other may not know, and both read it."""
    await call(writer.RegisterService, pb.RegisterServiceRequest(service=small_service(name)))
    try:
        await call(writer.SetMaintenance, pb.SetMaintenanceRequest(name=name, enabled=True, reason="a test"))
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED  # noqa: PT017 - an older version
    else:
        for stub in (writer, other):
            answer = await call(stub.DiscoverServices, pb.DiscoverServicesRequest(consistency=pb.CONSISTENCY_STRONG))
            (found,) = [each for each in answer.services if each.name == name]
            assert found.health.status == HealthStatus.HEALTH_STATUS_MAINTENANCE
            assert found.maintenance.reason == "a test"
    await call(other.UnregisterService, pb.UnregisterServiceRequest(name=name))


async def call(rpc: Any, request: Any) -> Any:
    """Call a registry. A call that reaches no registry is repeated, as the SDK does."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await rpc(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


def newest_service(name: str) -> Service:
    """Return a service with every field that a registration may set."""
    capabilities = [Capability(name="translate", version="1.0.0")]
    service = small_service(name, instance_id="one", draining=True, capabilities=capabilities)
    service.ttl.FromSeconds(30)
    service.health_check.heartbeat.SetInParent()
    return service


@pytest.mark.parametrize("newer", ["client", "server"])
async def test_clients_and_servers_of_both_versions_work_together(
    redis: RedisProcess, previous: Path, newer: str
) -> None:
    client_source, server_source = (ROOT, previous) if newer == "client" else (previous, ROOT)

    async def run(code: str, *arguments: str) -> str:
        env = os.environ | import_from(client_source) | {"OSSA_REGISTRY_TARGET": server.grpc_address}
        command = (sys.executable, "-P", "-c", code, *arguments)
        result, output = await run_to_end(*command, max_seconds=60, env=env, cwd=client_source)
        assert result == 0, output
        return output

    async with ServerProcess(f"--redis.url={redis.url}", source=server_source) as server:
        assert (await run(AGENT)).splitlines() == ["registered", "agent"]
        await run(CLI, "register", "other", "http://other.test", "--version=1.0.0", "--capability=a@1.0.0")
        await run(CLI, "heartbeat", "other")
        assert [each["name"] for each in json.loads(await run(CLI, "list", "-o", "json"))] == ["other"]
        async with RegistryClient(server.grpc_address) as client:
            assert (await client.get_service("other")).capabilities[0].version == "1.0.0"
        await run(CLI, "unregister", "other")
