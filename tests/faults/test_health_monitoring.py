"""Health checks while processes are killed, leave, join, pause or restart."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event
from ossa.registry.v1.service_pb2 import HealthCheck
from registry_server.probes import OutcomeKind
from tests.grpc.calls import (
    HEALTH_CHANGED,
    HEALTHY,
    REGISTERED,
    UNKNOWN,
    eventually,
    redis_client,
    register_all,
)
from tests.support.agents import TIMEOUT, Agents
from tests.support.leases import pass_time
from tests.support.processes import children_of, runs
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, ServerProcess, connected, running
from tests.support.watching import following

INTERVAL = 1.0
PERIOD = 2.0
FLEET = 80
NOISE = 1.0
"""Tolerance in seconds for a busy machine."""


@asynccontextmanager
async def checkers(
    redis: RedisProcess, count: int, *, interval: float = INTERVAL, period: float = PERIOD, flags: Sequence[str] = ()
) -> AsyncIterator[list[ServerProcess]]:
    """Run processes with probing, which have discovered each other."""
    processes = [
        ServerProcess(
            f"--redis.url={redis.url}",
            "--shutdown.grace-seconds=2",
            "--health-check.enabled=true",
            f"--health-check.interval-ms={interval * 1000:.0f}",
            f"--health-check.member-period-ms={period * 1000:.0f}",
            *flags,
        )
        for _ in range(count)
    ]
    async with asyncio.TaskGroup() as group:
        for process in processes:
            group.create_task(process.start())
    try:
        await wait_for_distribution(processes, count)
        yield processes
    finally:
        await asyncio.gather(*(process.stop() for process in processes))


async def wait_for_distribution(processes: Sequence[ServerProcess], among: int) -> None:
    """Wait until each process has distributed the services over ``among`` processes."""

    def newest(process: ServerProcess) -> int:
        lines = [line for line in process.log if line.get("event") == "health checks reassigned"]
        return int(lines[-1]["processes"]) if lines else 0

    async with asyncio.timeout(TIMEOUT):
        while any(newest(process) != among for process in processes):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def client_of(process: ServerProcess) -> AsyncIterator[Server]:
    """Yield a process as a ``Server`` without parts."""
    async with connected(process.grpc_address) as (channel, stub):
        yield Server(stub, channel, None, process.grpc_address, process.http_address)  # type: ignore[arg-type]


async def assert_one_check_per_interval(agents: Agents, intervals: int = 4) -> None:
    """Check over some intervals that each agent is probed once per interval, by exactly one process.

    A difference of one is permitted, for the boundaries of the measurement and late probes.
    """
    await asyncio.sleep(INTERVAL)  # until probes of a previous checker have ended
    since = time.monotonic()
    await asyncio.sleep(intervals * INTERVAL)
    until = time.monotonic()
    expected = round((until - since) / INTERVAL)
    counts = agents.hits_between(since, until)
    unexpected = {name: count for name, count in counts.items() if abs(count - expected) > 1}
    assert not unexpected, f"number of probes in {expected} intervals: {unexpected}"


def only_initial_events(events: Sequence[Event]) -> bool:
    """Return whether all events are registrations or successful first checks."""
    return all(
        event.type == REGISTERED
        or (
            event.type == HEALTH_CHANGED and event.previous_health == UNKNOWN and event.service.health.status == HEALTHY
        )
        for event in events
    )


# Several processes.


async def test_services_of_a_killed_process_are_taken_over(redis: RedisProcess) -> None:
    async with Agents() as agents, checkers(redis, 3) as processes, client_of(processes[2]) as server:
        await register_all(server, agents.services(FLEET))
        await agents.wait_for_requests()
        await assert_one_check_per_interval(agents)

        below = children_of(processes[0].pid)
        killed_at = time.monotonic()
        await processes[0].kill()
        await agents.wait_for_requests(since=killed_at)
        waited = {name: at - killed_at for name, at in agents.first_hits(killed_at).items()}
        orphans = sum(wait > 1.4 * INTERVAL for wait in waited.values())
        print(f"takeover: {orphans} of {FLEET} services were checked again within {max(waited.values()):.2f} s")
        assert orphans, "the killed process had a share"
        assert max(waited.values()) <= 2 * PERIOD + INTERVAL
        await wait_for_distribution(processes[1:], 2)
        await assert_one_check_per_interval(agents)
        assert not [pid for pid in below if runs(pid)], "its probe process has exited"


async def test_joining_process_gets_a_share_and_leaving_one_hands_over(redis: RedisProcess) -> None:
    period = 6.0  # long, to distinguish a handover from a timeout
    notice_seconds, timeout_seconds = period / 4, period * 3 / 4
    joins = {"interval_ms": INTERVAL * 1000, "member_period_ms": period * 1000}
    async with (
        Agents() as agents,
        checkers(redis, 2, period=period) as processes,
        client_of(processes[1]) as server,
    ):
        await register_all(server, agents.services(FLEET))
        await agents.wait_for_requests()
        async with running(redis.url, health_check=joins) as newcomer:
            await wait_for_distribution(processes, 3)
            share = newcomer.parts.monitor.probed_services
            assert FLEET / 12 < share < FLEET * 2 / 3, "about a third"
            await assert_one_check_per_interval(agents, 3)

            processes[0].signal(signal.SIGTERM)
            assert await processes[0].wait() == 0
            left = time.monotonic()
            await agents.wait_for_requests(since=left)
            waited = max(agents.first_hits(left).values()) - left
            print(f"handover: all are checked {waited:.2f} s after the exit of the leaving process")
            assert waited < timeout_seconds, f"the others notice within {notice_seconds} s and check within an interval"
            assert newcomer.parts.monitor.probed_services > share
        left = time.monotonic()
        await agents.wait_for_requests(since=left)
        assert max(agents.first_hits(left).values()) - left < timeout_seconds
        await wait_for_distribution(processes[1:], 1)
        await assert_one_check_per_interval(agents, 3)


# A paused process.


async def test_pause_of_three_leases_expires_nothing_and_checks_resume(
    redis: RedisProcess,
) -> None:
    interval = 2.0
    async with (
        Agents() as agents,
        checkers(redis, 1, interval=interval) as (process,),
        client_of(process) as server,
        following(server.stub) as subscriber,
    ):
        ttl, by_heartbeat = Duration(seconds=5), HealthCheck(heartbeat=HealthCheck.HeartbeatProbe())
        await register_all(server, agents.services(60, ttl=ttl))
        beating = agents.services(5, "beating", ttl=ttl, health_check=by_heartbeat)
        await register_all(server, beating)
        names = [service.name for service in beating]
        probed = [name for name in agents.names if name not in names]
        await agents.wait_for_requests(probed)
        heartbeats = asyncio.create_task(_send_heartbeats(server, names))

        process.signal(signal.SIGSTOP)
        async with redis_client(redis) as client:
            await pass_time(client, 16)  # three lease lengths
        await asyncio.sleep(2.25 * interval)  # two missed checks of each service; probes need real time
        resumed = time.monotonic()
        process.signal(signal.SIGCONT)

        await agents.wait_for_requests(probed, since=resumed)
        waited = max(agents.first_hits(resumed).values()) - resumed
        print(f"paused: all {len(probed)} are checked again within {waited:.2f} s, interval {interval} s")
        assert waited <= interval + NOISE
        twice = [name for name, hits in agents.hits_between(resumed, resumed + interval).items() if hits > 2]
        assert not twice, "missed checks are not repeated"
        await process.logged("lease clock adjusted")
        assert not heartbeats.done()
        heartbeats.cancel()
        await asyncio.gather(heartbeats, return_exceptions=True)
        answer = await server.stub.Heartbeat(pb.HeartbeatRequest(names=agents.names))
        assert (answer.renewed_count, list(answer.unknown_names)) == (65, [])
        await subscriber.reached(await head(server))
        assert only_initial_events(subscriber.events)
        assert len([event for event in subscriber.events if event.type == REGISTERED]) == 65
        async with redis_client(redis) as client:
            documents = [f"ossa:services:{name}" for name in agents.names]

            async def all_exist() -> bool:
                return await client.exists(*documents) == 65

            await eventually(all_exist, "all documents exist again")


@pytest.mark.parametrize("stopped", ["both processes", "the registry", "the probe process"])
async def test_pause_with_probes_in_flight_counts_no_failure(redis: RedisProcess, stopped: str) -> None:
    flags = ["--health-check.failure-threshold=1"]  # a single counted failure would be visible
    async with (
        Agents(delay=0.4) as agents,
        checkers(redis, 1, interval=1.5, flags=flags) as (process,),
        client_of(process) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, agents.services(60))
        await agents.wait_for_requests(times=2)  # the first probes come together, after the probe process has started
        below = children_of(process.pid)
        registry = [process.pid]
        pids = {"both processes": registry + below, "the registry": registry, "the probe process": below}[stopped]
        await wait_for_in_flight(agents, 5)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        # Longer than the timeout of 1.5 s, but short enough that responses are not clearly late.
        await asyncio.sleep(1.6)
        resumed = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await agents.wait_for_requests(since=resumed)
        await agents.wait_for_requests(since=time.monotonic())  # until any counted failure has been reported
        await subscriber.reached(await head(server))
        assert only_initial_events(subscriber.events)


async def test_killed_probe_process_is_replaced_without_failures(
    redis: RedisProcess,
) -> None:
    flags = ["--health-check.failure-threshold=1"]
    async with (
        Agents(delay=0.4) as agents,
        checkers(redis, 1, interval=1.5, flags=flags) as (process,),
        client_of(process) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, agents.services(60))
        await agents.wait_for_requests()
        await wait_for_in_flight(agents, 5)
        killed_at = time.monotonic()
        for pid in children_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        await agents.wait_for_requests(since=killed_at)
        print(
            f"probing resumes: all are checked {max(agents.first_hits(killed_at).values()) - killed_at:.2f} s after it"
        )
        await agents.wait_for_requests(since=time.monotonic())
        await subscriber.reached(await head(server))
        assert only_initial_events(subscriber.events)


# A process or a store that starts over.


async def test_new_process_spreads_first_checks_over_an_interval(
    redis: RedisProcess,
) -> None:
    interval = 4.0
    async with Agents() as agents:
        async with running(redis.url) as server:
            await register_all(server, agents.services(200))
        started = time.monotonic()
        async with running(redis.url, health_check={"interval_ms": interval * 1000}) as server:
            await has_share(server, 200)
            shared = time.monotonic()
            await agents.wait_for_requests()
            firsts = agents.first_hits(started)
            # Checks due during the start of the probe process come at once; the others are spread.
            begun, end = min(firsts.values()), shared + interval
            assert max(firsts.values()) <= max(begun, end) + NOISE
            later = sum(at > begun + interval / 10 for at in firsts.values())
            expected = 200 * max(0.0, end - begun - interval / 10) / interval
            assert later >= expected / 2, f"checks are not spread: {later} of 200 came later, expected {expected:.0f}"
            assert not _probed_twice(agents, started, interval, server)
            counters = server.parts.monitor.counters
            assert set(counters.outcomes) == {OutcomeKind.OK}, "no result is lost"


async def test_services_registered_again_are_checked_once_per_interval(
    redis: RedisProcess,
) -> None:
    interval = 4.0
    async with (
        Agents() as agents,
        running(redis.url, health_check={"interval_ms": interval * 1000}, redis={"repair": False}) as server,
        redis_client(redis) as client,
    ):
        services = agents.services(200)
        await register_all(server, services)
        await agents.wait_for_requests()
        await client.flushall()
        await has_share(server, 0)

        emptied = time.monotonic()
        await register_all(server, services)
        registered = time.monotonic()
        await agents.wait_for_requests(since=emptied)
        assert max(agents.first_hits(emptied).values()) <= registered + interval + NOISE
        await asyncio.sleep(interval / 2)
        assert not _probed_twice(agents, emptied, interval, server)

        async def all_healthy() -> bool:
            return (await server.stub.GetStats(pb.GetStatsRequest())).stats.healthy_services == 200

        await eventually(all_healthy, "all are healthy")


def _probed_twice(agents: Agents, since: float, interval: float, server: Server) -> list[str]:
    """Return agents probed twice in an interval. A pause of this process causes repeated probes and is excluded."""
    if server.parts.monitor.process_pauses:
        return []
    return [
        name
        for name in agents.names
        for one, other in pairwise(agents.hits[name])
        if one >= since and other - one < interval / 2
    ]


async def has_share(server: Server, count: int) -> None:
    """Wait until a process checks ``count`` services."""

    async def holds() -> bool:
        return server.parts.monitor.probed_services == count

    await eventually(holds, f"{count} services are checked")


async def head(server: Server) -> int:
    return (await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).revision


async def wait_for_in_flight(agents: Agents, count: int) -> None:
    """Wait until ``count`` probes are in flight."""
    async with asyncio.timeout(TIMEOUT):
        while agents.in_flight < count:
            await asyncio.sleep(0.005)


async def _send_heartbeats(server: Server, names: Sequence[str]) -> None:
    while True:
        with suppress(grpc.aio.AioRpcError):
            await server.stub.Heartbeat(pb.HeartbeatRequest(names=names))
        await asyncio.sleep(1)
