"""Failures: one line of text and a stable exit code."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from registry_cli.main import COMMANDS
from registry_client.testing import RegistryProcess
from tests.cli.program import PROGRAM, TIMEOUT, Program

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

# A valid invocation of each command that calls a registry.
INVOCATIONS = {
    "register": ("register", "a", "http://a.test", "--version", "1"),
    "list": ("list",),
    "get": ("get", "a"),
    "describe": ("describe", "a"),
    "health": ("health",),
    "check": ("check", "a"),
    "heartbeat": ("heartbeat", "a"),
    "watch": ("watch",),
    "unregister": ("unregister", "a"),
    "capabilities": ("capabilities",),
    "search": ("search", "words"),
    "explain": ("explain", "a"),
    "events": ("events",),
    "stats": ("stats",),
    "maintenance": ("maintenance", "on", "a"),
    "whoami": ("whoami",),
    "cleanup": ("cleanup",),
}


def test_every_command_with_a_connection_is_tested() -> None:
    others = {"serve", "run", "healthcheck", "import", "backup", "restore", "keys", "completion", "version"}
    assert INVOCATIONS.keys() == COMMANDS.keys() - others


@pytest.mark.parametrize("command", INVOCATIONS)
def test_unreachable_registry_fails_immediately(program: Program, command: str) -> None:
    # Fails long before --timeout: without --retry there is only one attempt.
    done = program.run(*INVOCATIONS[command], "--target", "127.0.0.1:1", "--timeout", "600")
    assert done == (
        4,
        "",
        "ossa-registry: cannot reach the registry at 127.0.0.1:1: connection refused; is it running?\n",
    )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("lst",), "No such command 'lst'. Did you mean 'list'?"),
        (("register",), "Missing NAME and ENDPOINT, or -f FILE."),
        (("register", "a", "http://a.test"), "Missing --version"),
        (("register", "a", "-f", "x.yaml"), "either NAME and ENDPOINT or --file"),
        (("register", "--tag", "t", "-f", "x.yaml"), "either NAME and ENDPOINT or --file"),
        (("register", "a", "http://a.test", "--version", "1", "--drain", "1"), "require --keep-alive"),
        (("register", "a", "http://a.test", "--version", "1", "--keep-alive", "--dry-run"), "cannot be combined with"),
        (("register", "a", "http://a.test", "--version", "1", "--label", "x"), "'x' is not KEY=VALUE"),
        (("register", "a", "http://a.test", "--version", "1", "--health-check", "x"), "'x' is not one of 'http'"),
        (("list", "extra"), "unexpected extra argument"),
        (("list", "--limt", "3"), "No such option '--limt'"),
        (("list", "--limit", "0"), "0 is not in the range"),
        (("list", "--health", "ill"), "'ill' is not one of 'healthy'"),
        (("get",), "Missing argument 'NAME...'"),
        (("health", "-o", "wide"), "'wide' is not one of 'table', 'json', 'yaml'"),
        (("check",), "Missing argument 'NAME...'"),
        (("heartbeat",), "Missing argument 'NAME...'"),
        (("watch", "--snapshot", "--cursor", "x"), "--cursor cannot be combined with --snapshot"),
        (("watch", "--type", "x"), "'x' is not one of"),
        (("unregister",), "Missing argument 'NAME...'"),
        (("unregister", "a", "b", "--if-revision", "1"), "--if-revision requires a single NAME"),
        (("capabilities", "x"), "unexpected extra argument"),
        (("stats", "--timeout", "0"), "0.0 is not in the range"),
        (("maintenance", "perhaps", "a"), "'perhaps' is not one of 'on', 'off'"),
        (("maintenance", "off", "a", "--reason", "x"), "--reason requires 'on'"),
        (("cleanup", "x"), "unexpected extra argument"),
        (("completion", "ksh"), "'ksh' is not one of 'bash', 'zsh', 'fish'"),
        (("version", "x"), "unexpected extra argument"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_hint(program: Program, args: tuple[str, ...], expected: str) -> None:
    done = program.run(*args)
    assert (done.code, done.out) == (2, "")
    assert expected in done.err
    assert f"Try 'ossa-registry{'' if args[0] == 'lst' else f' {args[0]}'} --help' for help." in done.err


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (("list", "--name", "("), 2, "--name: is not a valid RE2 pattern: missing ): ("),
        (("list", "--capability-version", "^1"), 2, "--capability-version: "),
        (("register", "a b", "file://x", "--version", "1", "--ttl", "1"), 2, "name: 'a b' is not a name"),
        (("register", "a b", "file://x", "--version", "1", "--ttl", "1"), 2, "endpoint: "),
        (("register", "a b", "file://x", "--version", "1", "--ttl", "1"), 2, "ttlSeconds: "),
        (("get", "a"), 3, "service 'a' is not registered"),
        (("get", "a:b"), 2, "name: 'a:b' is not a name"),
        (("check", "a"), 3, "service 'a' is not registered"),
        (("watch", "--cursor", "x"), 2, "cursor: is not a cursor of this registry"),
        (
            ("list", "-t", "unknown.invalid:1"),
            4,
            "cannot reach the registry at unknown.invalid:1: the host name cannot",
        ),
        (("list", "--tls"), 4, "the server does not use TLS"),
        (("list", "--ca-file", "no.pem"), 2, "cannot read no.pem: No such file or directory"),
        (("list", "--token-file", "no.txt"), 6, "cannot read the token from no.txt"),
    ],
)
def test_rejected_requests_have_exit_codes_and_one_line_per_field(
    program: Program, args: tuple[str, ...], code: int, expected: str
) -> None:
    done = program.run(*args)
    assert done.code == code, done
    assert expected in done.err
    assert all(line.startswith("ossa-registry: ") for line in done.err.splitlines())


def test_next_target_is_tried(program: Program) -> None:
    assert program.run_ok("list", "-t", "127.0.0.1:1", "-t", program.target, "-o", "json").json == []
    assert program.run_ok("list", "-t", f"127.0.0.1:1,{program.target}", "-o", "json").json == []


def test_retry_waits_until_the_registry_starts(program: Program, registry: RegistryProcess) -> None:
    registry.kill()
    with program.start("health", "-o", "json", "--retry", "--timeout", "60") as running:
        registry.start()
        done = running.wait()
    assert done.code == 0, done


def test_http_server_on_the_port_is_reported(program: Program) -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as target:
        done = program.run("list", "-t", target)
    assert done == (
        4,
        "",
        f"ossa-registry: cannot reach the registry at {target}: the server does not speak gRPC\n",
    )


def test_silent_port_is_reported_after_the_timeout(program: Program) -> None:
    with listening(b"") as target:
        done = program.run("list", "-t", target, "--timeout", "1")
    assert done.code == 4
    assert target in done.err
    assert done.err.count("\n") == 1


def test_other_grpc_server_on_the_port_is_reported(program: Program) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        done = program.run("list", "-t", f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    assert done.code == 1
    assert "is not an ossa-registry" in done.err


@contextmanager
def listening(response: bytes, called: threading.Event | None = None) -> Iterator[str]:
    """A TCP server that sends the bytes and disconnects, or, if there are none, keeps connections open silently."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                if called is not None:
                    called.set()
                if response:
                    peer.recv(65_536)
                    peer.sendall(response)
                    peer.close()
                else:
                    held.append(peer)

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = server.getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for peer in held:
                peer.close()


