"""When the registry itself may be at fault, or is overrun, its probes must not tell lies about services."""

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
    found,
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


async def until(holds: Callable[[], bool], what: str) -> None:
    """Waits until something holds that this process can see."""

    async def holds_now() -> bool:
        return holds()

    await eventually(holds_now, what)


async def in_status(server: Server, status: HealthStatus.ValueType, names: Sequence[str]) -> None:
    """Waits until just these services have a status."""

    async def holds() -> bool:
        return await found(server, ServiceFilter(health=[status])) == sorted(names)

    await eventually(holds, f"just {len(names)} are {HealthStatus.Name(status)}")


async def connected(server: Server, *, wanted: bool) -> None:
    async def holds() -> bool:
        answer = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        return answer.store_connected == wanted

    await eventually(holds, f"connected to the store: {wanted}")


async def gauge(server: Server) -> str:
    """What a Prometheus reads of the protection."""
    async with aiohttp.ClientSession() as client, client.get(f"{server.http}/metrics") as response:
        (value,) = re.findall(r"^ossa_registry_self_preservation_active (\S+)$", await response.text(), re.MULTILINE)
    return str(value)


async def seen(subscriber: Subscriber, server: Server) -> list[Event]:
    """All events so far."""
    await subscriber.reached((await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).revision)
    return subscriber.events


def turned(events: Sequence[Event]) -> dict[str, list[int]]:
    """By service, the statuses that it took after its first."""
    result: dict[str, list[int]] = {}
    for event in events:
        if event.type == HEALTH_CHANGED and event.previous_health != UNKNOWN:
            result.setdefault(event.service.name, []).append(event.service.health.status)
    return result


# The store is away.


@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_what_probes_find_while_redis_is_away_proves_nothing(redis: RedisProcess, how: str) -> None:
    checks = {"interval_ms": 500, "failure_threshold": 3}
    async with (
        Agents() as agents,
        running(redis.url, redis={"timeout_ms": 300}, health_check=checks) as server,
        following(server.stub) as subscriber,
    ):
        ttl = Duration(seconds=5)
        await register_all(server, agents.services(8, "fine", ttl=ttl))
        await register_all(server, agents.services(4, "cut-off", ttl=ttl))
        await register_all(server, [agents.service("dead")])  # not of a short lease: it is to be seen that it is down
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
        away = time.monotonic()
        agents.set_behaviour(Behaviour.ERROR, fails)
        await agents.wait_for_requests(fails, since=away, times=5)  # more than the threshold
        await asyncio.sleep(max(0.0, away + 6 - time.monotonic()))  # longer than a lease: time is what is tested
        agents.set_behaviour(Behaviour.OK, [name for name in fails if name != "dead"])
        await agents.wait_for_requests(fails, since=time.monotonic())  # what failed has failed before Redis is back
        back = time.monotonic()
        if how == "killed":
            await redis.restart()
        else:
            redis.resume()
        await connected(server, wanted=True)

        answer = await server.stub.Heartbeat(pb.HeartbeatRequest(names=["beating"]))
        assert answer.renewed_count == 1
        await in_status(server, UNHEALTHY, ["dead"])
        assert agents.hits_between(back, time.monotonic())["dead"] >= 3, "its failures count from here on"
        await agents.wait_for_requests(probed, since=back, times=5)
        events = await seen(subscriber, server)
        assert turned(events) == {"dead": [UNHEALTHY]}
        assert {event.type for event in events} == {REGISTERED, HEALTH_CHANGED}, "no lease ran out, nothing else"
        answer = await server.stub.Heartbeat(pb.HeartbeatRequest(names=agents.names))
        assert list(answer.unknown_names) == []


