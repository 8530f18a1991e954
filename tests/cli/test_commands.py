"""Every command does what its help says."""

import json
import re

import pytest
import yaml

from registry_cli.main import COMMANDS
from registry_client import SyncRegistryClient, make_service
from tests.cli.program import Program, lines

# Many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

# Fields that the tests look at are given; the registry of the tests probes nothing.
SERVICE = ("--version", "1.0.0", "--health-check", "heartbeat")


def register(program: Program, name: str, *flags: str) -> None:
    program.good("register", name, f"http://{name}.test", *SERVICE, *flags)


def test_help_and_its_table_say_the_same_of_every_command(program: Program) -> None:
    table = program.good("--help").out
    for name, (_, summary) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", table, re.MULTILINE)
        assert name == "serve" or f"\n  {summary}\n" in program.good(name, "--help").out


def test_register_takes_a_service_from_flags(program: Program) -> None:
    done = program.good(
        *("register", "translator-1", "grpc://10.0.0.1:50051", "--version", "2.1.0"),
        *("--capability", "translate@2.1.0", "--capability", "detect", "--tag", "nlp", "--tag", "eu"),
        *("--label", "zone=eu", "--environment", "production", "--group", "translator", "--ttl", "60"),
        *("--description", "Translates.", "--author", "ai", "--documentation", "http://docs.test"),
        *("--health-check", "grpc", "-o", "json"),
    )

    shown = done.json
    assert {key: shown[key] for key in shown.keys() - {"registeredAt", "updatedAt", "revision", "health"}} == {
        "name": "translator-1",
        "endpoint": "grpc://10.0.0.1:50051",
        "version": "2.1.0",
        "capabilities": [{"name": "translate", "version": "2.1.0"}, {"name": "detect", "version": ""}],
        "group": "translator",
        "metadata": {
            "description": "Translates.",
            "tags": ["nlp", "eu"],
            "author": "ai",
            "documentation": "http://docs.test",
            "environment": "production",
            "labels": {"zone": "eu"},
        },
        "healthCheck": {"type": "grpc"},
        "ttlSeconds": 60,
    }
    assert re.fullmatch(r"translator-1 registered, revision \d+\n", program.good(*_again(done.out)).out)


def _again(document: str) -> tuple[str, ...]:
    service = json.loads(document)
    return ("register", service["name"], service["endpoint"], "--version", "2.1.1")


def test_create_only_refuses_a_name_that_exists(program: Program) -> None:
    register(program, "a")
    done = program.run("register", "a", "http://b.test", "--version", "1", "--create-only")
    assert (done.code, done.out) == (5, "")
    assert "'a' is registered already" in done.err


def test_list_has_a_table_and_all_columns_with_wide(program: Program) -> None:
    register(program, "b", *(f"--capability=c{number}@1.{number}" for number in range(5)))
    register(program, "a", "--tag", "x", "--label", "k=v", "--environment", "test", "--group", "g")

    header, first, second = lines(program.good("list").out)
    assert header == ["NAME", "VERSION", "HEALTH", "ENDPOINT", "CAPABILITIES", "AGE"]
    assert first[:5] == ["a", "1.0.0", "healthy", "http://a.test", "-"]
    assert second[:6] == ["b", "1.0.0", "healthy", "http://b.test", "c0@1.0,c1@1.1,c2@1.2", "+2"]
    assert re.fullmatch(r"\d+s", first[5])

    header, first, second = lines(program.good("list", "-o", "wide").out)
    assert header[5:] == ["AGE", "GROUP", "ENVIRONMENT", "TAGS", "LABELS", "REVISION"]
    assert first[6:10] == ["g", "test", "x", "k=v"]
    assert second[4] == "c0@1.0,c1@1.1,c2@1.2,c3@1.3,c4@1.4"


