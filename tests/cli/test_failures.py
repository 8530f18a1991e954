"""What goes wrong is one plain line and an exit code that scripts can rely on."""

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
from tests.cli.program import PATIENCE, PROGRAM, Program

# Many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

# A good call of each command that talks to a registry.
CALLS = {
    "register": ("register", "a", "http://a.test", "--version", "1"),
    "list": ("list",),
    "get": ("get", "a"),
    "health": ("health",),
    "check": ("check", "a"),
    "heartbeat": ("heartbeat", "a"),
    "watch": ("watch",),
    "unregister": ("unregister", "a"),
    "capabilities": ("capabilities",),
    "stats": ("stats",),
    "maintenance": ("maintenance", "on", "a"),
    "cleanup": ("cleanup",),
}


def test_every_command_that_talks_is_here() -> None:
    assert CALLS.keys() == COMMANDS.keys() - {"serve", "keys", "completion", "version"}


@pytest.mark.parametrize("command", CALLS)
def test_nobody_there_is_told_at_once(program: Program, command: str) -> None:
    # Well below the time that a call may take: nobody waits for who is not there.
    done = program.run(*CALLS[command], "--target", "127.0.0.1:1", "--timeout", "600")
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
        (("register", "a", "-f", "x.yaml"), "either NAME and ENDPOINT or files"),
        (("register", "--tag", "t", "-f", "x.yaml"), "either NAME and ENDPOINT or files"),
        (("register", "a", "http://a.test", "--version", "1", "--drain", "1"), "go with --keep-alive"),
        (("register", "a", "http://a.test", "--version", "1", "--keep-alive", "--dry-run"), "goes without"),
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
        (("watch", "--snapshot", "--cursor", "x"), "--cursor goes on without a snapshot"),
        (("watch", "--type", "x"), "'x' is not one of"),
        (("unregister",), "Missing argument 'NAME...'"),
        (("unregister", "a", "b", "--if-revision", "1"), "--if-revision goes with one name"),
        (("capabilities", "x"), "unexpected extra argument"),
        (("stats", "--timeout", "0"), "0.0 is not in the range"),
        (("maintenance", "perhaps", "a"), "'perhaps' is not one of 'on', 'off'"),
        (("maintenance", "off", "a", "--reason", "x"), "--reason goes with on"),
        (("cleanup", "x"), "unexpected extra argument"),
        (("completion", "ksh"), "'ksh' is not one of 'bash', 'zsh', 'fish'"),
        (("version", "x"), "unexpected extra argument"),
    ],
)
def test_wrong_usage(program: Program, args: tuple[str, ...], expected: str) -> None:
    done = program.run(*args)
    assert (done.code, done.out) == (2, "")
    assert expected in done.err
    assert f"Try 'ossa-registry{'' if args[0] == 'lst' else f' {args[0]}'} --help' for help." in done.err


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (("list", "--name", "("), 2, "--name: RE2 refuses this pattern: missing ): ("),
        (("list", "--capability-version", "^1"), 2, "--capability-version: "),
        (("register", "a b", "ftp://x", "--version", "1", "--ttl", "1"), 2, "name: 'a b' is not a name"),
        (("register", "a b", "ftp://x", "--version", "1", "--ttl", "1"), 2, "endpoint: "),
        (("register", "a b", "ftp://x", "--version", "1", "--ttl", "1"), 2, "ttlSeconds: "),
        (("get", "a"), 3, "service 'a' is not registered"),
        (("get", "a/b"), 2, "name: 'a/b' is not a name"),
        (("check", "a"), 3, "service 'a' is not registered"),
        (("watch", "--cursor", "x"), 2, "cursor: is not a cursor of this registry"),
        (("list", "-t", "nobody.invalid:1"), 4, "cannot reach the registry at nobody.invalid:1: the host name is not"),
        (("list", "--tls"), 4, "the port there does not speak TLS"),
        (("list", "--ca-file", "no.pem"), 2, "no.pem: cannot be read: No such file or directory"),
        (("list", "--token-file", "no.txt"), 6, "the token cannot be read from no.txt"),
    ],
)
def test_refusals(program: Program, args: tuple[str, ...], code: int, expected: str) -> None:
    done = program.run(*args)
    assert done.code == code, done
    assert expected in done.err
    assert all(line.startswith("ossa-registry: ") for line in done.err.splitlines())


