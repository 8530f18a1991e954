"""Processes that are killed, leave, join, stand still or start over: who is checked, when, and what must not follow."""

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
from tests.support.processes import children_of, runs
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, ServerProcess, connected, running
from tests.support.watching import following

INTERVAL = 1.0
PERIOD = 2.0
FLEET = 80
NOISE = 1.0
"""Seconds by which a busy machine may be late with what is due at a time."""


@asynccontextmanager
async def checkers(
    redis: RedisProcess, count: int, *, interval: float = INTERVAL, period: float = PERIOD, flags: Sequence[str] = ()
) -> AsyncIterator[list[ServerProcess]]:
    """Processes that check, and know of each other."""
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
        await shared_out(processes, count)
        yield processes
    finally:
        await asyncio.gather(*(process.stop() for process in processes))


async def shared_out(processes: Sequence[ServerProcess], among: int) -> None:
    """Waits until each process has shared out the services among so many."""

    def newest(process: ServerProcess) -> int:
        lines = [line for line in process.log if line.get("event") == "services to check are shared out"]
        return int(lines[-1]["processes"]) if lines else 0

    async with asyncio.timeout(TIMEOUT):
        while any(newest(process) != among for process in processes):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def client_of(process: ServerProcess) -> AsyncIterator[Server]:
    """A process as a server to call; it has no parts here."""
    async with connected(process.grpc_address) as (channel, stub):
        yield Server(stub, channel, None, process.grpc_address, process.http_address)  # type: ignore[arg-type]


async def checked_once_an_interval(agents: Agents, intervals: int = 4) -> None:
    """Watches for some intervals: each agent must be asked once in each, by one checker and not by two or none.

    One more or less may be how the time of watching falls, or a check that comes late.
    """
    await asyncio.sleep(INTERVAL)  # what was begun by another checker has ended by then
    since = time.monotonic()
    await asyncio.sleep(intervals * INTERVAL)
    until = time.monotonic()
    expected = round((until - since) / INTERVAL)
    counts = agents.hits_between(since, until)
    strange = {name: count for name, count in counts.items() if abs(count - expected) > 1}
    assert not strange, f"asked that often in {expected} intervals: {strange}"


def expected_at_first(events: Sequence[Event]) -> bool:
    """Whether nothing came but registrations, and first checks that succeeded."""
    return all(
        event.type == REGISTERED
        or (
            event.type == HEALTH_CHANGED and event.previous_health == UNKNOWN and event.service.health.status == HEALTHY
        )
        for event in events
    )


# Several processes.


async def test_each_service_has_one_checker_and_soon_another_one_when_that_is_killed(redis: RedisProcess) -> None:
    async with Agents() as agents, checkers(redis, 3) as processes, client_of(processes[2]) as server:
        await register_all(server, agents.services(FLEET))
        await agents.wait_for_requests()
        await checked_once_an_interval(agents)

        below = children_of(processes[0].pid)
        killed = time.monotonic()
        await processes[0].kill()
        await agents.wait_for_requests(since=killed)
        waited = {name: at - killed for name, at in agents.first_hits(killed).items()}
        orphans = sum(wait > 1.4 * INTERVAL for wait in waited.values())
        print(f"takeover: {orphans} of {FLEET} services were checked again within {max(waited.values()):.2f} s")
        assert orphans, "the one that was killed had a share"
        assert max(waited.values()) <= 2 * PERIOD + INTERVAL
        await shared_out(processes[1:], 2)
        await checked_once_an_interval(agents)
        assert not [pid for pid in below if runs(pid)], "what probed for it has ended too"


async def test_who_joins_takes_a_share_and_who_leaves_hands_over_at_once(redis: RedisProcess) -> None:
    period = 6.0  # so that to hand over and to be missed differ clearly
    notices_within, missed_after = period / 4, period * 3 / 4
    joins = {"interval_ms": INTERVAL * 1000, "member_period_ms": period * 1000}
    async with (
        Agents() as agents,
        checkers(redis, 2, period=period) as processes,
        client_of(processes[1]) as server,
    ):
        await register_all(server, agents.services(FLEET))
        await agents.wait_for_requests()
        async with running(redis.url, health_check=joins) as newcomer:
            await shared_out(processes, 3)
            share = newcomer.parts.monitor.probed_services
            assert FLEET / 12 < share < FLEET * 2 / 3, "about a third"
            await checked_once_an_interval(agents, 3)

            processes[0].signal(signal.SIGTERM)
            assert await processes[0].wait() == 0
            left = time.monotonic()
            await agents.wait_for_requests(since=left)
            waited = max(agents.first_hits(left).values()) - left
            print(f"handed over: all are checked {waited:.2f} s after the end of the process that left")
            assert waited < missed_after, f"the others notice within {notices_within} s, and check within an interval"
            assert newcomer.parts.monitor.probed_services > share
        left = time.monotonic()
        await agents.wait_for_requests(since=left)
        assert max(agents.first_hits(left).values()) - left < missed_after
        await shared_out(processes[1:], 1)
        await checked_once_an_interval(agents, 3)


# A process that stands still.