def test_list_filters_by_every_flag(program: Program) -> None:
    register(program, "a", "--capability", "x@1.2.0", "--tag", "t", "--tag", "u", "--environment", "e", "--group", "g")
    register(program, "b", "--capability", "x@2.0.0", "--tag", "t", "--label", "k=v", "--label", "l=w")
    program.good("register", "c", "http://c.test", "--version", "3.1.0")

    for flags, names in (
        ((), "abc"),
        (("--name", "^[AB]$"), "ab"),
        (("--capability", "x"), "ab"),
        (("--capability", "x", "--capability-version", "^1.1"), "a"),
        (("--health", "unknown"), "c"),
        (("--health", "unknown", "--health", "healthy"), "abc"),
        (("--tag", "u", "--tag", "t"), "ab"),
        (("--tag", "u", "--tag", "t", "--all-tags"), "a"),
        (("--version", ">=3"), "c"),
        (("--environment", "e"), "a"),
        (("--group", "g"), "a"),
        (("--label", "k=v", "--label", "l=w"), "b"),
        (("--label", "k=v", "--label", "l=other"), ""),
        (("--limit", "2"), "ab"),
        (("--strong",), "abc"),
    ):
        assert program.run("list", "-o", "name", *flags).out.split() == list(names), flags


def test_list_of_nothing_is_no_failure(program: Program) -> None:
    done = program.run("list")
    assert done.code == 0
    assert lines(done.out) == [["NAME", "VERSION", "HEALTH", "ENDPOINT", "CAPABILITIES", "AGE"]]
    assert done.err == "ossa-registry: no service matches\n"
    assert program.good("list", "-o", "json").json == []
    assert program.good("list", "--quiet").err == ""


def test_list_goes_through_all_pages(program: Program) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        names = [f"s{number:04}" for number in range(1_200)]
        for at in range(0, len(names), 400):
            client.batch_register_services(
                make_service(name, f"http://{name}.test", version="1") for name in names[at : at + 400]
            )
    assert program.good("list", "-o", "name").out.split() == names
    assert program.good("list", "-o", "name", "--limit", "1100").out.split() == names[:1100]


def test_get_gives_an_object_for_one_name_and_an_array_for_several(program: Program) -> None:
    register(program, "a")
    register(program, "b")
    assert program.good("get", "a", "-o", "json").json["name"] == "a"
    assert [each["name"] for each in program.good("get", "b", "a", "-o", "json").json] == ["b", "a"]
    assert yaml.safe_load(program.good("get", "a", "-o", "yaml").out) == program.good("get", "a", "-o", "json").json
    assert lines(program.good("get", "a").out)[1][0] == "a"
    assert program.good("get", "a", "b", "-o", "name").out == "a\nb\n"


def test_get_goes_on_after_a_name_that_is_not_registered(program: Program) -> None:
    register(program, "a")
    done = program.run("get", "nobody", "a", "-o", "json")
    assert done.code == 3
    assert done.err == "ossa-registry: service 'nobody' is not registered\n"
    assert [each["name"] for each in done.json] == ["a"]
    assert program.run("get", "nobody", "-o", "json") == (3, "", done.err)


def test_health_of_services(program: Program) -> None:
    register(program, "a", "--ttl", "3600")
    program.good("register", "b", "http://b.test", "--version", "1")

    header, row = lines(program.good("health", "a").out)
    assert header == ["NAME", "HEALTH", "CHECKED", "RESPONSE", "LEASE", "ERROR"]
    assert row[:2] == ["a", "healthy"]
    assert re.fullmatch(r"59m\d*s?|1h", row[4])
    shown = program.good("health", "a", "-o", "json").json
    assert (shown["name"], shown["status"]) == ("a", "healthy")
    assert shown["leaseExpiresAt"].endswith("Z")
    # Not known to be well is not well.
    assert program.run("health", "a", "b").code == 7
    assert program.run("health", "a", "nobody").code == 3