async def test_a_failure_before_it_is_noticed_that_redis_hangs_does_not_count_when_redis_goes_on(
    redis: RedisProcess,
) -> None:
    # Nothing but the failure is on its way to Redis when that hangs.
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
        agents.set_behaviour(Behaviour.CLOSE)  # by the same fault of the network
        redis.pause()
        await connected(server, wanted=False)
        agents.set_behaviour(Behaviour.OK)
        await agents.wait_for_requests(since=time.monotonic(), times=2)
        redis.resume()
        await connected(server, wanted=True)
        await agents.wait_for_requests(since=time.monotonic(), times=2)

        assert turned(await seen(subscriber, server)) == {}


async def test_a_probe_that_was_under_way_while_redis_was_away_does_not_count_when_it_fails_later(
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
        away = time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            while agents.in_flight < 4:
                await asyncio.sleep(0.02)
        agents.set_behaviour(Behaviour.OK)  # those that hang go on to hang
        await redis.restart()
        await connected(server, wanted=True)
        await agents.wait_for_requests(since=away, times=2)

        assert turned(await seen(subscriber, server)) == {}


# Many fail at once.


class Fleet:
    """Services of which half can be cut off, and what a watcher is told that wants to know of none of them."""

    def __init__(self, stays: Agents, drops: Agents) -> None:
        self.stays, self.drops = stays, drops

    async def register(self, server: Server, count: int, **fields: Any) -> None:
        half = count // 2
        await register_all(server, self.stays.services(half, "stays", **fields))
        await register_all(server, self.drops.services(count - half, "drops", **fields))
        await in_status(server, HEALTHY, self.names)
        for agents in (self.stays, self.drops):
            await agents.wait_for_requests(
                since=time.monotonic()
            )  # what was up before a check counts as a service that is up

    @property
    def names(self) -> list[str]:
        return self.stays.names + self.drops.names


async def test_half_of_200_that_drop_at_once_and_recover_never_change(redis: RedisProcess) -> None:
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

            told = await bystander.event()
            noticed = time.monotonic() - dropped
            assert (told.type, told.reason) == (REGISTRY_ERROR, EventReason.EVENT_REASON_HEALTH_CHECK)
            assert not told.HasField("service")
            assert "of 200 services fail their probes at once; their statuses are frozen" in told.error
            assert monitor.self_preservation_active
            assert await gauge(server) == "1.0"
            (line,) = (line for line in logs if line["event"] == "protection began: statuses are frozen")
            assert (line["log_level"], line["of"]) == ("error", 200)
            assert line["failing"] >= 100
            await asyncio.sleep(max(0.0, dropped + 7 - time.monotonic()))  # longer than a lease
            assert monitor.self_preservation_active, "it goes on while they fail"
            health = await health_of(server, drops.names[0])
            assert (health.health.status, health.health.error) == (HEALTHY, "connection refused"), "seen, not believed"

            await drops.listen()
            recovered = time.monotonic()
            await until(lambda: not monitor.self_preservation_active, "protection has ended")
            assert await gauge(server) == "0.0"
            print(f"protection: began after {noticed:.2f} s, ended {time.monotonic() - recovered:.2f} s after recovery")
            await drops.wait_for_requests(since=recovered, times=3)
            events = await seen(subscriber, server)
            assert [event.type for event in events].count(REGISTRY_ERROR) == 1
            assert {event.type for event in events} == {REGISTERED, HEALTH_CHANGED, REGISTRY_ERROR}, "none expired"
            assert turned(events) == {}
            assert await found(server, ServiceFilter(health=[HEALTHY])) == sorted(fleet.names)
            assert [line["event"] for line in logs].count("protection ended") == 1


async def test_half_of_200_that_stay_away_are_unhealthy_after_the_time_of_protection(redis: RedisProcess) -> None:
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
        await until(lambda: monitor.self_preservation_active, "protection has begun")
        began = time.monotonic()
        await until(lambda: not monitor.self_preservation_active, "protection has ended")
        ended = time.monotonic() - began
        await in_status(server, UNHEALTHY, drops.names)
        print(
            f"protection: ended after {ended:.2f} s, all are unhealthy {time.monotonic() - began - ended:.2f} s later"
        )
        events = await seen(subscriber, server)
        assert turned(events) == {name: [UNHEALTHY] for name in drops.names}
        (told,) = (event for event in events if event.type == REGISTRY_ERROR)  # it does not begin again for the same
        first = next(event for event in events if event.previous_health == HEALTHY)
        frozen = (first.occurred_at.ToNanoseconds() - told.occurred_at.ToNanoseconds()) / 1e9
        assert frozen >= 2.5, "no status changed before"
        assert not monitor.self_preservation_active
        errors = {(await get(server, name)).health.error for name in drops.names}
        assert errors == {"HTTP 500", "closed the connection without an answer"}

        drops.set_behaviour(Behaviour.OK)
        await in_status(server, HEALTHY, fleet.names)
        assert not monitor.self_preservation_active


@pytest.mark.parametrize(("count", "failing"), [(12, 9), (40, 15)], ids=["too few", "too small a share"])
async def test_a_few_that_fail_are_believed(redis: RedisProcess, count: int, failing: int) -> None:
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
        assert turned(events) == {name: [UNHEALTHY] for name in dead}
        assert REGISTRY_ERROR not in {event.type for event in events}


async def test_a_fleet_that_has_just_come_up_is_counted_as_a_whole(redis: RedisProcess) -> None:
    checks = {"interval_ms": 2000, "failure_threshold": 2}
    async with (
        Agents() as agents,
        running(redis.url, health_check=checks) as server,
        following(server.stub) as subscriber,
    ):
        await register_all(server, agents.services(60))
        await in_status(server, HEALTHY, agents.names)
        dead = sorted(sorted(agents.names, key=lambda name: agents.hits[name][0])[:15])  # a quarter: no mass failure
        agents.set_behaviour(Behaviour.ERROR, dead)

        await in_status(server, UNHEALTHY, dead)
        assert REGISTRY_ERROR not in {event.type for event in await seen(subscriber, server)}


# Many hang.


async def test_a_mass_that_hangs_delays_the_others_and_does_not_silence_them(redis: RedisProcess) -> None:
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

        # Each round of all of them takes 60 / 20 timeouts = 2.4 s, longer than the interval: everyone is late alike.
        overrun = time.monotonic()
        counters, late = server.parts.monitor.counters, server.parts.monitor.counters.late
        answered: list[float] = []
        on_demand: list[float] = []
        asking = asyncio.create_task(agents.wait_for_requests(fine, since=overrun, times=3))
        async with asyncio.timeout(TIMEOUT):
            while not asking.done():
                name = fine[len(answered) % len(fine)]
                answered.append(await _timed(get(server, name)))
                if len(answered) % 20 == 0:
                    check = server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name))
                    on_demand.append(await _timed(check))
                await asyncio.sleep(0.01)
        await asking
        gaps = [later - at for name in fine for at, later in pairwise(agents.hits[name]) if at >= overrun]
        answered.sort()
        print(
            f"60 of 80 hang: others are asked after {max(gaps):.2f} s at the latest, not {interval} s; GetService: "
            f"median {answered[len(answered) // 2] * 1000:.1f} ms, longest {answered[-1] * 1000:.0f} ms"
        )
        assert agents.in_flight <= 2 * concurrency, "the bound, and those that the agents do not know yet to have ended"
        assert counters.late > late
        assert answered[len(answered) // 2] < 0.1
        assert sorted(on_demand)[len(on_demand) // 2] < timeout, "who asks for a check does not queue"
        assert await found(server, ServiceFilter(health=[HEALTHY])) == fine

        agents.set_behaviour(Behaviour.OK)
        await in_status(server, HEALTHY, agents.names)


async def _timed(call: Any) -> float:
    began = time.monotonic()
    await call
    return time.monotonic() - began
