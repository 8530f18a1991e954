"""``--workers``: several processes on the same ports, through their public interface and signals."""

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.rolling_fleet import Fleet
from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import RegistryClient
from registry_server.workers.supervisor import Supervisor
from tests.support.processes import children_of, command_of, runs
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import ServerProcess, connected, settings

TIMEOUT = 30.0


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.02)


def workers_of(pid: int) -> list[int]:
    return [child for child in children_of(pid) if "workers.worker" in command_of(child)]


def redis_of(pid: int) -> list[int]:
    return [child for child in children_of(pid) if "redis-server" in command_of(child)]


@asynccontextmanager
async def two_workers(tmp_path: Path, *flags: str) -> AsyncIterator[ServerProcess]:
    async with ServerProcess(
        "--workers=2", f"--data-dir={tmp_path}", "--shutdown.grace-seconds=3", "--redis.url=embedded", *flags
    ) as server:
        assert (await server.logged("ossa-registry serves"))["workers"] == 2
        yield server


async def test_connections_are_distributed_over_workers_with_equal_state(tmp_path: Path) -> None:
    async with two_workers(tmp_path, "--log.requests=all") as server, aiohttp.ClientSession() as http:
        async with connected(server.grpc_address) as (_, stub):
            answer = await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("a")))
        revision = answer.service.revision
        for _ in range(40):  # each worker has the service afterwards
            async with connected(server.grpc_address) as (_, stub):
                found = await stub.GetService(pb.GetServiceRequest(name="a", min_revision=revision))
                assert found.service.revision == revision
        url = f"http://{server.http_address}/api/v1/registry/services/a"
        for _ in range(40):
            async with http.get(url, headers={"Connection": "close"}) as response:
                assert response.status == 200

        def served() -> Counter[int]:
            path = "/api/v1/registry/services/a"
            return Counter(line["worker"] for line in server.log if line.get("path") == path)

        await eventually(lambda: served().total() == 40)  # a log line may follow its response
        assert set(served()) == {1, 2}
        assert len(workers_of(server.pid)) == 2
        assert len(redis_of(server.pid)) == 1, "the workers share one embedded Redis"


