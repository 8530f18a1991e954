"""Statuses stay unchanged while failures may have their cause in the registry, its network or its load."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.service_pb2 import HealthCheck, HealthStatus, ServiceFilter
from tests.grpc.calls import (
    HEALTH_CHANGED,
    HEALTHY,
    REGISTERED,
    UNHEALTHY,
    UNKNOWN,
    eventually,
    find_names,
    get,
    health_of,
    register_all,
    watching,
)
from tests.support.agents import TIMEOUT, Agents, Behaviour
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running
from tests.support.watching import Subscriber, following

REGISTRY_ERROR = EventType.EVENT_TYPE_REGISTRY_ERROR


async def until(condition: Callable[[], bool], description: str) -> None:
    """Wait until a condition on local state holds."""

    async def holds_now() -> bool:
        return condition()

    await eventually(holds_now, description)


async def in_status(server: Server, status: HealthStatus.ValueType, names: Sequence[str]) -> None:
    """Wait until exactly these services have a status."""

    async def holds() -> bool:
        return await find_names(server, ServiceFilter(health=[status])) == sorted(names)

    await eventually(holds, f"exactly {len(names)} are {HealthStatus.Name(status)}")


async def connected(server: Server, *, wanted: bool) -> None:
    async def holds() -> bool:
        answer = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        return answer.store_connected == wanted

    await eventually(holds, f"connected to the store: {wanted}")


async def gauge(server: Server) -> str:
    """Return the value of the metric of self-preservation."""
    async with aiohttp.ClientSession() as client, client.get(f"{server.http}/metrics") as response:
        (value,) = re.findall(r"^ossa_registry_self_preservation_active (\S+)$", await response.text(), re.MULTILINE)
    return str(value)


async def seen(subscriber: Subscriber, server: Server) -> list[Event]:
    """Return all events so far."""
    await subscriber.reached((await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).revision)
    return subscriber.events


def status_changes(events: Sequence[Event]) -> dict[str, list[int]]:
    """Return the status changes of each service after its first status."""
    result: dict[str, list[int]] = {}
    for event in events:
        if event.type == HEALTH_CHANGED and event.previous_health != UNKNOWN:
            result.setdefault(event.service.name, []).append(event.service.health.status)
    return result


# The store is unavailable.


@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_failures_during_a_redis_outage_do_not_count(redis: RedisProcess, how: str) -> None:
    checks = {"interval_ms": 500, "failure_threshold": 3}
    async with (
        Agents() as agents,
        running(redis.url, redis={"timeout_ms": 1_000}, health_check=checks) as server,
        following(server.stub) as subscriber,
    ):
        ttl = Duration(seconds=5)
        await register_all(server, agents.services(8, "fine", ttl=ttl))
        await register_all(server, agents.services(4, "cut-off", ttl=ttl))
        await register_all(
            server, [agents.service("dead")]
        )  # a long lease, so that it becomes UNHEALTHY instead of expiring
        probed = agents.names
        fails = [name for name in probed if not name.startswith("fine")]
        await in_status(server, HEALTHY, probed)
        by_heartbeat = HealthCheck(heartbeat=HealthCheck.HeartbeatProbe())
        await register_all(server, [agents.service("beating", ttl=ttl, health_check=by_heartbeat)])

        if how == "killed":
            redis.kill()
        else:
            redis.pause()
        await connected(server, wanted=False)
        outage_start = time.monotonic()
        agents.set_behaviour(Behaviour.ERROR, fails)
        await agents.wait_for_requests(fails, since=outage_start, times=5)  # more than the threshold
        await asyncio.sleep(max(0.0, outage_start + 6 - time.monotonic()))  # longer than a lease; needs real time
        agents.set_behaviour(Behaviour.OK, [name for name in fails if name != "dead"])
        await agents.wait_for_requests(fails, since=time.monotonic())  # all failures happen before Redis is back
        back = time.monotonic()
        if how == "killed":
            await redis.restart()
        else:
            redis.resume()
        await connected(server, wanted=True)

        answer = await server.stub.Heartbeat(pb.HeartbeatRequest(names=["beating"]))
        assert answer.renewed_count == 1
        await in_status(server, UNHEALTHY, ["dead"])
        assert agents.hits_between(back, time.monotonic())["dead"] >= 3, "failures count again after the outage"
        await agents.wait_for_requests(probed, since=back, times=5)
        events = await seen(subscriber, server)
        assert status_changes(events) == {"dead": [UNHEALTHY]}
        assert {event.type for event in events} == {REGISTERED, HEALTH_CHANGED}, "no lease expired"
        answer = await server.stub.Heartbeat(pb.HeartbeatRequest(names=agents.names))
        assert list(answer.unknown_names) == []


async def test_failure_just_before_a_detected_hang_of_redis_does_not_count(
    redis: RedisProcess,
) -> None:
    # Only the failure is in flight to Redis when it hangs.
    checks = {"interval_ms": 1000, "failure_threshold": 1, "member_period_ms": 60_000}
    async with (
        Agents() as agents,
        running(redis.url, health_check=checks, lease={"sweep_interval_ms": 60_000}) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, [agents.service("agent")])
        await in_status(server, HEALTHY, ["agent"])
        await agents.wait_for_requests(since=time.monotonic())
        await asyncio.sleep(0.3)
        agents.set_behaviour(Behaviour.CLOSE)  # has the same cause as the hang of Redis
        redis.pause()
        await connected(server, wanted=False)
        agents.set_behaviour(Behaviour.OK)
        await agents.wait_for_requests(since=time.monotonic(), times=2)
        redis.resume()
        await connected(server, wanted=True)
        await agents.wait_for_requests(since=time.monotonic(), times=2)

        assert status_changes(await seen(subscriber, server)) == {}


async def test_probe_started_during_an_outage_does_not_count_if_it_fails(
    redis: RedisProcess,
) -> None:
    checks = {"interval_ms": 3000, "failure_threshold": 1}
    async with (
        Agents() as agents,
        running(redis.url, health_check=checks) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, agents.services(8))
        await in_status(server, HEALTHY, agents.names)
        redis.kill()
        await connected(server, wanted=False)
        agents.set_behaviour(Behaviour.HANG)
        outage_start = time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            while agents.in_flight < 4:
                await asyncio.sleep(0.02)
        agents.set_behaviour(Behaviour.OK)  # hanging requests keep hanging
        await redis.restart()
        await connected(server, wanted=True)
        await agents.wait_for_requests(since=outage_start, times=2)

        assert status_changes(await seen(subscriber, server)) == {}


# Many services fail at once.


class Fleet:
    """Services, half of which can be disconnected."""

    def __init__(self, stays: Agents, drops: Agents) -> None:
        self.stays, self.drops = stays, drops

    async def register(self, server: Server, count: int, **fields: Any) -> None:
        half = count // 2
        await register_all(server, self.stays.services(half, "stays", **fields))
        await register_all(server, self.drops.services(count - half, "drops", **fields))
        await in_status(server, HEALTHY, self.names)
        for agents in (self.stays, self.drops):
            await agents.wait_for_requests(since=time.monotonic())  # probed at least once while healthy

    @property
    def names(self) -> list[str]:
        return self.stays.names + self.drops.names


async def test_mass_failure_with_recovery_changes_no_status(redis: RedisProcess) -> None:
    unrelated = ServiceFilter(name_pattern="^of-another-team$")
    with capture_logs() as logs:
        async with (
            Agents() as stays,
            Agents() as drops,
            running(redis.url, health_check={"interval_ms": 1500}) as server,
            following(server.stub) as subscriber,
            watching(server, filter=unrelated) as bystander,
        ):
            fleet, monitor = Fleet(stays, drops), server.parts.monitor
            await fleet.register(server, 200, ttl=Duration(seconds=5))
            assert not monitor.self_preservation_active
            await drops.refuse()
            dropped = time.monotonic()

            event = await bystander.event()
            noticed = time.monotonic() - dropped
            assert (event.type, event.reason) == (REGISTRY_ERROR, EventReason.EVENT_REASON_HEALTH_CHECK)
            assert not event.HasField("service")
            assert "of 200 services fail their probes at once; statuses are frozen" in event.error
            assert monitor.self_preservation_active
            assert await gauge(server) == "1.0"
            (line,) = (line for line in logs if line["event"] == "self-preservation started")
            assert (line["log_level"], line["probed"]) == ("error", 200)
            assert line["failing"] >= 100
            await asyncio.sleep(max(0.0, dropped + 7 - time.monotonic()))  # longer than a lease
            assert monitor.self_preservation_active, "self-preservation continues during the failures"
            health = await health_of(server, drops.names[0])
            assert (health.health.status, health.health.error) == (HEALTHY, "connection refused"), (
                "the failure is recorded, the status is unchanged"
            )

            await drops.listen()
            recovered = time.monotonic()
            await until(lambda: not monitor.self_preservation_active, "self-preservation has ended")
            assert await gauge(server) == "0.0"
            ended = time.monotonic() - recovered
            print(f"self-preservation: started after {noticed:.2f} s, ended {ended:.2f} s after recovery")
            await drops.wait_for_requests(since=recovered, times=3)
            events = await seen(subscriber, server)
            assert [event.type for event in events].count(REGISTRY_ERROR) == 1
            assert {event.type for event in events} == {REGISTERED, HEALTH_CHANGED, REGISTRY_ERROR}, "no lease expired"
            assert status_changes(events) == {}
            assert await find_names(server, ServiceFilter(health=[HEALTHY])) == sorted(fleet.names)
            assert [line["event"] for line in logs].count("self-preservation ended") == 1


async def test_lasting_mass_failure_is_recorded_after_self_preservation(redis: RedisProcess) -> None:
    checks = {"interval_ms": 1500, "self_preservation_max_seconds": 3}
    async with (
        Agents() as stays,
        Agents() as drops,
        running(redis.url, health_check=checks) as server,
        following(server.stub) as subscriber,
    ):
        fleet, monitor = Fleet(stays, drops), server.parts.monitor
        await fleet.register(server, 200)
        drops.set_behaviour(Behaviour.ERROR, drops.names[::2])
        drops.set_behaviour(Behaviour.CLOSE, drops.names[1::2])
        await until(lambda: monitor.self_preservation_active, "self-preservation has started")
        started = time.monotonic()
        await until(lambda: not monitor.self_preservation_active, "self-preservation has ended")
        ended = time.monotonic() - started
        await in_status(server, UNHEALTHY, drops.names)
        print(
            f"self-preservation: ended after {ended:.2f} s, "
            f"all are unhealthy {time.monotonic() - started - ended:.2f} s later"
        )
        events = await seen(subscriber, server)
        assert status_changes(events) == {name: [UNHEALTHY] for name in drops.names}
        (error,) = (
            event for event in events if event.type == REGISTRY_ERROR
        )  # it does not start again for the same failures
        first = next(event for event in events if event.previous_health == HEALTHY)
        frozen = (first.occurred_at.ToNanoseconds() - error.occurred_at.ToNanoseconds()) / 1e9
        assert frozen >= 2.5, "no status changed before"
        assert not monitor.self_preservation_active
        errors = {(await get(server, name)).health.error for name in drops.names}
        assert errors == {"HTTP 500", "closed the connection without an answer"}

        drops.set_behaviour(Behaviour.OK)
        await in_status(server, HEALTHY, fleet.names)
        assert not monitor.self_preservation_active


@pytest.mark.parametrize(("count", "failing"), [(12, 9), (40, 15)], ids=["too few", "too small a share"])
async def test_small_number_of_failures_changes_statuses(redis: RedisProcess, count: int, failing: int) -> None:
    checks = {"interval_ms": 500, "failure_threshold": 3}
    async with (
        Agents() as agents,
        running(redis.url, health_check=checks) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, agents.services(count))
        await in_status(server, HEALTHY, agents.names)
        dead = agents.names[:failing]
        failed = time.monotonic()
        agents.set_behaviour(Behaviour.ERROR, dead)

        await in_status(server, UNHEALTHY, dead)
        assert min(agents.hits_between(failed, time.monotonic())[name] for name in dead) >= 3
        events = await seen(subscriber, server)
        assert status_changes(events) == {name: [UNHEALTHY] for name in dead}
        assert REGISTRY_ERROR not in {event.type for event in events}


async def test_share_of_failures_is_computed_over_a_new_fleet(redis: RedisProcess) -> None:
    checks = {"interval_ms": 2000, "failure_threshold": 2}
    async with (
        Agents() as agents,
        running(redis.url, health_check=checks) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, agents.services(60))
        await in_status(server, HEALTHY, agents.names)
        # A quarter of the services is not a mass failure.
        dead = sorted(sorted(agents.names, key=lambda name: agents.hits[name][0])[:15])
        agents.set_behaviour(Behaviour.ERROR, dead)

        await in_status(server, UNHEALTHY, dead)
        assert REGISTRY_ERROR not in {event.type for event in await seen(subscriber, server)}


# Many services hang.


async def test_hanging_services_only_delay_probes_of_others(redis: RedisProcess) -> None:
    concurrency, interval, timeout = 20, 1.0, 0.8
    checks = {"interval_ms": interval * 1000, "timeout_ms": timeout * 1000, "concurrency": concurrency}
    async with Agents() as agents, running(redis.url, health_check=checks) as server:
        await register_all(server, agents.services(20, "fine", ttl=Duration(seconds=15)))
        fine = agents.names
        await register_all(server, agents.services(60, "hanging"))
        hanging = [name for name in agents.names if name not in fine]
        agents.set_behaviour(Behaviour.HANG, hanging)
        await in_status(server, HEALTHY, fine)
        await in_status(server, UNHEALTHY, hanging)

        # A round takes 60 / 20 timeouts = 2.4 s, longer than the interval, so all probes are equally late.
        started = time.monotonic()
        counters, late = server.parts.monitor.counters, server.parts.monitor.counters.late
        latencies: list[float] = []
        on_demand: list[float] = []
        waiting = asyncio.create_task(agents.wait_for_requests(fine, since=started, times=3))
        async with asyncio.timeout(TIMEOUT):
            while not waiting.done():
                name = fine[len(latencies) % len(fine)]
                latencies.append(await _timed(get(server, name)))
                if len(latencies) % 20 == 0:
                    check = server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name))
                    on_demand.append(await _timed(check))
                await asyncio.sleep(0.01)
        await waiting
        gaps = [later - at for name in fine for at, later in pairwise(agents.hits[name]) if at >= started]
        latencies.sort()
        print(
            f"60 of 80 hang: others are probed at least every {max(gaps):.2f} s instead of {interval} s; GetService: "
            f"median {latencies[len(latencies) // 2] * 1000:.1f} ms, longest {latencies[-1] * 1000:.0f} ms"
        )
        assert agents.in_flight <= 2 * concurrency, "the limit, plus requests whose end the agents have not noticed"
        assert counters.late > late
        assert latencies[len(latencies) // 2] < 0.1
        assert sorted(on_demand)[len(on_demand) // 2] < timeout, "checks on demand do not queue"
        assert await find_names(server, ServiceFilter(health=[HEALTHY])) == fine

        agents.set_behaviour(Behaviour.OK)
        await in_status(server, HEALTHY, agents.names)


async def _timed(call: Any) -> float:
    started = time.monotonic()
    await call
    return time.monotonic() - started
