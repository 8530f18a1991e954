"""``ServiceCache``: follows the registry, and remains usable while the registry is unavailable."""

import asyncio
import logging
import math
import threading

import pytest

from registry_client import (
    Event,
    EventType,
    HealthStatus,
    InvalidRequest,
    NoEndpoint,
    NoEndpointInTime,
    Policy,
    RegistryClient,
    RegistryUnavailable,
    Service,
    ServiceCache,
    make_service,
)
from registry_client.errors import DeadlineExceeded
from registry_client.testing import RegistryProcess
from tests.support.manual_clock import ManualClock
from tests.support.waiting import until


def agent(name: str, capability: str = "x@1.0.0", **fields: str) -> Service:
    return make_service(
        name,
        f"http://{name}.test",
        version="1.0.0",
        capabilities=[capability],
        health_check="heartbeat",
        **fields,  # type: ignore[arg-type]
    )


def names(cache: ServiceCache) -> set[str]:
    return set(cache.services)


async def test_cache_holds_services_and_follows_changes(client: RegistryClient) -> None:
    await client.register_service(agent("one"))
    async with client.cache() as cache:
        assert cache.ready
        assert cache.connected
        assert cache.last_error is None
        assert (names(cache), len(cache), "one" in cache) == ({"one"}, 1, True)

        waiting = asyncio.create_task(cache.changed())
        await asyncio.sleep(0)
        assert not waiting.done()
        await client.register_service(agent("two"))
        await waiting
        assert "two" in cache
        await client.unregister_service("one")
        await until(lambda: "one" not in cache)
        assert cache.get("one") is None
        assert cache.get("two") == await client.get_service("two")


async def test_resolve_reflects_every_change(client: RegistryClient) -> None:
    async with client.cache() as cache:
        with pytest.raises(NoEndpoint, match="no service matches capability=x"):
            cache.resolve("x")

        await client.register_service(agent("one"))
        await until(lambda: cache.find("x"))
        assert cache.resolve("x").name == "one"
        assert cache.resolve("x", version="^1", labels={}).name == "one"
        with pytest.raises(NoEndpoint):
            cache.resolve("x", version="^2")

        await client.report_service_health("one", "unhealthy")
        await until(lambda: cache.services["one"].health.status == 2)
        with pytest.raises(NoEndpoint, match="1 unhealthy"):
            cache.resolve("x")

        await client.report_service_health("one", "healthy")
        await client.register_service(agent("one", "y@1.0.0"))
        await until(lambda: cache.find("y"))
        assert cache.find("x") == ()
        assert cache.resolve("y").name == cache.resolve().name == "one"


async def test_unregistered_service_is_no_longer_resolved(client: RegistryClient) -> None:
    await client.register_service(agent("one"))
    await client.register_service(agent("two"))
    async with client.cache(capability="x") as cache:
        assert {cache.resolve("x").name for _ in range(2)} == {"one", "two"}
        await client.unregister_service("one")
        await until(lambda: len(cache) == 1)
        assert {cache.resolve("x").name for _ in range(10)} == {"two"}


async def test_waiting_ends_with_a_usable_service_or_in_time(client: RegistryClient) -> None:
    async with client.cache() as cache:
        with pytest.raises(TimeoutError):
            await cache.changed(timeout=0.01)
        waiting = asyncio.create_task(cache.wait_for("x", version="^2", timeout=60))
        await client.register_service(agent("old", "x@1.0.0"))
        explained = (
            r"capability=x, version=\^2, within 0.05 s: No service offers 'x' in version '\^2' \(offered: 1.0.0\)"
        )
        with pytest.raises(NoEndpointInTime, match=explained) as caught:
            await cache.wait_for("x", version="^2", timeout=0.05)
        assert isinstance(caught.value, NoEndpoint)
        assert isinstance(caught.value, TimeoutError)
        assert not waiting.done()
        await client.register_service(agent("new", "x@2.1.0"))
        assert (await waiting).name == "new"
        assert (await cache.wait_for("x", labels={}, timeout=0)).name in {"old", "new"}