async def test_stopped_for_three_leases_nothing_expires_or_fails_and_all_is_checked_within_an_interval(
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
        beats = asyncio.create_task(_beat(server, names))

        process.signal(signal.SIGSTOP)
        await asyncio.sleep(16)  # three leases: time itself is what is tested
        resumed = time.monotonic()
        process.signal(signal.SIGCONT)

        await agents.wait_for_requests(probed, since=resumed)
        waited = max(agents.first_hits(resumed).values()) - resumed
        print(f"stood still: all {len(probed)} are checked again within {waited:.2f} s, interval {interval} s")
        assert waited <= interval + NOISE
        twice = [name for name, hits in agents.hits_between(resumed, resumed + interval).items() if hits > 2]
        assert not twice, "what was due often meanwhile is not caught up with"
        await process.logged("nobody swept for a while: all leases moved")
        assert not beats.done()
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)
        answer = await server.stub.Heartbeat(pb.HeartbeatRequest(names=agents.names))
        assert (answer.renewed_count, list(answer.unknown_names)) == (65, [])
        await subscriber.reached(await head(server))
        assert expected_at_first(subscriber.events)
        assert len([event for event in subscriber.events if event.type == REGISTERED]) == 65
        async with redis_client(redis) as client:
            documents = [f"ossa:services:{name}" for name in agents.names]

            async def all_there() -> bool:
                return await client.exists(*documents) == 65

            await eventually(all_there, "all documents are there again")


@pytest.mark.parametrize("stopped", ["all of it", "the registry", "what probes for it"])
async def test_stopped_while_probes_are_under_way_no_failure_counts(redis: RedisProcess, stopped: str) -> None:
    flags = ["--health-check.failure-threshold=1"]  # one that counted would show
    async with (
        Agents(delay=0.4) as agents,
        checkers(redis, 1, interval=1.5, flags=flags) as (process,),
        client_of(process) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, agents.services(60))
        await agents.wait_for_requests(times=2)  # the first come together, once what probes has started
        below = children_of(process.pid)
        pids = {"all of it": [process.pid, *below], "the registry": [process.pid], "what probes for it": below}[stopped]
        await under_way(agents, 5)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(1.6)  # longer than the timeout, 1.5 s, but not so long that an answer is clearly too late
        resumed = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await agents.wait_for_requests(since=resumed)
        await agents.wait_for_requests(since=time.monotonic())  # what would have counted has been told by then
        await subscriber.reached(await head(server))
        assert expected_at_first(subscriber.events)


async def test_what_probes_for_the_registry_is_killed_and_probing_goes_on_without_a_failure(
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
        await under_way(agents, 5)
        killed = time.monotonic()
        for pid in children_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        await agents.wait_for_requests(since=killed)
        print(f"probing goes on: all are checked {max(agents.first_hits(killed).values()) - killed:.2f} s after it")
        await agents.wait_for_requests(since=time.monotonic())
        await subscriber.reached(await head(server))
        assert expected_at_first(subscriber.events)


# A process, or a store, that starts over.


async def test_known_to_a_process_that_starts_each_is_checked_once_within_an_interval_spread_over_it(
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
            # What is due while the process that probes starts comes at once; the rest is to be spread.
            begun, end = min(firsts.values()), shared + interval
            assert max(firsts.values()) <= max(begun, end) + NOISE
            later = sum(at > begun + interval / 10 for at in firsts.values())
            expected = 200 * max(0.0, end - begun - interval / 10) / interval
            assert later >= expected / 2, f"{later} instead of {expected:.0f} of 200 were checked later: not spread"
            assert not _asked_twice(agents, started, interval, server)
            counters = server.parts.monitor.counters
            assert set(counters.outcomes) == {OutcomeKind.OK}, "no answer is lost on its way"


async def test_after_redis_was_emptied_those_who_register_again_are_checked_once_within_an_interval(
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
        assert not _asked_twice(agents, emptied, interval, server)

        async def all_healthy() -> bool:
            return (await server.stub.GetStats(pb.GetStatsRequest())).stats.healthy_services == 200

        await eventually(all_healthy, "all are healthy")


def _asked_twice(agents: Agents, since: float, interval: float, server: Server) -> list[str]:
    """Who was asked twice in an interval, unless this process stood still: then some are asked again at once."""
    if server.parts.monitor.process_pauses:
        return []
    return [
        name
        for name in agents.names
        for one, other in pairwise(agents.hits[name])
        if one >= since and other - one < interval / 2
    ]


async def has_share(server: Server, count: int) -> None:
    """Waits until a process checks so many services."""

    async def holds() -> bool:
        return server.parts.monitor.probed_services == count

    await eventually(holds, f"{count} services are checked")


async def head(server: Server) -> int:
    return (await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).revision


async def under_way(agents: Agents, count: int) -> None:
    """Waits until so many probes wait for their answer."""
    async with asyncio.timeout(TIMEOUT):
        while agents.in_flight < count:
            await asyncio.sleep(0.005)


async def _beat(server: Server, names: Sequence[str]) -> None:
    while True:
        with suppress(grpc.aio.AioRpcError):
            await server.stub.Heartbeat(pb.HeartbeatRequest(names=names))
        await asyncio.sleep(1)
