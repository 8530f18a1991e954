"""Registrations: kept alive, made again, ended well."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from registry_client import (
    HealthStatus,
    InvalidRequest,
    Registration,
    RegistrationState,
    RegistryClient,
    Service,
    ServiceNotFound,
    Unauthenticated,
    make_service,
)
from registry_client.leases import Lease
from registry_client.testing import RegistryProcess
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess
from tests.support.waiting import until

REGISTERED = RegistrationState.REGISTERED
AGENT = Path(__file__).with_name("sigterm_agent.py")


def agent(name: str = "agent", ttl: float = 6, **fields: str) -> Service:
    return make_service(name, f"http://{name}.test", version="1.0.0", health_check="heartbeat", ttl=ttl, **fields)  # type: ignore[arg-type]


def beat_now(registration: Registration) -> None:
    """Lets the heartbeat that would come within a third of the TTL come at once."""
    registration._lease.due = 0
    registration._leases._news.set()


async def test_a_service_is_there_for_as_long_as_the_block_lasts(client: RegistryClient) -> None:
    async with client.registration(agent()) as me:
        assert (me.name, me.state, me.error) == ("agent", REGISTERED, None)
        assert await client.get_service("agent") == me.service
        assert not me.removed
    with pytest.raises(ServiceNotFound):
        await client.get_service("agent")
    assert me.state is RegistrationState.ENDED
    assert me.removed


async def test_it_ends_well_when_the_block_fails(client: RegistryClient) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.registration(agent()):
            raise ZeroDivisionError
    with pytest.raises(ServiceNotFound):
        await client.get_service("agent")


async def test_the_lease_is_renewed_by_one_stream(client: RegistryClient) -> None:
    async with client.registration(agent("one")) as one, client.registration(agent("two")) as two:
        before = (await client.get_service_health("one"))[1]
        assert before is not None
        await asyncio.sleep(0.05)
        beat_now(one)
        beat_now(two)
        await until(lambda: one._lease.due > 0 < two._lease.due)
        after = (await client.get_service_health("one"))[1]
        assert after is not None
        assert after.ToNanoseconds() > before.ToNanoseconds()


@pytest.mark.parametrize(("ttl", "period"), [(6, 2), (300, 100), (0, 30)])
def test_beats_come_at_a_third_of_the_ttl(ttl: float, period: float) -> None:
    lease = Lease(agent(ttl=ttl))
    assert lease.period == period


async def test_a_registration_without_a_ttl_gets_one(client: RegistryClient) -> None:
    service = make_service("agent", "http://agent.test", version="1.0.0")
    async with client.registration(service) as me:
        assert me.service.ttl.seconds == 30
    assert not service.HasField("ttl")


async def test_replicas_have_unique_names_in_a_group(client: RegistryClient) -> None:
    async with client.registration(agent("team"), replicas=True) as one, client.registration(agent("team"), replicas=True) as two:  # fmt: skip  # noqa: E501
        assert one.name != two.name
        found = await client.find_services(group="team")
        assert {service.name for service in found} == {one.name, two.name}
    long = client.registration(agent("a" * 128), replicas=True)
    assert len(long.name) == 128


async def test_one_client_registers_a_name_once(client: RegistryClient) -> None:
    async with client.registration(agent()):
        with pytest.raises(ValueError, match="already"):
            async with client.registration(agent()):
                pass


async def test_a_bad_service_is_told_at_once(client: RegistryClient) -> None:
    with pytest.raises(InvalidRequest):
        async with client.registration(Service(name="no spaces")):
            pass


async def test_what_is_forgotten_is_registered_again_with_its_status(client: RegistryClient) -> None:
    async with client.registration(agent()) as me:
        await me.report("degraded", error="slow")
        await client.unregister_service("agent")
        beat_now(me)
        await until(lambda: me.service.revision > 0 and me.state is REGISTERED and me._lease.due > 0)
        service = await client.get_service("agent")
        assert (service.health.status, service.health.error) == (HealthStatus.HEALTH_STATUS_DEGRADED, "slow")


async def test_new_content_is_kept(client: RegistryClient) -> None:
    async with client.registration(agent("team"), replicas=True) as me:
        updated = await me.update(make_service("ignored", "http://new.test", version="2.0.0"))
        assert (updated.name, updated.group, updated.version) == (me.name, "team", "2.0.0")
        await client.unregister_service(me.name)
        beat_now(me)
        await until(lambda: me._lease.due > 0 and me.state is REGISTERED)
        assert (await client.get_service(me.name)).version == "2.0.0"


async def test_it_survives_the_registry_and_tells_of_it(registry: RegistryProcess, client: RegistryClient) -> None:
    async with client.registration(agent()) as me:
        states: list[RegistrationState] = []
        me.on_change(states.append)
        registry.kill()
        await until(lambda: me.state is RegistrationState.AWAY)
        assert me.error is not None
        await asyncio.to_thread(registry.start)
        await until(lambda: me.state is REGISTERED)
        assert states == [RegistrationState.AWAY, REGISTERED]
        assert (await client.get_service("agent")).revision == me.service.revision


async def test_it_survives_a_redis_that_is_emptied_and_restarted(redis: RedisProcess) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}", "--redis.repair=false") as process,
        RegistryClient(process.grpc_address, timeout=30) as client,
        client.registration(agent()) as me,
    ):
        async with Redis.from_url(redis.url) as admin:
            await admin.flushall()
        await redis.restart()
        await process.logged("resynchronised with the store")
        async with asyncio.timeout(60):
            while True:
                found = await client.find_services()
                if [service.name for service in found] == ["agent"]:
                    break
                await asyncio.sleep(0.05)
        await until(lambda: me.state is REGISTERED)


async def test_it_can_begin_before_the_registry(registry: RegistryProcess, client: RegistryClient) -> None:
    registry.stop()
    async with client.registration(agent(), wait=False) as me:
        assert me.state is RegistrationState.PENDING
        await asyncio.to_thread(registry.start)
        await until(lambda: me.state is REGISTERED)
        assert (await client.get_service("agent")).name == "agent"


async def test_a_refusal_in_the_background_is_a_state(client: RegistryClient) -> None:
    async with client.registration(make_service("agent", "nowhere", version="1"), wait=False) as me:
        await until(lambda: me.state is RegistrationState.REFUSED)
        assert isinstance(me.error, InvalidRequest)


async def test_it_is_put_in_maintenance_before_it_goes(client: RegistryClient) -> None:
    async with client.cache() as cache:
        async with client.registration(agent(), drain=0.2):
            await until(lambda: "agent" in cache)
            statuses: list[int] = []
            cache.on_change(lambda event: statuses.append(event.service.health.status))
        await until(lambda: "agent" not in cache)
    assert statuses == [HealthStatus.HEALTH_STATUS_MAINTENANCE, HealthStatus.HEALTH_STATUS_MAINTENANCE]


async def test_a_name_that_the_next_process_has_taken_is_left_to_it(registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target) as old, RegistryClient(registry.target) as new:
        leaving = old.registration(agent())
        await leaving.__aenter__()
        successor = make_service("agent", "http://successor.test", version="2.0.0", health_check="heartbeat")
        async with new.registration(successor):
            await leaving.__aexit__(None, None, None)
            assert leaving.removed
            service = await new.get_service("agent")
            assert (service.version, service.health.status) == ("2.0.0", HealthStatus.HEALTH_STATUS_HEALTHY)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("the agent is leaving", HealthStatus.HEALTH_STATUS_HEALTHY),
        ("an operator looks at it", HealthStatus.HEALTH_STATUS_MAINTENANCE),
    ],
)
async def test_who_comes_back_after_leaving_is_healthy_and_an_operators_maintenance_stays(
    words: str, status: HealthStatus.ValueType, client: RegistryClient
) -> None:
    await client.register_service(agent())
    await client.report_service_health("agent", "maintenance", error=words)
    async with client.registration(agent()) as me:
        assert me.service.health.status == status
        assert (await client.get_service("agent")).health.status == status


async def test_the_next_registry_takes_over(redis: RedisProcess) -> None:
    url = f"--redis.url={redis.url}"
    async with (
        ServerProcess(url, "--shutdown.grace-seconds=2") as one,
        ServerProcess(url) as other,
        RegistryClient([one.grpc_address, other.grpc_address], timeout=30) as client,
        client.registration(agent()) as me,
        client.cache() as cache,
    ):
        assert client.target == one.grpc_address
        await one.stop()
        await until(lambda: client.target == other.grpc_address and me.state is REGISTERED and cache.connected)
        await client.register_service(agent("late"))
        await until(lambda: "late" in cache)
        assert me.service.revision == (await client.get_service("agent")).revision


async def test_leaving_while_the_registry_is_away_raises_nothing(registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target, timeout=0.3) as client, client.registration(agent()) as me:
        registry.kill()
    assert not me.removed


async def test_fifty_registrations_are_one_stream(client: RegistryClient) -> None:
    async with asyncio.TaskGroup() as group, asyncio.timeout(60):
        done = asyncio.Event()

        async def one(i: int) -> None:
            async with client.registration(agent(f"agent-{i}")):
                await done.wait()

        for i in range(50):
            group.create_task(one(i))
        while len(await client.find_services()) < 50:
            await asyncio.sleep(0.02)
        assert len([task for task in asyncio.all_tasks() if task.get_name() == "registry leases"]) == 1
        done.set()
    assert await client.find_services() == []
    assert client._leases._task is None


@pytest.mark.parametrize("mode", ["one", "nested", "tasks"])
async def test_sigterm_ends_the_block_and_the_program_goes_on(
    mode: str, registry: RegistryProcess, client: RegistryClient
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(AGENT), registry.target, mode, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"ready\n"
        assert await client.find_services() != []
        process.send_signal(signal.SIGTERM)
        out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"went on True\n")
    assert await client.find_services() == []


async def test_sigterm_is_left_to_a_program_that_handles_it(client: RegistryClient) -> None:
    loop = asyncio.get_running_loop()
    got = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, got.set)
    try:
        async with client.registration(agent()) as me:
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(30):
                await got.wait()
        assert not me.terminated
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_the_handler_of_sigterm_is_restored(client: RegistryClient) -> None:
    async with client.registration(agent()):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    async with client.registration(agent(), sigterm=False):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_one_that_comes_as_the_last_one_goes_is_kept(client: RegistryClient) -> None:
    async def one(i: int) -> None:
        async with client.registration(agent(f"agent-{i}")) as me:
            await asyncio.sleep(0.002 * i)
            beat_now(me)
            await until(lambda: me._lease.due > 0)
            assert me.state is REGISTERED

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for i in range(30):
            group.create_task(one(i))
            await asyncio.sleep(0.005)
    assert await client.find_services() == []


async def test_that_it_is_let_in_by_nobody_is_told_and_tried_on(registry: RegistryProcess) -> None:
    tokens: list[str] = []
    states: list[RegistrationState] = []
    async with (
        RegistryClient(registry.target, token=lambda: tokens[0]) as client,
        client.registration(agent(), wait=False) as registration,
    ):
        registration.on_change(states.append)
        await until(lambda: registration.state is RegistrationState.REFUSED)
        assert isinstance(registration.error, Unauthenticated)
        tokens.append("one")
        await until(lambda: registration.state is REGISTERED)
        assert states == [RegistrationState.REFUSED, REGISTERED]
