"""Terminal output: colours, and the escaping of untrusted text."""

import json

import pytest

from registry_client import SyncRegistryClient, make_service
from tests.cli.program import Program

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

HOSTILE = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e\r\n"
ESCAPED = r"\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e\r\n"
GREEN = "\x1b[32mhealthy\x1b[0m"


@pytest.fixture
def two(program: Program) -> Program:
    """A healthy and an unhealthy service, whose fields contain control characters."""
    with SyncRegistryClient(program.target, timeout=60) as client:
        hostile = make_service(
            "hostile", "http://a.test", version="1", capabilities=["c"], description=HOSTILE, author=HOSTILE,
            labels={"k": HOSTILE}, health_check="none",
        )  # fmt: skip
        hostile.capabilities[0].description = HOSTILE
        hostile.capabilities[0].inputs.update({HOSTILE: HOSTILE})
        client.register_service(hostile)
        client.report_service_health("hostile", "unhealthy", error=HOSTILE, details={"k": HOSTILE})
        client.register_service(make_service("other", "http://b.test", version="1", health_check="heartbeat"))
    return program


def test_colours_are_used_only_on_a_terminal(two: Program) -> None:
    code, written = two.run_on_terminal("list")
    assert code == 0
    assert GREEN in written
    assert "\x1b[31munhealthy\x1b[0m" in written
    assert "\x1b" not in two.run_ok("list").out


@pytest.mark.parametrize(
    ("flags", "variables"),
    [(("--no-color",), {}), (("--color", "never"), {}), ((), {"NO_COLOR": "1"}), ((), {"TERM": "dumb"})],
    ids=["--no-color", "--color never", "NO_COLOR", "TERM=dumb"],
)
def test_colours_can_be_disabled(two: Program, flags: tuple[str, ...], variables: dict[str, str]) -> None:
    code, written = two.run_on_terminal("list", *flags, **variables)
    assert (code, "\x1b" in written) == (0, False)
    assert "healthy" in written


def test_colours_can_be_forced(two: Program) -> None:
    assert GREEN in two.run_ok("list", "--color", "always").out
    assert GREEN in two.run("list", FORCE_COLOR="1").out
    assert GREEN in two.run("list", "--color", "always", NO_COLOR="1").out


def test_json_and_yaml_have_no_colours(two: Program) -> None:
    for form in ("json", "yaml"):
        code, written = two.run_on_terminal("list", "-o", form)
        assert (code, "\x1b" in written) == (0, False)


@pytest.mark.parametrize(
    "args",
    [
        ("list", "-o", "wide"),
        ("get", "hostile", "-o", "wide"),
        ("health", "hostile"),
        ("describe", "hostile"),
        ("capabilities", "-o", "wide"),
        ("watch", "--snapshot", "--count", "2"),
        *((*command, "-o", form) for command in (("list",), ("health", "hostile")) for form in ("json", "yaml")),
        ("watch", "--snapshot", "--count", "2", "-o", "json"),
    ],
    ids=" ".join,
)
def test_control_characters_never_reach_the_terminal(two: Program, args: tuple[str, ...]) -> None:
    _, written = two.run_on_terminal(*args, "--no-color")
    assert "hostile" in written
    assert all(line.isprintable() for line in written.split("\n")), ascii(written)
    if "wide" in args:
        assert ESCAPED in written


def test_json_preserves_control_characters(two: Program) -> None:
    shown = json.loads(two.run_ok("get", "hostile", "-o", "json").out)
    assert shown["metadata"]["description"] == HOSTILE
    assert shown["capabilities"][0]["inputs"] == {HOSTILE: HOSTILE}


def test_errors_contain_no_control_characters(program: Program) -> None:
    for args in (("get", HOSTILE), ("register", "-f", HOSTILE), ("list", "--name", f"({HOSTILE}")):
        code, written = program.run_on_terminal(*args)
        assert code in {2, 3}
        assert all(line.isprintable() for line in written.split("\n")), ascii(written)
    (program.directory / "x.yaml").write_text('name: "\\e[2J"\nversion: 1\n"\\e[2J": 1', encoding="utf-8")
    code, written = program.run_on_terminal("register", "-f", "x.yaml")
    assert code == 1
    assert all(line.isprintable() for line in written.split("\n")), ascii(written)


def test_characters_outside_the_terminal_encoding_are_escaped(two: Program) -> None:
    with SyncRegistryClient(two.target, timeout=60) as client:
        client.register_service(make_service("wide", "http://c.test", version="1", tags=["日本"]))
    done = two.run("list", "-o", "wide", PYTHONIOENCODING="latin-1")
    assert done.code == 0
    assert r"\u65e5\u672c" in done.out
    shown = two.run("get", "wide", "-o", "json", PYTHONIOENCODING="latin-1")
    assert shown.json["metadata"]["tags"] == ["日本"]


def test_token_is_never_printed(program: Program) -> None:
    token = "secret-of-the-registry"
    for args in (("list",), ("get", "a"), ("list", "-t", "127.0.0.1:1"), ("list", "--tls")):
        done = program.run(*args, OSSA_REGISTRY_TOKEN=token)
        assert token not in done.out + done.err
    assert token not in program.run("list", "--help", OSSA_REGISTRY_TOKEN=token).out


def test_unencrypted_token_is_warned_about(program: Program) -> None:
    notice = "ossa-registry: the token is sent unencrypted; see --tls\n"
    assert notice in program.run("list", "-t", "unknown.invalid:1", OSSA_REGISTRY_TOKEN="x").err
    assert notice not in program.run("list", "-t", "unknown.invalid:1", "--tls", OSSA_REGISTRY_TOKEN="x").err
    assert notice not in program.run("list", "-t", "unknown.invalid:1", "--quiet", OSSA_REGISTRY_TOKEN="x").err
    assert notice not in program.run("list", OSSA_REGISTRY_TOKEN="x").err


def test_tables_fit_the_terminal(two: Program) -> None:
    for args in (("list",), ("health", "hostile", "other"), ("capabilities",), ("watch", "--snapshot", "--count", "2")):
        code, written = two.run_on_terminal(*args, "--no-color", "--quiet", COLUMNS="60")
        assert code in {0, 7}
        assert max(map(len, written.splitlines())) <= 60
        assert "hostile" in written
    assert max(map(len, two.run_on_terminal("list", "-o", "wide", COLUMNS="60")[1].splitlines())) > 60