async def test_killed_worker_is_replaced_without_data_loss(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as server, RegistryClient(server.grpc_address) as client:
        for i in range(20):
            await client.register_service(small_service(f"s{i}"))
        before = workers_of(server.pid)
        os.kill(before[0], signal.SIGKILL)
        for _ in range(20):  # served by the remaining worker, later by both
            assert (await client.get_service("s7")).name == "s7"
            await asyncio.sleep(0.02)
        await eventually(lambda: len(workers_of(server.pid)) == 2)
        assert before[0] not in workers_of(server.pid)
        assert before[1] in workers_of(server.pid)
        found = await client.discover_services(consistency="strong")
        assert len(found.services) == 20
        assert (await server.logged("worker exited, starting a replacement"))["code"] == -signal.SIGKILL


async def test_worker_drains_on_sigterm_and_is_replaced(tmp_path: Path) -> None:
    """An operator can restart workers one by one."""
    async with two_workers(tmp_path) as server:
        before = workers_of(server.pid)
        os.kill(before[0], signal.SIGTERM)
        await server.logged("worker drained, starting a replacement")
        await eventually(lambda: len(set(workers_of(server.pid)) - {before[0]}) == 2)


@pytest.mark.parametrize("target", ["supervisor", "process group"])
async def test_sigterm_drains_all_workers(tmp_path: Path, target: str) -> None:
    """Some service managers signal the whole process group, others only its first process."""
    async with two_workers(tmp_path) as server, connected(server.grpc_address) as (_, stub):
        stream = stub.WatchEvents(pb.WatchEventsRequest(include_snapshot=True))
        await stream.read()
        processes = [*workers_of(server.pid), *redis_of(server.pid)]
        if target == "process group":
            for worker in workers_of(server.pid):
                os.kill(worker, signal.SIGTERM)
        server.signal(signal.SIGTERM)
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
        assert await server.wait() == 0
        assert not [pid for pid in processes if runs(pid)]


async def test_workers_and_redis_exit_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as server:
        processes = [*workers_of(server.pid), *redis_of(server.pid)]
        assert len(processes) == 3
        await server.kill()
        await eventually(lambda: not [pid for pid in processes if runs(pid)])


async def startup_error(*flags: str) -> str:
    """Return the error output of a server that fails to start."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "registry_server", "--workers=2", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT):
        _, errors = await process.communicate()
    assert process.returncode == 2
    return "\n".join(line for line in errors.decode().splitlines() if not line.startswith("{"))


async def test_port_of_another_registry_is_refused(tmp_path: Path) -> None:
    async with two_workers(tmp_path / "one") as server:
        output = await startup_error(f"--grpc.address={server.grpc_address}", "--http.address=127.0.0.1:0")
        address = server.grpc_address
        assert output == f"ossa-registry: grpc.address: cannot listen on {address}: Address already in use"


async def test_port_of_another_program_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        output = await startup_error("--grpc.address=127.0.0.1:0", f"--http.address={address}")
        assert output == f"ossa-registry: http.address: cannot listen on {address}: Address already in use"


async def test_invalid_settings_are_reported_once_and_stop_all_workers(tmp_path: Path) -> None:
    output = await startup_error(f"--grpc.address=unix:{tmp_path}/socket", "--http.address=127.0.0.1:0")
    assert output == (
        "ossa-registry: grpc.address: a unix socket serves one worker; set workers to 1 or use a TCP address"
    )
    output = await startup_error("--grpc.address=127.0.0.1:0", "--redis.url=redis://127.0.0.1:7000?colour=red")
    assert output.startswith("ossa-registry: redis.url: ")
    assert len(output.splitlines()) == 1


async def test_silent_worker_is_replaced(redis: RedisProcess) -> None:
    stop = asyncio.Event()
    # Each worker has its own port, which no client calls.
    subject = Supervisor(settings(redis.url).model_copy(update={"workers": 2}))
    running = asyncio.create_task(subject.run(stop))
    async with asyncio.timeout(TIMEOUT):
        for worker in subject._workers:
            await worker.ready.wait()
    silent, other = subject._workers
    stopped, kept = silent._child, other._child
    assert stopped is not None
    silent.max_silent_checks = 3
    os.kill(stopped.process.pid, signal.SIGSTOP)
    await eventually(lambda: silent._child is not stopped)
    silent.max_silent_checks = 60  # on a busy machine, its successor needs many seconds before it sends its first frame
    await eventually(lambda: silent._child is not None and len(workers_of(os.getpid())) == 2)
    assert other._child is kept
    stop.set()
    async with asyncio.timeout(TIMEOUT):
        await running
    assert workers_of(os.getpid()) == []


async def test_rolling_restart_loses_no_change_and_no_lease(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as server:
        fleet, stop, ready = Fleet(server.grpc_address, changes_every=0.05), asyncio.Event(), asyncio.Event()
        fleet_task = asyncio.create_task(fleet.run(200, 4, 50, stop, ready))
        async with asyncio.timeout(TIMEOUT):
            await ready.wait()
        before = workers_of(server.pid)
        server.signal(signal.SIGUSR2)
        await server.logged("all workers restarted")
        now = workers_of(server.pid)
        stop.set()
        async with asyncio.timeout(TIMEOUT):
            await fleet_task  # ends once every watcher has received every change
        assert len(now) == 2
        assert not set(now) & set(before)
        assert (fleet.lost, fleet.missed_or_repeated) == (0, 0)
        assert len(fleet.resumed) == 50
        assert fleet.renewed >= 400, "every agent sent heartbeats before and after the restart"
        assert set(fleet.unavailable) > set(), fleet.counters()


async def test_rolling_restart_stops_at_a_worker_that_fails_to_start(tmp_path: Path) -> None:
    policy = Policy(tmp_path / "policy")
    async with two_workers(tmp_path / "data", f"--security.policy-file={policy.file}") as server:
        before = workers_of(server.pid)
        policy.file.unlink()
        server.signal(signal.SIGUSR2)
        assert (await server.logged("worker cannot start with these settings"))["worker"] == 1
        assert before[1] in workers_of(server.pid)
        policy.write()
        await server.logged("all workers restarted")


async def test_rolling_restart_without_workers_is_refused_with_a_log_line(tmp_path: Path) -> None:
    async with ServerProcess(f"--data-dir={tmp_path}", "--redis.url=embedded") as server:
        server.signal(signal.SIGUSR2)
        await server.logged(
            "rolling restart ignored: there are no workers; restart this process or set workers above 1"
        )
        async with connected(server.grpc_address) as (_, stub):
            await stub.GetStats(pb.GetStatsRequest())


async def test_every_worker_returns_the_metrics_of_all_workers(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as server, aiohttp.ClientSession() as http:

        async def scrape() -> dict[tuple[str, str], float]:
            url = f"http://{server.http_address}/metrics"
            timeout = aiohttp.ClientTimeout(total=3)
            async with http.get(url, headers={"Connection": "close"}, timeout=timeout) as response:
                text = await response.text()
            names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
            assert len(names) == len(set(names)), "each family is declared once"
            return {
                (sample.name, sample.labels["worker"]): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if len(sample.labels) == 1
            }

        for _ in range(10):
            seen = await scrape()
            assert {worker for name, worker in seen if name == "ossa_registry_revision"} == {"1", "2"}
            assert seen["process_resident_memory_bytes", "1"] > 1e6

        stopped = workers_of(server.pid)[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            for _ in range(8):  # less than 30 s, after which the supervisor replaces a silent worker
                with suppress(TimeoutError):  # the stopped worker received the request
                    assert len({worker for _, worker in await scrape()}) == 1
                    break
        finally:
            os.kill(stopped, signal.SIGCONT)


async def test_sighup_reloads_the_policy_in_all_workers(tmp_path: Path) -> None:
    policy = Policy(tmp_path / "policy")
    flag = f"--security.policy-file={policy.file}"
    async with two_workers(tmp_path / "data", flag) as server:

        async def codes() -> set[grpc.StatusCode]:
            seen = set()
            for _ in range(20):  # a new connection each time
                async with connected(server.grpc_address) as (_, stub):
                    call = stub.GetStats(pb.GetStatsRequest(), metadata=policy.metadata("viewer"))
                    seen.add(await call.code())
            return seen

        assert await codes() == {grpc.StatusCode.OK}
        before = workers_of(server.pid)
        policy.document["api_keys"] = [each for each in policy.document["api_keys"] if each["name"] != "viewer"]
        policy.write()
        server.signal(signal.SIGHUP)
        async with asyncio.timeout(TIMEOUT):
            while await codes() != {grpc.StatusCode.UNAUTHENTICATED}:
                pass
        assert workers_of(server.pid) == before
