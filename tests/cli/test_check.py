"""``check``: immediate probes and their exit codes."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from registry_client.testing import RegistryProcess
from tests.cli.program import Program, lines

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)


class Agent(BaseHTTPRequestHandler):
    """Responds with 200 to every request."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"load": 1}')

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


@pytest.fixture
def agent() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Agent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def probing(program: Program, tmp_path: Path) -> Iterator[Program]:
    """The command line, configured for a registry that probes on request and otherwise once an hour."""
    del program
    with RegistryProcess("--health-check.enabled=true", "--health-check.interval-ms=3600000") as registry:
        yield Program(registry.target, tmp_path)


def test_exit_code_reflects_the_status(probing: Program, agent: str) -> None:
    probing.run_ok("register", "up", agent, "--version", "1")
    probing.run_ok("register", "down", "http://127.0.0.1:1", "--version", "1")

    header, row = lines(probing.run_ok("check", "up").out)
    assert header == ["NAME", "HEALTH", "CHECKED", "RESPONSE", "ERROR"]
    assert row[:2] == ["up", "healthy"]
    assert row[-2:] == ["ms", "-"]
    done = probing.run("check", "down", "-o", "json")
    assert (done.code, done.err) == (7, "")
    assert (done.json["status"], done.json["error"]) == ("unhealthy", "connection refused")
    done = probing.run("check", "up", "down", "-o", "json")
    assert done.code == 7
    assert [each["status"] for each in done.json] == ["healthy", "unhealthy"]
    assert probing.run("check", "missing", "up").code == 3


def test_check_fails_if_probing_is_disabled(program: Program) -> None:
    program.run_ok("register", "a", "http://a.test", "--version", "1")
    done = program.run("check", "a")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("ossa-registry: ")