async def test_excluded_services_are_not_resolved(client: RegistryClient) -> None:
    for name in "abc":
        await client.register_service(agent(name))
    async with client.cache(fallback=["degraded"]) as cache:
        for policy in Policy:
            assert {cache.resolve("x", policy=policy, exclude=["a", "c"]).name for _ in range(9)} == {"b"}
        assert {cache.resolve("x", exclude={"a"}).name for _ in range(90)} == {"b", "c"}
        assert {cache.resolve("x", exclude=[cache.services["a"]]).name for _ in range(90)} == {"b", "c"}
        with pytest.raises(NoEndpoint, match="without 3 excluded"):
            cache.resolve("x", exclude=["a", "b", "c", "other"])
        with pytest.raises(TypeError, match="exclude must be a collection of names"):
            cache.resolve("x", exclude="a")
        with pytest.raises(ValueError, match="policy: 'fastest' is not a Policy; use one of round_robin"):
            cache.resolve("x", policy="fastest")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="policy: 'fastest'"):
            client.cache(policy="fastest")  # type: ignore[arg-type]
        await client.report_service_health("c", "degraded")
        await until(lambda: cache.services["c"].health.status == HealthStatus.HEALTH_STATUS_DEGRADED)
        assert cache.resolve("x", exclude=["a", "b"]).name == "c"


async def test_failing_service_is_ejected_and_readmitted(client: RegistryClient) -> None:
    clock = ManualClock()
    for name in "ab":
        await client.register_service(agent(name))
    async with client.cache() as cache:
        cache._outliers._clock = clock
        failing = cache.services["a"]
        for _ in range(3):
            assert {cache.resolve("x").name for _ in range(2)} == {"a", "b"}
            cache.observe(failing, error=ConnectionError("refused"))
        assert {cache.resolve("x").name for _ in range(9)} == {"b"}
        assert {cache.resolve(policy=Policy.LEAST_RESPONSE_TIME).name for _ in range(9)} == {"b"}
        clock.now += 31
        assert {cache.resolve("x").name for _ in range(2)} == {"a", "b"}
        cache.observe(failing, error=True)
        assert {cache.resolve("x").name for _ in range(9)} == {"b"}
        cache.observe(failing, 0.1)
        assert {cache.resolve("x").name for _ in range(2)} == {"a", "b"}


async def test_observations_leave_with_their_service(client: RegistryClient) -> None:
    picked = Service()
    async with client.cache(policy=Policy.LEAST_REQUEST) as cache:
        for instance in ("one", "two"):
            service = agent("a")
            service.instance_id = instance
            await client.register_service(service)
            await until(lambda: "a" in cache and cache.services["a"].instance_id == instance)  # noqa: B023 - awaited
            picked = cache.resolve("x")
            cache.observe(picked, 0.1)
            cache.observe(picked, error=True)
            cache.resolve("x")
            assert observed(cache) == ({"a"}, {"a"}, {"a"})
        cache.observe(picked, 0.1)
        replaced = Service(name="a", instance_id="one")
        cache.observe(replaced, error=True)
        assert observed(cache) == ({"a"}, set(), set())
        await client.unregister_service("a", instance_id="two")
        await until(lambda: "a" not in cache)
        cache.observe(picked, 0.1)
        cache.observe(picked, error=True)
        assert observed(cache) == (set(), set(), set())


def observed(cache: ServiceCache) -> tuple[set[str], set[str], set[str]]:
    return set(cache._times._averages), set(cache._requests._in_flight), set(cache._outliers._failures)


async def test_labels_and_policy_can_be_set_for_each_call(client: RegistryClient) -> None:
    await client.register_service(make_service("a", "http://a.test", version="1.0.0", health_check="heartbeat", labels={"zone": "eu", "weight": "0"}))  # fmt: skip  # noqa: E501
    await client.register_service(agent("b"))
    async with client.cache(policy=Policy.WEIGHTED_RANDOM) as cache:
        assert {cache.resolve().name for _ in range(50)} == {"b"}
        assert cache.resolve(labels={"zone": "eu"}).name == "a"
        assert {cache.resolve(policy=Policy.ROUND_ROBIN).name for _ in range(2)} == {"a", "b"}
        cache.observe(cache.services["a"], 0.9)
        cache.observe(cache.services["b"], 0.1)
        assert cache.resolve(policy=Policy.LEAST_RESPONSE_TIME).name == "b"


