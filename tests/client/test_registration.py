"""``Registration``: lease renewal, re-registration, and unregistration."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from registry_client import (
    HealthStatus,
    InstanceSuperseded,
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


def trigger_heartbeat(registration: Registration) -> None:
    """Send the next heartbeat now instead of after up to a third of the TTL."""
    registration._lease.due = 0
    registration._leases._wake.set()


async def test_service_is_registered_for_the_duration_of_the_block(client: RegistryClient) -> None:
    async with client.registration(agent()) as me:
        assert (me.name, me.state, me.error) == ("agent", REGISTERED, None)
        assert await client.get_service("agent") == me.service
        assert not me.removed
    with pytest.raises(ServiceNotFound):
        await client.get_service("agent")
    assert me.state is RegistrationState.ENDED
    assert me.removed


async def test_service_is_unregistered_when_the_block_raises(client: RegistryClient) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.registration(agent()):
            raise ZeroDivisionError
    with pytest.raises(ServiceNotFound):
        await client.get_service("agent")


async def test_lease_is_renewed_by_heartbeats(client: RegistryClient) -> None:
    async with client.registration(agent("one")) as one, client.registration(agent("two")) as two:
        before = (await client.get_service_health("one"))[1]
        assert before is not None
        await asyncio.sleep(0.05)
        trigger_heartbeat(one)
        trigger_heartbeat(two)
        await until(lambda: one._lease.due > 0 < two._lease.due)
        after = (await client.get_service_health("one"))[1]
        assert after is not None
        assert after.ToNanoseconds() > before.ToNanoseconds()


@pytest.mark.parametrize(("ttl", "interval"), [(6, 2), (300, 100), (0, 30)])
def test_heartbeat_interval_is_a_third_of_the_ttl(ttl: float, interval: float) -> None:
    lease = Lease(agent(ttl=ttl))
    assert lease.heartbeat_interval == interval


async def test_registration_without_ttl_gets_the_default(client: RegistryClient) -> None:
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


async def test_invalid_service_raises_on_entry(client: RegistryClient) -> None:
    with pytest.raises(InvalidRequest):
        async with client.registration(Service(name="no spaces")):
            pass


async def test_lost_service_is_registered_again_with_its_status(client: RegistryClient) -> None:
    async with client.registration(agent()) as me:
        await me.report("degraded", error="slow")
        lost = me.service.revision
        await client.unregister_service("agent")
        trigger_heartbeat(me)
        await until(lambda: me.service.revision > lost and me.state is REGISTERED)
        service = await client.get_service("agent")
        assert (service.health.status, service.health.error) == (HealthStatus.HEALTH_STATUS_DEGRADED, "slow")


async def test_updated_content_is_used_for_re_registration(client: RegistryClient) -> None:
    async with client.registration(agent("team"), replicas=True) as me:
        updated = await me.update(make_service("ignored", "http://new.test", version="2.0.0"))
        assert (updated.name, updated.group, updated.version) == (me.name, "team", "2.0.0")
        await client.unregister_service(me.name)
        trigger_heartbeat(me)
        await until(lambda: me.service.revision > updated.revision)  # registered again
        assert (await client.get_service(me.name)).version == "2.0.0"


async def test_registration_survives_a_registry_restart_and_reports_states(
    registry: RegistryProcess, client: RegistryClient
) -> None:
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


@pytest.mark.own_redis
async def test_service_is_registered_again_after_redis_was_flushed(redis: RedisProcess) -> None:
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


async def test_agent_may_start_before_the_registry(registry: RegistryProcess, client: RegistryClient) -> None:
    registry.stop()
    async with client.registration(agent(), wait=False) as me:
        assert me.state is RegistrationState.PENDING
        await asyncio.to_thread(registry.start)
        await until(lambda: me.state is REGISTERED)
        assert (await client.get_service("agent")).name == "agent"


async def test_rejection_in_the_background_is_a_state(client: RegistryClient) -> None:
    async with client.registration(make_service("agent", "nowhere", version="1"), wait=False) as me:
        await until(lambda: me.state is RegistrationState.REFUSED)
        assert isinstance(me.error, InvalidRequest)


async def test_service_drains_before_it_is_unregistered(client: RegistryClient) -> None:
    async with client.cache() as cache:
        async with client.registration(agent(), drain=0.2):
            await until(lambda: "agent" in cache)
            assert cache.resolve().name == "agent"
            draining: list[bool] = []
            cache.on_change(lambda event: draining.append(event.service.draining))
        await until(lambda: "agent" not in cache)
    assert draining == [True, True]


async def test_successor_makes_the_registration_superseded(registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target) as old, RegistryClient(registry.target) as new:
        states: list[RegistrationState] = []
        async with old.registration(agent()) as leaving:
            leaving.on_change(states.append)
            successor = make_service("agent", "http://successor.test", version="2.0.0", health_check="heartbeat")
            async with new.registration(successor) as successor_registration:
                trigger_heartbeat(leaving)
                await until(lambda: leaving.state is RegistrationState.SUPERSEDED)
                assert isinstance(leaving.error, InstanceSuperseded)
                assert await new.get_service("agent") == successor_registration.service
        assert (leaving.state, leaving.removed) == (RegistrationState.SUPERSEDED, True)
        assert states == [RegistrationState.SUPERSEDED]


@pytest.mark.parametrize("leave", [True, False], ids=["leaves", "works"])
async def test_superseded_instance_changes_nothing(leave: object, registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target) as old, RegistryClient(registry.target) as new:
        superseded = old.registration(agent())
        await superseded.__aenter__()
        async with new.registration(make_service("agent", "http://x.test", version="2", health_check="heartbeat")):
            before = await new.get_service("agent")
            if not leave:  # it has not learned that it is superseded
                with pytest.raises(InstanceSuperseded):
                    await superseded.report("degraded")
                assert superseded.state is RegistrationState.SUPERSEDED
                with pytest.raises(InstanceSuperseded):
                    await superseded.update(agent())
            await superseded.__aexit__(None, None, None)
            assert superseded.removed
            assert await new.get_service("agent") == before


async def test_update_does_not_take_the_name_back(registry: RegistryProcess) -> None:
    async with (
        RegistryClient(registry.target) as old,
        RegistryClient(registry.target) as new,
        old.registration(agent()) as superseded,
        new.registration(agent()) as me,
    ):
        with pytest.raises(InstanceSuperseded, match="another process"):
            await superseded.update(agent())
        assert (await new.get_service("agent")).instance_id == me.service.instance_id


async def test_second_registration_of_a_name_does_not_take_it_over(client: RegistryClient) -> None:
    async with client.registration(agent()) as me:
        with pytest.raises(ValueError, match="already"):
            async with client.registration(agent()):
                pass
        assert (await client.get_service("agent")).instance_id == me.service.instance_id


async def test_drain_lasts_as_long_as_requested_without_registry(registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target, timeout=0.3) as client:
        registration = client.registration(agent(), drain=1.0)
        await registration.__aenter__()
        registry.kill()
        started = asyncio.get_running_loop().time()
        await registration.__aexit__(None, None, None)
        assert asyncio.get_running_loop().time() - started >= 1.0


async def test_service_removed_during_its_drain_is_not_registered_again(client: RegistryClient) -> None:
    registration = client.registration(agent(), drain=1.0)
    await registration.__aenter__()
    leaving = asyncio.create_task(registration.__aexit__(None, None, None))
    async with asyncio.timeout(30):
        while not (await client.get_service("agent")).draining:
            await asyncio.sleep(0.01)
    await client.unregister_service("agent")
    trigger_heartbeat(registration)
    await leaving
    assert registration.removed
    with pytest.raises(ServiceNotFound):
        await client.get_service("agent")


async def test_lost_service_that_drains_is_not_registered_again(client: RegistryClient) -> None:
    registration = client.registration(agent(), drain=1.0)
    await registration.__aenter__()
    await client.unregister_service("agent")
    leaving = asyncio.create_task(registration.__aexit__(None, None, None))
    while not leaving.done():
        trigger_heartbeat(registration)
        with pytest.raises(ServiceNotFound):
            await client.get_service("agent")
        await asyncio.sleep(0.05)
    assert registration.removed


async def test_agent_that_drains_before_its_registry_starts_is_not_registered(
    registry: RegistryProcess, client: RegistryClient
) -> None:
    registry.stop()
    async with client.registration(agent(), wait=False) as registration:
        await registration.start_draining()
        await asyncio.to_thread(registry.start)
        await asyncio.sleep(1)
        assert await client.find_services() == []
    assert not registration.removed


async def test_given_instance_id_is_kept(client: RegistryClient) -> None:
    service = agent()
    service.instance_id = "pod-7f8"
    async with client.registration(service) as me:
        assert me.service.instance_id == "pod-7f8"


async def test_registration_and_cache_fail_over_to_the_next_target(redis: RedisProcess) -> None:
    url = f"--redis.url={redis.url}"
    async with (
        ServerProcess(url, "--shutdown.grace-seconds=2") as first,
        ServerProcess(url) as second,
        RegistryClient([first.grpc_address, second.grpc_address], timeout=30) as client,
        client.registration(agent()) as me,
        client.cache() as cache,
    ):
        assert client.target == first.grpc_address
        await first.stop()
        await until(lambda: client.target == second.grpc_address and me.state is REGISTERED and cache.connected)
        await client.register_service(agent("late"))
        await until(lambda: "late" in cache)
        assert me.service.revision == (await client.get_service("agent")).revision


async def test_leaving_without_registry_raises_nothing(registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target, timeout=0.3) as client, client.registration(agent()) as me:
        registry.kill()
    assert not me.removed


async def test_fifty_registrations_share_one_stream(client: RegistryClient) -> None:
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
async def test_sigterm_ends_the_block_and_the_program_continues(
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
    assert (process.returncode, out) == (0, b"continued True\n")
    assert await client.find_services() == []


async def test_existing_sigterm_handler_is_kept(client: RegistryClient) -> None:
    loop = asyncio.get_running_loop()
    received = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, received.set)
    try:
        async with client.registration(agent()) as me:
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(30):
                await received.wait()
        assert not me.terminated
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_sigterm_handler_is_removed_after_the_block(client: RegistryClient) -> None:
    async with client.registration(agent()):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    async with client.registration(agent(), sigterm=False):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_lease_added_while_the_last_one_is_removed_is_renewed(client: RegistryClient) -> None:
    async def one(i: int) -> None:
        async with client.registration(agent(f"agent-{i}")) as me:
            await asyncio.sleep(0.002 * i)
            trigger_heartbeat(me)
            await until(lambda: me._lease.due > 0)
            assert me.state is REGISTERED

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for i in range(30):
            group.create_task(one(i))
            await asyncio.sleep(0.005)
    assert await client.find_services() == []


async def test_missing_token_is_a_refusal_and_retried(registry: RegistryProcess) -> None:
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


# Load.


async def load_of(client: RegistryClient, name: str = "agent") -> tuple[int, int] | None:
    answer = await client.get_service_health_details(name)
    return (answer.load.in_flight, answer.load.capacity) if answer.HasField("load") else None


async def until_load(client: RegistryClient, registration: Registration, expected: tuple[int, int]) -> None:
    trigger_heartbeat(registration)
    async with asyncio.timeout(30):
        while await load_of(client) != expected:
            await asyncio.sleep(0.01)


async def test_heartbeats_report_the_work_in_flight(client: RegistryClient) -> None:
    async with client.registration(agent(), capacity=4) as me:
        await until_load(client, me, (0, 4))
        async with me.work(), me.work():
            assert me.in_flight == 2
            await until_load(client, me, (2, 4))
        with pytest.raises(ZeroDivisionError):
            async with me.work():
                raise ZeroDivisionError
        await until_load(client, me, (0, 4))


async def test_leaving_agent_finishes_its_work_while_it_drains(client: RegistryClient) -> None:
    registration = client.registration(agent())
    events: list[str] = []
    finish = asyncio.Event()

    async def serve() -> None:
        async with registration.work():
            await finish.wait()
        events.append("finished")

    async def leave() -> None:
        async with registration:
            pass
        events.append("left")

    working = asyncio.create_task(serve())
    leaving = asyncio.create_task(leave())
    await until(lambda: registration.state is REGISTERED)
    await until_load(client, registration, (1, 0))
    assert (await client.get_service("agent")).draining
    assert events == []
    finish.set()
    await asyncio.gather(working, leaving)
    assert events == ["finished", "left"]
    assert registration.removed


async def test_work_that_does_not_end_delays_leaving_up_to_a_deadline(client: RegistryClient) -> None:
    registration = client.registration(agent(), finish=0.05)
    async with registration.work():
        async with registration:
            pass
        assert registration.in_flight == 1
        assert registration.removed
        with pytest.raises(ServiceNotFound):
            await client.get_service("agent")
