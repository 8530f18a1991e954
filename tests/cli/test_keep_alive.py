"""``register --keep-alive``: services stay registered while the program runs."""

import json
import signal
import sys

import pytest

from registry_client import SyncRegistryClient
from registry_client.testing import RegistryProcess
from tests.cli.program import Program

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

KEEP_ALIVE = ("--version", "1", "--health-check", "heartbeat", "--ttl", "5", "--keep-alive")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_service_is_registered_until_a_signal_arrives(program: Program, number: signal.Signals) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        with program.start("register", "a", "http://a.test", *KEEP_ALIVE) as running:
            running.wait_for("a registered, revision ")
            _, first = client.get_service_health("a")
            assert first is not None
            # Heartbeats extend the lease.
            while (lease := client.get_service_health("a")[1]) == first:
                pass
            assert lease is not None
            done = running.stop(number)
        assert done.code == 0
        assert done.out.endswith("a unregistered\n")
        assert client.find_services() == []


def test_all_services_of_files_are_kept_and_drained(program: Program) -> None:
    services = [
        {"name": name, "endpoint": f"http://{name}.test", "version": "1", "healthCheck": {"type": "heartbeat"}}
        for name in ("a", "b", "c")
    ]
    (program.directory / "s.json").write_text(json.dumps(services), encoding="utf-8")
    with SyncRegistryClient(program.target, timeout=60) as client:
        with (
            program.start("register", "-f", "s.json", "--keep-alive", "--drain", "1") as running,
            program.start("watch", "--type", "health-changed", "--count", "3", "-o", "json") as watching,
        ):
            running.wait_for("registered", 3)
            # Ensures that the watch has started before the services are drained.
            program.run_ok("maintenance", "on", "a")
            while not watching.out:
                program.run_ok("maintenance", "off", "a")
                program.run_ok("maintenance", "on", "a")
            done = running.stop()
        assert (done.code, done.out.count("unregistered")) == (0, 3)
        assert client.find_services() == []


def test_lost_service_is_registered_again(program: Program, registry: RegistryProcess) -> None:
    with (
        SyncRegistryClient(program.target, timeout=60) as client,
        program.start("register", "a", "http://a.test", *KEEP_ALIVE) as running,
    ):
        running.wait_for("registered")
        registry.kill()
        running.wait_for("a cannot be renewed, retrying: ", err=True)
        registry.start()
        running.wait_for("a is registered", err=True)
        client.unregister_service("a")
        running.wait_for("a is registered", 2, err=True)
        assert [found.name for found in client.find_services()] == ["a"]
        assert running.stop().code == 0


def test_unavailable_registry_at_the_end_is_exit_code_4(program: Program, registry: RegistryProcess) -> None:
    with program.start("register", "a", "http://a.test", *KEEP_ALIVE) as running:
        running.wait_for("registered")
        registry.kill()
        done = running.stop()
    assert done.code == 4
    assert "unregistered\n" not in done.out
    assert "ossa-registry: cannot unregister a, it remains until its lease expires: " in done.err


def test_replicas_get_unique_names(program: Program) -> None:
    with (
        program.start("register", "web", "http://1.test", *KEEP_ALIVE, "--replicas") as one,
        program.start("register", "web", "http://2.test", *KEEP_ALIVE, "--replicas") as two,
    ):
        one.wait_for("registered")
        two.wait_for("registered")
        names = program.run_ok("list", "--group", "web", "-o", "name").out.split()
        assert len(names) == 2
        assert all(name.startswith("web-") for name in names)
        assert one.stop().code == two.stop().code == 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("register", "a b", "http://a.test", *KEEP_ALIVE), 2),
        (("register", "a", "http://a.test", *KEEP_ALIVE, "-t", "127.0.0.1:1"), 4),
    ],
    ids=["invalid", "unreachable"],
)
def test_failed_first_registration_ends_the_command(program: Program, args: tuple[str, ...], code: int) -> None:
    done = program.run(*args)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("ossa-registry: ")


@pytest.mark.parametrize("command", ["register", "run"])
def test_signals_end_the_command_where_loops_have_no_handlers(program: Program, command: str) -> None:
    (program.directory / "a.json").write_text(
        json.dumps({"name": "a", "endpoint": "custom://a.test", "version": "1", "healthCheck": {"type": "heartbeat"}}),
        encoding="utf-8",
    )
    args = {"register": ("-f", "a.json", "--keep-alive"), "run": ("-f", "a.json", "--", "sleep", "600")}[command]
    # As on Windows.
    (program.directory / "without_handlers.py").write_text(
        "import asyncio.unix_events\n"
        "def refuse(*_): raise NotImplementedError\n"
        "loop = asyncio.unix_events._UnixSelectorEventLoop\n"
        "loop.add_signal_handler = loop.remove_signal_handler = refuse\n"
        "from registry_cli.main import main\n"
        "main()\n",
        encoding="utf-8",
    )
    with program.start("without_handlers.py", command, *args, executable=sys.executable) as running:
        running.wait_for("a registered" if command == "register" else "a is registered", err=command == "run")
        done = running.stop(signal.SIGINT)
    assert done.code == (0 if command == "register" else 128 + signal.SIGINT)
    assert "a unregistered\n" in done.out + done.err
