"""``watch``: output, resumption and cursors."""

import json
import signal
from typing import Any

import pytest

from registry_client import SyncRegistryClient, make_service
from registry_client.testing import RegistryProcess
from tests.cli.program import Done, Program, Running, lines

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)


def register(client: SyncRegistryClient, name: str, version: str = "1") -> None:
    client.register_service(make_service(name, f"http://{name}.test", version=version, health_check="heartbeat"))


def events(done: Done | Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def names_of_events(done: Done | Running) -> list[tuple[str, str]]:
    return [(event["event"], event["service"]["name"]) for event in events(done)]


def test_every_kind_of_change_is_printed(program: Program) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        register(client, "old")
        with program.start("watch", "--snapshot", "-o", "json") as running:
            running.wait_for("service:snapshot")
            register(client, "new")
            running.wait_for("service:registered")
            register(client, "new", "2")
            client.report_service_health("new", "degraded", error="slow")
            client.unregister_service("new")
            running.wait_for("service:unregistered")
            done = running.stop()
    assert done.code == 130
    assert names_of_events(done) == [
        ("service:snapshot", "old"),
        ("service:registered", "new"),
        ("service:updated", "new"),
        ("service:health:changed", "new"),
        ("service:unregistered", "new"),
    ]
    changed = events(done)[3]
    assert (changed["reason"], changed["previousHealth"]) == ("health_report", "healthy")
    assert changed["service"]["health"]["error"] == "slow"
    assert done.err.startswith("ossa-registry: resume with --cursor ")


def test_table_shows_the_same_events(program: Program) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client, program.start("watch", "--snapshot") as running:
        register(client, "a")
        running.wait_for(" a ")
        client.report_service_health("a", "unhealthy", error="no disk")
        client.unregister_service("a")
        running.wait_for("unregistered")
        done = running.stop()
    header, *rows = lines(done.out)
    assert header == ["TIME", "EVENT", "NAME", "HEALTH", "REASON", "DETAILS"]
    # The registration may have preceded the start of the watch.
    assert rows[0][1] in {"registered", "snapshot"}
    assert rows[1][1:] == ["health-changed", "a", "unhealthy", "health", "report", "was", "healthy:", "no", "disk"]
    assert rows[2][1:6] == ["unregistered", "a", "unhealthy", "client", "request"]


def test_filters_types_and_count_apply(program: Program) -> None:
    with (
        SyncRegistryClient(program.target, timeout=60) as client,
        program.start("watch", "--name", "^a", "--type", "unregistered", "--count", "2", "-o", "yaml") as running,
    ):
        register(client, "ready")
        # The start of the watch is not observable, so changes are made until it prints something.
        for _ in range(600):
            for name in ("a1", "b1"):
                register(client, name)
                client.unregister_service(name)
            if running.out.count("---\n") == 2:
                break
        done = running.wait()
    assert done.code == 0
    assert done.out.count("event: service:unregistered\n") == done.out.count("name: a1\n") == 2


def test_cursor_resumes_with_the_changes_since(program: Program) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        register(client, "a")
        with program.start("watch", "--snapshot", "-o", "json") as running:
            running.wait_for("service:snapshot")
            stopped = running.stop()
        cursor = stopped.err.split()[-1]
        assert events(stopped)[-1]["cursor"] == cursor
        register(client, "b")
        client.unregister_service("a")
    done = program.run("watch", "--cursor", cursor, "--count", "2", "-o", "json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert names_of_events(done) == [("service:registered", "b"), ("service:unregistered", "a")]


def test_restart_of_the_registry_loses_and_repeats_no_events(program: Program, registry: RegistryProcess) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        register(client, "before")
        with program.start("watch", "--snapshot", "-o", "json") as running:
            running.wait_for("service:snapshot")
            expected = [("service:snapshot", "before")]
            for round_ in range(3):
                register(client, f"a{round_}")
                expected.append(("service:registered", f"a{round_}"))
                # Without waiting: the registry may be killed before the watch receives this change.
                registry.kill()
                if not round_:
                    running.wait_for("reconnecting", err=True)
                registry.start()
                register(client, f"b{round_}")
                expected.append(("service:registered", f"b{round_}"))
                running.wait_for(f'"b{round_}"')
                if not round_:
                    running.wait_for("ossa-registry: reconnected\n", err=True)
            done = running.stop()
    assert done.code == 130
    assert names_of_events(done) == expected
    revisions = [event["revision"] for event in events(done)]
    assert revisions == sorted(set(revisions))
    assert f"cannot reach the registry at {program.target}: connection refused; reconnecting\n" in done.err


def test_sigterm_ends_the_watch(program: Program) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        register(client, "a")
        with program.start("watch", "--snapshot", "-o", "json") as running:
            running.wait_for("service:snapshot")
            done = running.stop(signal.SIGTERM)
    assert done.code == -signal.SIGTERM
    assert names_of_events(done) == [("service:snapshot", "a")]
