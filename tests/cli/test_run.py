"""``run``: a program of any language is registered while it runs."""

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from registry_client import SyncRegistryClient
from registry_client.testing import RegistryProcess
from tests.cli.program import TIMEOUT, Program, Running
from tests.support.redis_process import free_port

# Starts many processes, each of which takes a second or more on a busy machine.
pytestmark = pytest.mark.timeout(300)

AGENT = """
import pathlib, signal, socket, sys, time
port, code = int(sys.argv[1]), int(sys.argv[2])
signal.alarm(300)  # ends it if the test fails and kills only the command that runs it
pathlib.Path("started").touch()
while not pathlib.Path("open").exists():
    time.sleep(0.02)
listener = socket.create_server(("127.0.0.1", port))
ended = []
def note(number, _):
    print("got", signal.Signals(number).name, flush=True)
    if number in (signal.SIGTERM, signal.SIGINT):
        ended.append(number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, note)
print("listening", flush=True)
while not ended or not pathlib.Path("finish").exists():
    time.sleep(0.02)
sys.exit(code)
"""


class Agent:
    """An agent that listens when the file ``open`` exists, and ends with a signal when ``finish`` exists."""

    def __init__(self, program: Program, **fields: object) -> None:
        self.program = program
        self.port = free_port()
        service = {
            "name": "a",
            "endpoint": f"http://127.0.0.1:{self.port}",
            "version": "1",
            "healthCheck": {"type": "heartbeat"},
            "ttlSeconds": 5,
            **fields,
        }
        (program.directory / "agent.json").write_text(json.dumps(service), encoding="utf-8")
        (program.directory / "agent.py").write_text(AGENT, encoding="utf-8")

    def touch(self, *names: str) -> None:
        for name in names:
            (self.program.directory / name).touch()

    @contextmanager
    def run(self, *flags: str, code: int = 0) -> Iterator[Running]:
        command = (sys.executable, "agent.py", str(self.port), str(code))
        with self.program.start("run", "-f", "agent.json", *flags, "--", *command) as running:
            yield running


@pytest.fixture
def agent(program: Program) -> Agent:
    return Agent(program)


@pytest.fixture
def client(program: Program) -> Iterator[SyncRegistryClient]:
    with SyncRegistryClient(program.target, timeout=60) as client:
        yield client


def names(client: SyncRegistryClient) -> list[str]:
    return [service.name for service in client.find_services()]


def wait_until_file(program: Program, name: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not (program.directory / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_service_is_registered_from_when_it_answers_until_the_end(agent: Agent, client: SyncRegistryClient) -> None:
    with agent.run(code=7) as running:
        wait_until_file(agent.program, "started")
        assert names(client) == []
        agent.touch("open")
        running.wait_for("a is registered", err=True)
        service = client.get_service("a")
        assert service.instance_id
        assert not service.draining
        _, first = client.get_service_health("a")
        while client.get_service_health("a")[1] == first:  # heartbeats renew the lease
            pass
        agent.touch("finish")
        done = running.stop(signal.SIGTERM)
    assert (done.code, done.out) == (7, "listening\ngot SIGTERM\n")
    assert done.err.endswith("ossa-registry: a unregistered\n")
    assert names(client) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_service_drains_while_its_command_finishes(
    agent: Agent, client: SyncRegistryClient, number: signal.Signals
) -> None:
    agent.touch("open")
    with agent.run("--drain", "0.5") as running:
        running.wait_for("a is registered", err=True)
        running.send(number)
        running.wait_for(f"got {number.name}")
        assert client.get_service("a").draining
        agent.touch("finish")
        assert running.wait().code == 0
    assert names(client) == []


def test_second_signal_ends_the_drain(agent: Agent) -> None:
    agent.touch("open", "finish")
    with agent.run("--drain", "86400") as running:
        running.wait_for("a is registered", err=True)
        running.send(signal.SIGTERM)
        running.send(signal.SIGINT)
        assert running.wait().code == 0


def test_other_signals_are_forwarded_and_the_command_continues(agent: Agent, client: SyncRegistryClient) -> None:
    agent.touch("open", "finish")
    with agent.run() as running:
        running.wait_for("a is registered", err=True)
        running.send(signal.SIGHUP)
        running.wait_for("got SIGHUP")
        assert not client.get_service("a").draining
        assert running.stop(signal.SIGTERM).code == 0


def test_command_that_dies_is_unregistered_with_its_exit_code(program: Program, client: SyncRegistryClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = Agent(program, endpoint=f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        shell = "for _ in $(seq 5000); do [ -e finish ] && kill -9 $$; sleep 0.05; done"
        with program.start("run", "-f", "agent.json", "--", "sh", "-c", shell) as running:
            running.wait_for("a is registered", err=True)
            service.touch("finish")
            assert running.wait().code == 128 + signal.SIGKILL
    assert names(client) == []


def test_signal_reaches_what_a_shell_has_started(agent: Agent) -> None:
    agent.touch("open", "finish")
    shell = f"{sys.executable} agent.py {agent.port} 3; exit $?"
    with agent.program.start("run", "-f", "agent.json", "--", "sh", "-c", f"trap '' TERM; {shell}") as running:
        running.wait_for("a is registered", err=True)
        assert running.stop(signal.SIGTERM).code == 3


def test_command_runs_while_the_registry_is_away(agent: Agent, registry: RegistryProcess) -> None:
    agent.touch("open", "finish")
    registry.kill()
    with agent.run() as running:
        running.wait_for("listening")
        running.wait_for("a is not registered: ", err=True)
        registry.start()
        running.wait_for("a is registered", err=True)
        assert running.stop(signal.SIGTERM).code == 0


def test_agent_that_is_superseded_leaves_the_name_to_its_successor(agent: Agent, client: SyncRegistryClient) -> None:
    agent.touch("open", "finish")
    with agent.run() as old:
        old.wait_for("a is registered", err=True)
        with Agent(agent.program).run() as new:
            new.wait_for("a is registered", err=True)
            old.wait_for("a is no longer renewed: another process has registered a", err=True)
            done = old.stop(signal.SIGTERM)
            assert (done.code, "unregistered" in done.err) == (0, False)
            assert not client.get_service("a").draining
            assert new.stop(signal.SIGTERM).code == 0
    assert names(client) == []


def test_refused_service_ends_the_command(program: Program) -> None:
    agent = Agent(program, version="")
    agent.touch("open", "finish")
    with agent.run() as running:
        done = running.wait()
    assert done.code == 2
    assert "got SIGTERM" in done.out
    assert "ossa-registry: version: " in done.err


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (("-f", "agent.json", "--", "no-such-command"), 127, "cannot run no-such-command: No such file or directory"),
        (("-f", "agent.json", "--", "./agent.json"), 126, "cannot run ./agent.json: Permission denied"),
        (("-f", "no.yaml", "--", "true"), 2, "cannot read no.yaml: No such file or directory"),
        (("-f", "bad.yaml", "--", "touch", "ran"), 2, "bad.yaml: version: must be text, not the number 1"),
    ],
)
def test_bad_command_or_file_is_reported(agent: Agent, args: tuple[str, ...], code: int, expected: str) -> None:
    (agent.program.directory / "bad.yaml").write_text("{name: a, endpoint: http://a, version: 1}", encoding="utf-8")
    done = agent.program.run("run", *args)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith(f"ossa-registry: {expected}")
    assert not (agent.program.directory / "ran").exists()
