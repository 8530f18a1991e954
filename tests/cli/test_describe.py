"""``describe``, ``whoami`` and ``maintenance`` of a registry with a policy."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from registry_client import RegistryClient, make_service
from tests.cli.program import Done, Program
from tests.support.security import Policy
from tests.support.server import ServerProcess

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

Run = Callable[..., Coroutine[Any, Any, Done]]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Run a command as an identity of the policy, on a registry with two services of the identity ``agent``."""
    policy = Policy(tmp_path / "policy")
    async with ServerProcess(f"--data-dir={tmp_path / 'data'}", f"--security.policy-file={policy.file}") as server:
        program = Program(server.grpc_address, tmp_path)

        async def run(identity: str, *args: str) -> Done:
            return await asyncio.to_thread(program.run, *args, "--quiet", OSSA_REGISTRY_TOKEN=policy.keys[identity])

        async with RegistryClient(server.grpc_address, token=policy.keys["agent"]) as client:
            for name in ("fleet-1", "fleet-2"):
                await client.register_service(
                    make_service(
                        *(name, "http://a.test"),
                        version="1",
                        group="fleet-group",
                        health_check="heartbeat",
                        capabilities=["translate@2.1.0", "detect"],
                        labels={"zone": "eu"},
                        tags=["nlp"],
                        ttl=3600,
                    )
                )
            await client.report_service_health("fleet-1", "degraded", error="slow")
        yield run


def rows(done: Done) -> dict[str, str]:
    """Return the fields of a description, by name."""
    assert (done.code, done.err) == (0, "")
    lines = done.out.partition("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition("   ") for line in lines)}


async def test_description_has_lease_owner_labels_and_events(run: Run) -> None:
    done = await run("agent", "describe", "fleet-1")
    shown = rows(done)
    expected = {
        "name": "fleet-1",
        "group": "fleet-group",
        "health": "degraded",
        "error": "slow",
        "health check": "heartbeat",
        "length": "3600 s",
        "owner": "agent",
        "capabilities": "translate@2.1.0,detect",
        "labels": "zone=eu",
        "tags": "nlp",
    }
    assert shown | expected == shown
    assert shown["lease"] in {"1h left", "59m left"}
    events = done.out.partition("\n\n")[2].splitlines()
    assert [line.split()[1] for line in events] == ["EVENT", "registered", "health-changed"]
    assert events[-1].endswith("was healthy: slow")
    assert "EVENT" not in (await run("agent", "describe", "fleet-1", "--events", "0")).out

    document = (await run("agent", "describe", "fleet-1", "-o", "json")).json
    assert document["owner"] == "agent"
    assert document["leaseExpiresAt"]
    assert [event["event"] for event in document["events"]] == ["service:registered", "service:health:changed"]


async def test_default_health_check_is_described(run: Run) -> None:
    done = await run("operator", "register", "plain", "http://a.test", "--version", "1")
    assert (done.code, done.err) == (0, "")
    assert rows(await run("operator", "describe", "plain"))["health check"] == "default of the endpoint's scheme"


async def test_owner_is_shown_to_itself_and_to_operators(run: Run) -> None:
    for identity, owner in (("viewer", None), ("other", None), ("agent", "agent"), ("operator", "agent")):
        assert rows(await run(identity, "describe", "fleet-1")).get("owner") == owner
    assert (await run("viewer", "describe", "fleet-9")).code == 3


async def test_maintenance_of_a_group_is_described_until_it_ends(run: Run) -> None:
    assert (await run("agent", "maintenance", "on", "fleet-1")).code == 6
    done = await run("operator", "maintenance", "on", "--group", "fleet-group", "--reason", "new model")
    assert done.out == "fleet-1 is in maintenance\nfleet-2 is in maintenance\n"
    shown = rows(await run("viewer", "describe", "fleet-1"))
    expected = {"health": "maintenance", "reason": "new model", "observed": "degraded: slow"}
    assert shown | expected == shown
    assert shown["maintenance"].endswith("by operator")
    done = await run("operator", "maintenance", "off", "fleet-2", "--group", "fleet-group")
    assert done.out == "fleet-2 is healthy\nfleet-1 is degraded\n"
    assert "observed" not in rows(await run("viewer", "describe", "fleet-1"))


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (("on", "--group", "none"), 3, "no service is in the group 'none'"),
        (("on",), 2, "Missing NAME or --group."),
        (("off", "a", "--reason", "x"), 2, "--reason requires 'on'."),
        (("on", "none"), 3, "service 'none' is not registered"),
    ],
)
async def test_maintenance_of_nothing_is_refused(run: Run, args: tuple[str, ...], code: int, expected: str) -> None:
    done = await run("operator", "maintenance", *args)
    assert (done.code, done.out, expected in done.err) == (code, "", True)


async def test_caller_is_told_its_identity_role_and_patterns(run: Run) -> None:
    shown = rows(await run("agent", "whoami"))
    assert shown == {"identity": "agent", "role": "agent", "credential": "api-key", "may own": "fleet-*"}
    document = (await run("operator", "whoami", "-o", "json")).json
    assert document == {"identity": "operator", "role": "operator", "method": "api-key", "patterns": []}
    assert (await run("expired", "whoami")).code == 6


def test_every_caller_is_admin_without_a_policy(program: Program) -> None:
    shown = rows(program.run_ok("whoami"))
    assert shown == {"identity": "anonymous", "role": "admin", "credential": "none"}