def test_closed_output_pipe_exits_with_141(program: Program) -> None:
    services = "\n---\n".join(
        f'{{name: s{at}, endpoint: "http://x.test/{"x" * 1900}", version: "1"}}' for at in range(99)
    )
    program.run_ok("register", "-f", "-", stdin=services)
    reader, writer = os.pipe()
    with subprocess.Popen(
        [PROGRAM, "list"], env=program.environment({}), stdout=writer, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        os.close(writer)
        os.read(reader, 10)
        os.close(reader)
        _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (141, "")


def test_full_disk_is_reported(program: Program) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a device, not a path of ours
        done = subprocess.run(
            [PROGRAM, "--help"],
            env=program.environment({}),
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
        listed = subprocess.run(
            [PROGRAM, "list"],
            env=program.environment({}),
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
    assert done.returncode != 0
    assert listed.returncode == 1
    assert listed.stderr == "ossa-registry: input/output error: No space left on device\n"


def test_ctrl_c_exits_with_130_without_output(program: Program) -> None:
    called = threading.Event()
    with listening(b"", called) as target, program.start("list", "-t", target, "--timeout", "600") as running:
        assert called.wait(TIMEOUT)
        done = running.stop(signal.SIGINT)
    assert done == (130, "", "")


def test_debug_prints_the_traceback(program: Program) -> None:
    done = subprocess.run(
        [PROGRAM, "--debug", "get", "a", "-t", "127.0.0.1:1"],
        env=program.environment({}),
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RegistryUnavailable" in done.stderr


def test_server_ignores_variables_of_the_client_commands(program: Program) -> None:
    names = ("TARGET", "TIMEOUT", "TOKEN", "TOKEN_FILE", "USE_TLS", "CA_FILE", "CERT_FILE", "KEY_FILE")
    done = program.run("serve", "--workers=x", **{f"OSSA_REGISTRY_{name}": "1" for name in names})
    assert done.code == 2
    assert [line.split(": ")[1] for line in done.err.splitlines()] == ["--workers"]
