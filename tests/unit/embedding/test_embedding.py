"""``EmbeddedRegistry`` in a Python program, on a real Redis."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

import registry_server
from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter
from registry_server import EmbeddedRegistry, open_registry, registry
from registry_server.config import HealthCheckSettings, RedisSettings, RedisUrl, Settings
from registry_server.embedding.listeners import Listeners
from registry_server.errors import ConfigurationError, ServiceNotFound, WatcherTooSlow
from tests.support.processes import children_of
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import settings

pytestmark = pytest.mark.slow  # starts a registry with its child processes

TIMEOUT = 20.0
DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED


@pytest.fixture(autouse=True)
def reset_logging() -> Iterator[None]:
    """Reset structlog afterwards: opening a registry configures it for the whole process."""
    yield
    structlog.reset_defaults()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


def record_events(registry: EmbeddedRegistry) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    for event in ("service:registered", "service:updated"):
        registry.on(event, lambda service, event=event: seen.append((event, service.name, service.version)))
    for event in ("service:unregistered", "service:health:changed"):
        registry.on(event, lambda *arguments, event=event: seen.append((event, *arguments)))
    return seen


async def test_embedded_registry_offers_the_contract(redis: RedisProcess) -> None:
    registry = await registry_server.open_registry(settings(redis.url))
    seen = record_events(registry)
    await registry.register(small_service("a"))
    await registry.register(small_service("a", version="2.0.0"))
    before = (await registry.health("a"))[0].status
    await registry.report_health("a", DEGRADED, None, "slow")
    assert [found.name for found in await registry.discover(ServiceFilter(health=[DEGRADED]))] == ["a"]
    updated = small_service("a", version="3.0.0")
    await registry.update_service(updated)
    assert registry.get_stats().degraded_services == 1
    await registry.start_health_monitoring()
    await registry.stop_health_monitoring()
    assert await registry.cleanup() == []
    await registry.unregister("a")
    await eventually(lambda: len(seen) == 5)
    assert seen == [
        ("service:registered", "a", "1.0.0"),
        ("service:updated", "a", "2.0.0"),
        ("service:health:changed", "a", before, DEGRADED),
        ("service:updated", "a", "3.0.0"),
        ("service:unregistered", "a"),
    ]
    await registry.close()
    await registry.close()


async def test_dictionaries_of_ossa_are_accepted(redis: RedisProcess) -> None:
    async with await open_registry(settings(redis.url)) as registry:
        document = {"name": "@acme/a", "endpoint": "http://a.test", "version": "1", "capabilities": [{"name": "c"}]}
        registered = await registry.register(document)
        assert (await registry.discover({"capability": "c", "healthStatus": ["unknown"]})) == [registered]
        updated = await registry.update_service("@acme/a", {"version": "2"})
        assert (updated.version, [each.name for each in updated.capabilities]) == ("2", ["c"])
        with pytest.raises(ServiceNotFound):
            await registry.update_service("b", {"version": "2"})
        with pytest.raises(ServiceNotFound):
            await registry.health("b")
        with pytest.raises(ServiceNotFound):
            await registry.unregister("b")
        with pytest.raises(TypeError, match="a name and a dictionary"):
            await registry.update_service("@acme/a")


async def test_changes_of_another_registry_on_the_same_redis_are_seen(redis: RedisProcess) -> None:
    async with await open_registry(settings(redis.url)) as one, await open_registry(settings(redis.url)) as other:
        seen = record_events(one)
        await other.register(small_service("a"))
        await eventually(lambda: seen == [("service:registered", "a", "1.0.0")])


async def test_failing_or_slow_callback_delays_no_call_and_no_callback(redis: RedisProcess) -> None:
    async with await open_registry(settings(redis.url)) as registry:
        release, seen = asyncio.Event(), list[str]()

        async def slow_callback(service: Any) -> None:
            await release.wait()
            seen.append(f"late {service.name}")

        def failing_callback(_: Any) -> None:
            raise ValueError("a bug of the program")

        with capture_logs() as logs:
            remove = registry.on("service:registered", failing_callback)
            registry.on("service:registered", slow_callback)
            registry.on("service:registered", lambda service: seen.append(service.name))
            async with asyncio.timeout(TIMEOUT):
                for name in ("a", "b"):
                    await registry.register(small_service(name))
            release.set()
            await eventually(lambda: len(seen) == 4)
            assert seen == ["late a", "a", "late b", "b"]
            assert [line["event"] for line in logs].count("listener callback failed") == 2
            remove()
            remove()
            await registry.register(small_service("c"))
            await eventually(lambda: seen[-1] == "c")
            assert [line["event"] for line in logs].count("listener callback failed") == 2


async def test_dropped_events_are_reported_to_slow_callbacks(redis: RedisProcess) -> None:
    async with await open_registry(settings(redis.url, watch={"buffer_events": 3})) as registry:
        release, errors, seen = asyncio.Event(), list[Exception](), list[str]()

        async def slow_callback(service: Any) -> None:
            seen.append(service.name)
            await release.wait()

        registry.on("service:registered", slow_callback)
        registry.on("registry:error", errors.append)
        for i in range(10):
            await registry.register(small_service(f"s{i}"))
        release.set()
        await eventually(lambda: bool(errors) and seen[-1] == "s9")
        assert isinstance(errors[0], WatcherTooSlow)
        assert len(seen) < 10


async def test_unknown_event_name_is_refused(redis: RedisProcess) -> None:
    async with await open_registry(settings(redis.url)) as registry:
        with pytest.raises(ValueError, match="unknown event 'service:removed'; the events are service:registered, "):
            registry.on("service:removed", print)


async def test_closing_ends_all_child_processes(tmp_path: Path) -> None:
    before = set(children_of(os.getpid()))
    checks = HealthCheckSettings(enabled=True)
    async with await open_registry(Settings(data_dir=tmp_path, health_check=checks)) as registry:
        await registry.register(small_service("a"))
    assert set(children_of(os.getpid())) <= before


async def test_invalid_setting_raises_a_configuration_error() -> None:
    bad = Settings(redis=RedisSettings(url=RedisUrl("redis://127.0.0.1:1/0?colour=blue")))
    with pytest.raises(ConfigurationError, match="colour"):
        await open_registry(bad)


async def test_opening_can_be_cancelled() -> None:
    unreachable = Settings(redis=RedisSettings(url=RedisUrl("redis://127.0.0.1:1")))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await open_registry(unreachable)


def test_package_attributes_are_imported_on_demand() -> None:
    assert registry_server.Settings is Settings
    assert registry_server.ServiceRegistry is registry_server.EmbeddedRegistry
    assert issubclass(registry_server.EmbeddedRegistry, registry.ServiceRegistry)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        registry_server.nonsense  # noqa: B018


async def test_logs_go_through_the_logging_of_the_program(
    redis: RedisProcess, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    async with await open_registry(settings(redis.url)):
        pass
    with caplog.at_level("INFO"):
        async with await open_registry(settings(redis.url)):
            pass
    assert [record.message for record in caplog.records].count("catalog loaded") == 1
    assert "".join(capsys.readouterr()) == ""


async def test_failed_listeners_end_the_registry(redis: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Listeners) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Listeners, "run", fail)
    registry = await open_registry(settings(redis.url))
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(ValueError, match="a bug"):
            await registry.close()