def test_the_next_target_is_tried(program: Program) -> None:
    assert program.good("list", "-t", "127.0.0.1:1", "-t", program.target, "-o", "json").json == []
    assert program.good("list", "-t", f"127.0.0.1:1,{program.target}", "-o", "json").json == []


def test_retry_waits_for_a_registry_that_starts(program: Program, registry: RegistryProcess) -> None:
    registry.kill()
    with program.started("health", "-o", "json", "--retry", "--timeout", "60") as running:
        registry.start()
        done = running.wait()
    assert done.code == 0, done


def test_an_http_server_on_the_port(program: Program) -> None:
    with listening(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as target:
        done = program.run("list", "-t", target)
    assert done == (
        4,
        "",
        f"ossa-registry: cannot reach the registry at {target}: the program there does not speak gRPC\n",
    )


def test_a_port_that_says_nothing(program: Program) -> None:
    with listening(b"") as target:
        done = program.run("list", "-t", target, "--timeout", "1")
    assert done.code == 4
    assert target in done.err
    assert done.err.count("\n") == 1


def test_another_grpc_server_on_the_port(program: Program) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        done = program.run("list", "-t", f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    assert done.code == 1
    assert "speaks gRPC but is no ossa-registry" in done.err


@contextmanager
def listening(answer: bytes, called: threading.Event | None = None) -> Iterator[str]:
    """Something else on a port, which says this to everybody and hangs up, or says nothing and holds on."""
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
                if answer:
                    peer.recv(65_536)
                    peer.sendall(answer)
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


def test_a_reader_that_goes_away_is_no_error(program: Program) -> None:
    services = "\n---\n".join(
        f'{{name: s{at}, endpoint: "http://x.test/{"x" * 1900}", version: "1"}}' for at in range(99)
    )
    program.good("register", "-f", "-", stdin=services)
    ours, its = os.pipe()
    with subprocess.Popen(
        [PROGRAM, "list"], env=program.environment({}), stdout=its, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        os.close(its)
        os.read(ours, 10)
        os.close(ours)
        _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (141, "")


def test_a_full_disk_is_told(program: Program) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123 - a device, not a path of ours
        done = subprocess.run(
            [PROGRAM, "--help"],
            env=program.environment({}),
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )
        listed = subprocess.run(
            [PROGRAM, "list"],
            env=program.environment({}),
            stdout=full,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode != 0
    assert listed.returncode == 1
    assert listed.stderr == "ossa-registry: cannot go on: No space left on device\n"


def test_ctrl_c_ends_with_130_and_says_nothing(program: Program) -> None:
    called = threading.Event()
    with listening(b"", called) as target, program.started("list", "-t", target, "--timeout", "600") as running:
        assert called.wait(PATIENCE)
        done = running.end(signal.SIGINT)
    assert done == (130, "", "")


def test_debug_shows_the_traceback(program: Program) -> None:
    done = subprocess.run(
        [PROGRAM, "--debug", "get", "a", "-t", "127.0.0.1:1"],
        env=program.environment({}),
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RegistryUnavailable" in done.stderr


def test_variables_of_the_command_line_do_not_stop_the_server(program: Program) -> None:
    names = ("TARGET", "TIMEOUT", "TOKEN", "TOKEN_FILE", "USE_TLS", "CA_FILE", "CERT_FILE", "KEY_FILE")
    done = program.run("serve", "--workers=x", **{f"OSSA_REGISTRY_{name}": "1" for name in names})
    assert done.code == 2
    assert [line.split(": ")[1] for line in done.err.splitlines()] == ["--workers"]
