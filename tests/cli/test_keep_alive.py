"""``register --keep-alive``: registered for as long as the program runs."""

import json
import signal

import pytest

from registry_client import SyncRegistryClient
from registry_client.testing import RegistryProcess
from tests.cli.program import Program

# Many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

SHORT = ("--version", "1", "--health-check", "heartbeat", "--ttl", "5", "--keep-alive")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_registered_until_a_signal_and_unregistered_then(program: Program, number: signal.Signals) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        with program.started("register", "a", "http://a.test", *SHORT) as running:
            running.wait_for("a registered, revision ")
            _, first = client.get_service_health("a")
            assert first is not None
            # The lease moves by itself.
            while (lease := client.get_service_health("a")[1]) == first:
                pass
            assert lease is not None
            done = running.end(number)
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
            program.started("register", "-f", "s.json", "--keep-alive", "--drain", "1") as running,
            program.started("watch", "--type", "health-changed", "--count", "3", "-o", "json") as watching,
        ):
            running.wait_for("registered", 3)
            # The watch is there before anything changes.
            program.good("maintenance", "on", "a")
            while not watching.out:
                program.good("maintenance", "off", "a")
                program.good("maintenance", "on", "a")
            done = running.end()
        assert (done.code, done.out.count("unregistered")) == (0, 3)
        assert client.find_services() == []


def test_a_registry_that_forgets_is_told_again(program: Program, registry: RegistryProcess) -> None:
    with (
        SyncRegistryClient(program.target, timeout=60) as client,
        program.started("register", "a", "http://a.test", *SHORT) as running,
    ):
        running.wait_for("registered")
        registry.kill()
        running.wait_for("a is away: ", err=True)
        registry.start()
        running.wait_for("a is registered", err=True)
        client.unregister_service("a")
        running.wait_for("a is registered", 2, err=True)
        assert [found.name for found in client.find_services()] == ["a"]
        assert running.end().code == 0


def test_a_registry_that_is_away_at_the_end_is_told(program: Program, registry: RegistryProcess) -> None:
    with program.started("register", "a", "http://a.test", *SHORT) as running:
        running.wait_for("registered")
        registry.kill()
        done = running.end()
    assert done.code == 4
    assert "unregistered\n" not in done.out
    assert "ossa-registry: a could not be unregistered, its lease ends by itself: " in done.err


def test_replicas_take_names_of_their_own(program: Program) -> None:
    with (
        program.started("register", "web", "http://1.test", *SHORT, "--replicas") as one,
        program.started("register", "web", "http://2.test", *SHORT, "--replicas") as two,
    ):
        one.wait_for("registered")
        two.wait_for("registered")
        names = program.good("list", "--group", "web", "-o", "name").out.split()
        assert len(names) == 2
        assert all(name.startswith("web-") for name in names)
        assert one.end().code == two.end().code == 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("register", "a b", "http://a.test", *SHORT), 2),
        (("register", "a", "http://a.test", *SHORT, "-t", "127.0.0.1:1"), 4),
    ],
    ids=["refused", "away"],
)
def test_what_cannot_be_registered_in_the_first_place_ends_it(
    program: Program, args: tuple[str, ...], code: int
) -> None:
    done = program.run(*args)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("ossa-registry: ")
