"""``SyncRegistryClient``, and ``registry_client.testing``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from registry_client import (
    HealthStatus,
    RegistryUnavailable,
    Service,
    ServiceNotFound,
    SyncRegistryClient,
    make_service,
)
from registry_client.errors import DeadlineExceeded
from registry_client.rpcs import UnaryCalls
from registry_client.testing import RegistryProcess


def test_sync_client_has_every_unary_call() -> None:
    calls = {name for name, value in vars(UnaryCalls).items() if callable(value) and not name.startswith("_")}
    assert {name for name in calls if not callable(getattr(SyncRegistryClient, name, None))} == set()
    assert SyncRegistryClient.get_service.__doc__ == UnaryCalls.get_service.__doc__


def test_script_registers_finds_and_unregisters(registry: RegistryProcess) -> None:
    with SyncRegistryClient(registry.target, timeout=30) as client:
        client.register_service(make_service("agent", "http://agent.test", version="1.0.0", capabilities=["x"]))
        assert [service.name for service in client.find_services(capability="x")] == ["agent"]
        client.update_service(Service(name="agent", version="2.0.0"), ["version"])
        client.report_service_health("agent", "maintenance")
        assert client.get_stats().services_in_maintenance == 1
        client.report_service_health("agent", "healthy")
        assert client.set_maintenance("agent", enabled=True, reason="why").maintenance.reason == "why"
        assert client.report_service_health("agent", "degraded").status == HealthStatus.HEALTH_STATUS_MAINTENANCE
        ended = client.set_maintenance("agent", enabled=False)
        assert ended.health.status == HealthStatus.HEALTH_STATUS_DEGRADED
        client.unregister_service("agent")
        with pytest.raises(ServiceNotFound):
            client.get_service("agent")
    client.close()


def test_sync_client_survives_a_restart_between_two_calls(registry: RegistryProcess) -> None:
    with SyncRegistryClient(registry.target, timeout=30) as client:
        client.register_service(make_service("agent", "http://agent.test", version="1.0.0"))
        registry.restart()
        assert client.get_service("agent").name == "agent"


def test_unreachable_registry_raises() -> None:
    unreachable = (RegistryUnavailable, DeadlineExceeded)
    with SyncRegistryClient("127.0.0.1:1", timeout=0.3) as client, pytest.raises(unreachable):
        client.get_stats()


async def test_sync_client_raises_in_a_running_event_loop() -> None:
    client = SyncRegistryClient("127.0.0.1:1")
    with pytest.raises(RuntimeError, match="running"):
        client.get_stats()


def test_registry_process_keeps_address_and_data_when_killed(registry: RegistryProcess) -> None:
    target = registry.target
    with SyncRegistryClient(target, timeout=30) as client:
        client.register_service(make_service("agent", "http://agent.test", version="1.0.0"))
        registry.kill()
        assert not registry.running
        registry.start()
        assert registry.running
        assert registry.target == target
        assert client.get_service("agent").name == "agent"


def test_registry_fixture_is_empty_in_each_test(registry: RegistryProcess) -> None:
    with SyncRegistryClient(registry.target, timeout=30) as client:
        assert client.find_services() == []


def test_failed_start_raises_with_the_log() -> None:
    process = RegistryProcess("--no-such-flag=1")
    with pytest.raises(RuntimeError, match="no-such-flag"):
        process.__enter__()
    with pytest.raises(RuntimeError, match="not started"):
        _ = process.target


async def test_registry_process_works_as_async_context_manager() -> None:
    async with RegistryProcess() as process:
        assert "ossa-registry serves" in {json.loads(line)["event"] for line in process.log.splitlines()}
        with pytest.raises(RuntimeError, match="already"):
            process.start()
    assert not process.running


def test_fixtures_work_as_a_pytest_plugin(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["registry_client.testing.fixtures"]\n')
    (tmp_path / "test_mine.py").write_text("def test(registry):\n    assert registry.running\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout
