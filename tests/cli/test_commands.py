"""The behaviour and output of every command."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from registry_cli.main import COMMANDS
from registry_client import SyncRegistryClient, make_service
from tests.cli.program import PROGRAM, Program, lines

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

# The heartbeat check makes services healthy: the registry of the tests does not probe.
SERVICE = ("--version", "1.0.0", "--health-check", "heartbeat")


def register(program: Program, name: str, *flags: str) -> None:
    program.run_ok("register", name, f"http://{name}.test", *SERVICE, *flags)


def test_help_and_command_table_have_the_same_summaries(program: Program) -> None:
    table = program.run_ok("--help").out
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", table, re.MULTILINE)
        described = program.run(name, "--help", COLUMNS="80").out
        assert name == "serve" or f"\n  {summary}\n" in described
        assert [line for line in described.splitlines() if len(line) > 80] == []


def test_register_accepts_a_service_from_flags(program: Program) -> None:
    done = program.run_ok(
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
    assert re.fullmatch(r"translator-1 updated, revision \d+\n", program.run_ok(*_register_updated(done.out)).out)


def _register_updated(document: str) -> tuple[str, ...]:
    service = json.loads(document)
    return ("register", service["name"], service["endpoint"], "--version", "2.1.1")


def test_create_only_rejects_an_existing_name(program: Program) -> None:
    register(program, "a")
    done = program.run("register", "a", "http://b.test", "--version", "1", "--create-only")
    assert (done.code, done.out) == (5, "")
    assert "'a' is already registered" in done.err


def test_list_prints_a_table_and_all_columns_with_wide(program: Program) -> None:
    register(program, "b", *(f"--capability=c{number}@1.{number}" for number in range(5)))
    register(program, "a", "--tag", "x", "--label", "k=v", "--environment", "test", "--group", "g")

    header, first, second = lines(program.run_ok("list").out)
    assert header == ["NAME", "VERSION", "HEALTH", "ENDPOINT", "CAPABILITIES", "AGE"]
    assert first[:5] == ["a", "1.0.0", "healthy", "http://a.test", "-"]
    assert second[:6] == ["b", "1.0.0", "healthy", "http://b.test", "c0@1.0,c1@1.1,c2@1.2", "+2"]
    assert re.fullmatch(r"\d+s", first[5])

    header, first, second = lines(program.run_ok("list", "-o", "wide").out)
    assert header[5:] == ["AGE", "GROUP", "ENVIRONMENT", "TAGS", "LABELS", "REVISION"]
    assert first[6:10] == ["g", "test", "x", "k=v"]
    assert second[4] == "c0@1.0,c1@1.1,c2@1.2,c3@1.3,c4@1.4"


def test_list_filters_by_every_option(program: Program) -> None:
    register(program, "a", "--capability", "x@1.2.0", "--tag", "t", "--tag", "u", "--environment", "e", "--group", "g")
    register(program, "b", "--capability", "x@2.0.0", "--tag", "t", "--label", "k=v", "--label", "l=w")
    program.run_ok("register", "c", "http://c.test", "--version", "3.1.0")

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


def test_empty_list_is_not_a_failure(program: Program) -> None:
    done = program.run("list")
    assert done.code == 0
    assert lines(done.out) == [["NAME", "VERSION", "HEALTH", "ENDPOINT", "CAPABILITIES", "AGE"]]
    assert done.err == "ossa-registry: No service is registered.\n"
    assert program.run_ok("list", "-o", "json").json == []
    assert program.run_ok("list", "--quiet").err == ""


def test_list_reads_all_pages(program: Program) -> None:
    with SyncRegistryClient(program.target, timeout=60) as client:
        names = [f"s{number:04}" for number in range(1_200)]
        for at in range(0, len(names), 400):
            client.batch_register_services(
                make_service(name, f"http://{name}.test", version="1") for name in names[at : at + 400]
            )
    assert program.run_ok("list", "-o", "name").out.split() == names
    assert program.run_ok("list", "-o", "name", "--limit", "1100").out.split() == names[:1100]


def test_get_prints_an_object_for_one_name_and_an_array_for_several(program: Program) -> None:
    register(program, "a")
    register(program, "b")
    assert program.run_ok("get", "a", "-o", "json").json["name"] == "a"
    assert [each["name"] for each in program.run_ok("get", "b", "a", "-o", "json").json] == ["b", "a"]
    assert yaml.safe_load(program.run_ok("get", "a", "-o", "yaml").out) == program.run_ok("get", "a", "-o", "json").json
    assert lines(program.run_ok("get", "a").out)[1][0] == "a"
    assert program.run_ok("get", "a", "b", "-o", "name").out == "a\nb\n"


def test_get_continues_after_an_unknown_name(program: Program) -> None:
    register(program, "a")
    done = program.run("get", "missing", "a", "-o", "json")
    assert done.code == 3
    assert done.err == "ossa-registry: service 'missing' is not registered\n"
    assert [each["name"] for each in done.json] == ["a"]
    assert program.run("get", "missing", "-o", "json") == (3, "", done.err)


def test_health_of_services_and_its_exit_codes(program: Program) -> None:
    register(program, "a", "--ttl", "3600")
    program.run_ok("register", "b", "http://b.test", "--version", "1")

    header, row = lines(program.run_ok("health", "a").out)
    assert header == ["NAME", "HEALTH", "CHECKED", "RESPONSE", "LEASE", "ERROR"]
    assert row[:2] == ["a", "healthy"]
    assert re.fullmatch(r"59m\d*s?|1h", row[4])
    shown = program.run_ok("health", "a", "-o", "json").json
    assert (shown["name"], shown["status"]) == ("a", "healthy")
    assert shown["leaseExpiresAt"].endswith("Z")
    # The status unknown is not healthy.
    assert program.run("health", "a", "b").code == 7
    assert program.run("health", "a", "missing").code == 3


def test_health_of_the_registry(program: Program) -> None:
    facts = dict(line.split() for line in program.run_ok("health").out.splitlines() if len(line.split()) == 2)
    assert facts | {"revision": "0"} == {
        "registry": program.target,
        "status": "healthy",
        "store": "connected",
        "services": "0",
        "revision": "0",
    }
    shown = program.run_ok("health", "-o", "json").json
    assert (shown["status"], shown["storeConnected"], shown["statistics"]["totalServices"]) == ("healthy", True, 0)


def test_heartbeat_renews_and_reports_unknown_names(program: Program) -> None:
    register(program, "a", "--ttl", "60")
    assert program.run_ok("heartbeat", "a").out == "a renewed\n"
    done = program.run("heartbeat", "a", "b", "-o", "json")
    assert done.code == 3
    assert done.json == {"renewedCount": 1, "unknownNames": ["b"]}
    assert done.err == "ossa-registry: service 'b' is not registered; register it again\n"


def test_unregister_removes_services(program: Program) -> None:
    for name in "abc":
        register(program, name)
    revision = program.run_ok("get", "a", "-o", "json").json["revision"]

    done = program.run("unregister", "a", "--if-revision", str(revision + 1))
    assert (done.code, done.out) == (5, "")
    assert f"is at revision {revision}, not {revision + 1}; read it again" in done.err
    assert program.run_ok("unregister", "a", "--if-revision", str(revision)).out == "a unregistered\n"
    assert program.run_ok("unregister", "b", "-o", "json").json["name"] == "b"
    assert program.run("unregister", "b", "c").code == 3
    assert program.run_ok("unregister", "c", "--ignore-not-found") == (0, "", "")
    assert program.run("list", "-o", "name").out == ""


def test_capabilities_prints_providers(program: Program) -> None:
    register(program, "a", "--capability", "x@1.0.0", "--capability", "y@2.0.0")
    register(program, "b", "--capability", "x@1.1.0")
    assert lines(program.run_ok("capabilities").out) == [
        ["CAPABILITY", "VERSIONS", "COUNT", "SERVICES", "DESCRIPTION"],
        ["x", "1.0.0,1.1.0", "2", "a,b", "-"],
        ["y", "2.0.0", "1", "a", "-"],
    ]
    assert program.run_ok("capabilities", "-o", "name").out == "x\ny\n"
    assert program.run_ok("capabilities", "-o", "json").json[0] == {
        "name": "x",
        "versions": ["1.0.0", "1.1.0"],
        "serviceNames": ["a", "b"],
        "serviceCount": 2,
    }


def test_empty_results_say_why(program: Program) -> None:
    register(program, "translator", "--capability", "translate@1.5.0")
    assert program.run("list", "--capability", "transalte").err == (
        "ossa-registry: No service has capability 'transalte' (did you mean translate?).\n"
    )
    assert "did you mean translator?" in program.run("get", "translater").err
    done = program.run_ok("explain", "translator", "--capability", "translate", "--capability-version", "^2")
    assert done.out.startswith("translator does not match: capability_version '^2' is wanted, it has 1.5.0.\n\n")
    assert lines(done.out)[2:] == [
        ["CONDITION", "WANTED", "SERVICES", "NEAREST", "ACTUAL"],
        ["capability", "translate", "1", "-", "translate"],
        ["capability_version", "^2", "0", "1.5.0", "1.5.0"],
    ]
    program.run_ok("unregister", "translator")
    assert "it was unregistered at 20" in program.run_ok("explain", "translator").out
    shown = lines(program.run_ok("events", "translator", "--since", "1h", "--limit", "5").out)
    assert [line[2:4] for line in shown[1:]] == [["registered", "translator"], ["unregistered", "translator"]]
    assert program.run("events", "--since", "soon").code == 2
    assert program.run_ok("explain", "-o", "json").json["summary"] == "No service is registered."


def test_search_finds_services_by_words(program: Program) -> None:
    register(program, "polyglot", "--capability", "translate@1.5.0", "--description", "Translates contracts")
    done = program.run_ok("search", "contract", "translation")
    assert lines(done.out)[0] == ["NAME", "SCORE", "HEALTH", "MATCHES", "DESCRIPTION"]
    row = lines(done.out)[1]
    assert [row[0], *row[2:]] == ["polyglot", "healthy", "translate", "Translates", "contracts"]
    assert program.run_ok("search", "transalte", "-o", "name").out == "polyglot\n"
    (result,) = program.run_ok("search", "translate", "-o", "json").json
    assert (result["service"]["name"], result["matchedCapabilities"]) == ("polyglot", ["translate"])
    assert "no service has these words" in program.run("search", "zebra").err


def test_stats_prints_counts(program: Program) -> None:
    register(program, "a", "--capability", "x@1")
    shown = program.run_ok("stats", "-o", "json").json
    assert (shown["totalServices"], shown["healthyServices"], shown["averageCapabilitiesPerService"]) == (1, 1, 1.0)
    assert ["services", "1"] in lines(program.run_ok("stats").out)


def test_maintenance_starts_and_ends(program: Program) -> None:
    register(program, "beats")
    program.run_ok("register", "probed", "http://probed.test", "--version", "1")

    done = program.run_ok("maintenance", "on", "beats", "probed", "--reason", "new disk")
    assert done.out == "beats is in maintenance\nprobed is in maintenance\n"
    assert [each["error"] for each in json.loads(program.run("health", "beats", "probed", "-o", "json").out)] == [
        "new disk",
        "new disk",
    ]
    assert program.run_ok("maintenance", "off", "beats", "probed").out == "beats is healthy\nprobed is unknown\n"


def test_maintenance_off_keeps_the_status_of_other_services(program: Program) -> None:
    register(program, "a")
    done = program.run("maintenance", "off", "a", "missing")
    assert (done.code, done.out) == (3, "a is healthy\n")
    assert "service 'missing' is not registered" in done.err


def test_cleanup_prints_the_number_of_removed_services(program: Program) -> None:
    assert program.run("cleanup") == (0, "", "ossa-registry: services removed: 0\n")
    assert program.run_ok("cleanup", "-o", "json").json == {"servicesRemoved": 0, "names": []}


def test_version_prints_the_same_as_the_option(program: Program) -> None:
    shown = program.run_ok("version", "-o", "json").json
    assert shown["ossa-registry"] in program.run_ok("--version").out
    assert ["ossa-registry", shown["ossa-registry"]] in lines(program.run_ok("version").out)


def test_register_tells_new_changed_and_unchanged_services_apart(program: Program) -> None:
    args = ("register", "a", "http://a.test", "--health-check", "heartbeat", "--version")
    for version, expected in (("1", "registered"), ("1", "unchanged"), ("2", "updated"), ("2", "unchanged")):
        assert program.run_ok(*args, version).out.startswith(f"a {expected}, revision ")


@pytest.mark.parametrize(("capability", "warnings"), [("foo@bar", 1), ("foo@1", 0), ("foo", 0)])
def test_capability_version_without_digits_is_warned_about(program: Program, capability: str, warnings: int) -> None:
    done = program.run("register", "a", "http://a.test", *SERVICE, "--capability", capability)
    assert done.code == 0
    assert done.err.count("its version 'bar', which is not a version number") == done.err.count("\n") == warnings


def test_connection_and_output_options_may_precede_the_command(program: Program) -> None:
    register(program, "a")
    assert program.run_ok("-o", "name", "list").out == "a\n"
    done = program.run("--target=127.0.0.1:1", "--quiet", "list")
    assert (done.code, done.out) == (4, "")
    assert "127.0.0.1:1: connection refused" in done.err


def test_debug_option_may_follow_the_command() -> None:
    done = subprocess.run(
        [PROGRAM, "list", "-t", "127.0.0.1:1", "--debug"], capture_output=True, encoding="utf-8", check=False
    )
    assert "Traceback" in done.stderr


def test_lease_is_measured_by_the_clock_of_the_registry(program: Program) -> None:
    register(program, "a", "--ttl", "3600")
    code = (
        "import datetime, sys\n"
        "class Late(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return datetime.datetime.now(tz) + datetime.timedelta(hours=2)\n"
        "import registry_cli.output, registry_cli.commands.health\n"
        "registry_cli.output.datetime = registry_cli.commands.health.datetime = Late\n"
        "from registry_cli.main import main\n"
        "main(['health', 'a'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=program.environment({}), capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r" 59m | 1h ", done.stdout)