async def test_fallback_accepts_status_names(client: RegistryClient) -> None:
    await client.register_service(agent("one"))
    await client.report_service_health("one", "degraded")
    async with client.cache(fallback=["degraded"]) as cache, client.cache() as strict:
        assert cache.resolve("x").name == "one"
        with pytest.raises(NoEndpoint, match="1 degraded"):
            strict.resolve("x")


async def test_cache_holds_only_services_that_match_its_filter(client: RegistryClient) -> None:
    await client.register_service(agent("one", environment="production"))
    await client.register_service(agent("two", environment="test"))
    async with client.cache(environment="production") as cache:
        assert names(cache) == {"one"}
        await client.register_service(agent("one", environment="test"))
        await until(lambda: not len(cache))


async def test_cache_serves_last_state_and_its_age_without_registry(
    registry: RegistryProcess, client: RegistryClient
) -> None:
    await client.register_service(agent("one"))
    async with client.cache() as cache:
        registry.kill()
        await until(lambda: not cache.connected)
        before = cache.age
        await asyncio.sleep(0.05)
        assert cache.age >= before + 0.04
        assert cache.resolve("x").name == "one"
        assert cache.last_error is not None

        await asyncio.to_thread(registry.start)
        await client.register_service(agent("two"))
        await until(lambda: "two" in cache)
        assert cache.connected
        assert names(cache) == {"one", "two"}


async def test_listeners_receive_events_and_may_raise(client: RegistryClient, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []

    def fail(_: Event) -> None:
        raise ZeroDivisionError

    async with client.cache() as cache:
        cache.on_change(fail)
        remove = cache.on_change(events.append)
        with caplog.at_level(logging.ERROR):
            await client.register_service(agent("one"))
            await until(lambda: events)
        assert [(event.type, event.service.name) for event in events] == [
            (EventType.EVENT_TYPE_SERVICE_REGISTERED, "one")
        ]
        assert "listener raised an exception" in caplog.text
        remove()
        await client.register_service(agent("two"))
        await until(lambda: "two" in cache)
        assert len(events) == 1


async def test_cache_opens_empty_without_registry_if_wait_is_false() -> None:
    async with RegistryClient("127.0.0.1:1") as client, client.cache(wait=False) as cache:
        assert not cache.ready
        assert cache.age == math.inf
        with pytest.raises(NoEndpoint, match="no snapshot of the services has arrived"):
            cache.resolve()
        with pytest.raises(NoEndpointInTime, match="no snapshot"):
            await cache.wait_for("x", timeout=0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await cache.wait_ready()


async def test_missing_snapshot_raises_within_the_timeout() -> None:
    async with RegistryClient("127.0.0.1:1", timeout=0.3) as client:
        with pytest.raises((RegistryUnavailable, DeadlineExceeded), match="no snapshot"):
            async with client.cache():
                pass


async def test_invalid_filter_raises_invalid_request(client: RegistryClient) -> None:
    with pytest.raises(InvalidRequest):
        async with client.cache(name_pattern="("):
            pass


async def test_other_threads_may_resolve(client: RegistryClient) -> None:
    await client.register_service(agent("stays"))
    failures: list[BaseException] = []
    stop = threading.Event()

    def pick(cache: ServiceCache) -> None:
        try:
            while not stop.is_set():
                cache.resolve("x")
                cache.find(labels={"none": "such"})
        except BaseException as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    async with client.cache() as cache:
        threads = [threading.Thread(target=pick, args=(cache,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(50):
            await client.register_service(agent(f"comes-{i}"))
            await client.unregister_service(f"comes-{i}")
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await until(lambda: names(cache) == {"stays"})
        assert cache.resolve("x").name == "stays"
    assert failures == []


async def test_number_of_cached_queries_is_limited(client: RegistryClient) -> None:
    await client.register_service(agent("one"))
    async with client.cache() as cache:
        for i in range(2_500):
            cache.find(labels={"request": str(i)})
            assert cache.resolve("x", labels={}).name == "one"
        assert len(cache._pools) <= 1_000
        assert len(cache._pickers) <= 1_000