def test_health_of_the_registry(program: Program) -> None:
    facts = dict(line.split() for line in program.good("health").out.splitlines() if len(line.split()) == 2)
    assert facts | {"revision": "0"} == {
        "registry": program.target,
        "status": "healthy",
        "store": "connected",
        "services": "0",
        "revision": "0",
    }
    shown = program.good("health", "-o", "json").json
    assert (shown["status"], shown["storeConnected"], shown["statistics"]["totalServices"]) == ("healthy", True, 0)


def test_heartbeat_renews_and_tells_who_is_unknown(program: Program) -> None:
    register(program, "a", "--ttl", "60")
    assert program.good("heartbeat", "a").out == "a renewed\n"
    done = program.run("heartbeat", "a", "b", "-o", "json")
    assert done.code == 3
    assert done.json == {"renewedCount": 1, "unknownNames": ["b"]}
    assert done.err == "ossa-registry: service 'b' is not registered; register it again\n"


def test_unregister_removes(program: Program) -> None:
    for name in "abc":
        register(program, name)
    revision = program.good("get", "a", "-o", "json").json["revision"]

    done = program.run("unregister", "a", "--if-revision", str(revision + 1))
    assert (done.code, done.out) == (5, "")
    assert f"is at revision {revision}, not {revision + 1}; read it again" in done.err
    assert program.good("unregister", "a", "--if-revision", str(revision)).out == "a unregistered\n"
    assert program.good("unregister", "b", "-o", "json").json["name"] == "b"
    assert program.run("unregister", "b", "c").code == 3
    assert program.good("unregister", "c", "--ignore-not-found") == (0, "", "")
    assert program.run("list", "-o", "name").out == ""


def test_capabilities(program: Program) -> None:
    register(program, "a", "--capability", "x@1.0.0", "--capability", "y@2.0.0")
    register(program, "b", "--capability", "x@1.1.0")
    assert lines(program.good("capabilities").out) == [
        ["CAPABILITY", "VERSIONS", "COUNT", "SERVICES", "DESCRIPTION"],
        ["x", "1.0.0,1.1.0", "2", "a,b", "-"],
        ["y", "2.0.0", "1", "a", "-"],
    ]
    assert program.good("capabilities", "-o", "name").out == "x\ny\n"
    assert program.good("capabilities", "-o", "json").json[0] == {
        "name": "x",
        "versions": ["1.0.0", "1.1.0"],
        "serviceNames": ["a", "b"],
        "serviceCount": 2,
    }


def test_stats(program: Program) -> None:
    register(program, "a", "--capability", "x@1")
    shown = program.good("stats", "-o", "json").json
    assert (shown["totalServices"], shown["healthyServices"], shown["averageCapabilitiesPerService"]) == (1, 1, 1.0)
    assert ["services", "1"] in lines(program.good("stats").out)


def test_maintenance_takes_out_and_back_in(program: Program) -> None:
    register(program, "beats")
    program.good("register", "probed", "http://probed.test", "--version", "1")

    done = program.good("maintenance", "on", "beats", "probed", "--reason", "new disk")
    assert done.out == "beats is in maintenance\nprobed is in maintenance\n"
    assert [each["error"] for each in json.loads(program.run("health", "beats", "probed", "-o", "json").out)] == [
        "new disk",
        "new disk",
    ]
    assert program.good("maintenance", "off", "beats", "probed").out == "beats is healthy\nprobed is unknown\n"


def test_maintenance_off_leaves_what_is_not_in_maintenance(program: Program) -> None:
    register(program, "a")
    done = program.run("maintenance", "off", "a", "nobody")
    assert (done.code, done.out) == (3, "a is healthy\n")
    assert "a is not in maintenance" in done.err


def test_cleanup_tells_how_many(program: Program) -> None:
    assert program.run("cleanup") == (0, "", "ossa-registry: 0 removed\n")
    assert program.good("cleanup", "-o", "json").json == {"servicesRemoved": 0, "names": []}


def test_version(program: Program) -> None:
    shown = program.good("version", "-o", "json").json
    assert shown["ossa-registry"] in program.good("--version").out
    assert ["ossa-registry", shown["ossa-registry"]] in lines(program.good("version").out)
