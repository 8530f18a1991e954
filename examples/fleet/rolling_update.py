"""Rolling update of five agents behind stable endpoints, while clients call them: ``python rolling_update.py``.

The old and the new process of each agent overlap under one name. One old process is killed while it drains. In the
middle the registry restarts, with another command if ``--upgraded-registry`` is given. The program ends with exit code
1 if a call failed or a record was wrong at any time.
"""

import argparse
import asyncio
import os
import shlex
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from registry_client import EventType, HealthStatus, NoEndpoint, RegistryClient, Service

OLD, NEW = "1.0.0", "2.0.0"
AGENTS = 5
CALLERS = 4
TIMEOUT_SECONDS = 60.0
REGISTRY = shlex.join([sys.executable, "-m", "registry_server"])


class Process:
    """A program whose output is read line by line."""

    started: ClassVar[list["Process"]] = []

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._lines: set[str] = set()
        self._read = asyncio.create_task(self._read_lines())
        self._changed = asyncio.Event()

    @classmethod
    async def start(cls, *command: str, env: dict[str, str] | None = None, fd: int | None = None) -> "Process":
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **(env or {})},
            pass_fds=() if fd is None else (fd,),
            stdout=asyncio.subprocess.PIPE,
        )
        cls.started.append(cls(process))
        return cls.started[-1]

    async def printed(self, line: str) -> None:
        """Wait until the program has printed a line."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while line not in self._lines:
                if self._read.done():
                    raise RuntimeError(f"a program ended without printing {line!r}")
                self._changed.clear()
                await self._changed.wait()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and wait until the program has ended."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self.process.wait()

    async def _read_lines(self) -> None:
        while self.process.stdout is not None and (line := await self.process.stdout.readline()):
            self._lines.add(line.decode().strip())
            self._changed.set()
        self._changed.set()


class Registry:
    """A registry that keeps its address and its data when it restarts."""

    def __init__(self, data: Path) -> None:
        self.target = f"127.0.0.1:{free_port()}"
        self._data = data
        self._running: Process | None = None

    async def start(self, command: str) -> None:
        flags = [f"--grpc.address={self.target}", "--http.address=127.0.0.1:0", f"--data-dir={self._data}"]
        self._running = await Process.start(*shlex.split(command), *flags, "--log.level=warning", "--log.audit=off")
        async with asyncio.timeout(TIMEOUT_SECONDS), RegistryClient(self.target, timeout=TIMEOUT_SECONDS) as client:
            await client.get_stats()

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.end()


class Agent:
    """A name with its stable endpoint, and the processes that serve it one after another."""

    def __init__(self, number: int, target: str) -> None:
        self.name = f"worker-{number}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._target = target

    async def start(self, version: str) -> Process:
        """Start a process of the agent; return once it has registered."""
        fd = self._listener.fileno()
        command = (sys.executable, str(Path(__file__).with_name("agent.py")))
        started = await Process.start(
            *command, self.name, self._endpoint, version, str(fd), env={"REGISTRY": self._target}, fd=fd
        )
        await started.printed("registered")
        return started


class Observer:
    """Calls the agents and reads their records all the time, and notes all that is wrong."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self.calls: Counter[str] = Counter()
        """Successful calls by the version that answered."""
        self.records = 0
        self.wrong: list[str] = []
        self.leaving = False
        """Whether the fleet is about to be stopped, so that names may be unregistered."""
        self._versions: dict[str, str] = {}

    async def call(self) -> None:
        """Call one agent after another, without a second attempt."""
        async with self._client.cache(capability="work") as cache:
            while not self.leaving:
                try:
                    endpoint = urlsplit(cache.resolve("work").endpoint)
                    async with asyncio.timeout(TIMEOUT_SECONDS):
                        reader, writer = await asyncio.open_connection(endpoint.hostname, endpoint.port)
                        answer = (await reader.read()).decode()
                        writer.close()
                    if answer not in (OLD, NEW):
                        raise ConnectionError(f"the answer was {answer!r}")
                    self.calls[answer] += 1
                except (OSError, NoEndpoint) as error:
                    self.wrong.append(f"call failed: {error!r}")
                await asyncio.sleep(0.01)

    async def watch(self) -> None:
        """Check each change of a record."""
        async for event in self._client.watch(group="fleet", include_snapshot=True):
            if not self.leaving:
                self._check(event.type, event.service)

    def _check(self, kind: EventType.ValueType, service: Service) -> None:
        self.records += 1
        is_new = service.version == NEW or self._versions.get(service.name) == NEW
        status = HealthStatus.Name(service.health.status).removeprefix("HEALTH_STATUS_")
        change = EventType.Name(kind).removeprefix("EVENT_TYPE_SERVICE_")
        found = f"{change} {service.name} {service.version} {status}{' draining' if service.draining else ''}"
        if (
            kind == EventType.EVENT_TYPE_SERVICE_UNREGISTERED
            or service.health.status != HealthStatus.HEALTH_STATUS_HEALTHY
            or (is_new and (service.version != NEW or service.draining))
        ):
            self.wrong.append(f"wrong record: {found}")
        self._versions[service.name] = service.version
        print(" ", found, flush=True)


async def roll(agents: list[Agent], old: list[Process], registry: Registry, options: argparse.Namespace) -> None:
    """Replace the processes one by one; restart the registry while the middle one has two."""
    ending = []
    for number, (agent, leaving) in enumerate(zip(agents, old, strict=True)):
        if number == options.kill:
            print(f"{agent.name}: the old process drains, the new one starts, the old one is killed", flush=True)
            leaving.process.send_signal(signal.SIGTERM)
            successor = await agent.start(NEW)
            await leaving.printed("idle")
            await leaving.end(signal.SIGKILL)
        else:
            print(f"{agent.name}: the new process starts, the old one leaves", flush=True)
            successor = await agent.start(NEW)
            if number == options.restart:
                print("the registry restarts", flush=True)
                await registry.stop()
                await registry.start(options.upgraded_registry)
            ending.append(asyncio.create_task(leaving.end()))
        old[number] = successor
    await asyncio.gather(*ending)


async def main(options: argparse.Namespace) -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="ossa-") as data:
            registry = Registry(Path(data))
            await registry.start(options.registry)
            try:
                return await update(registry, options)
            finally:
                await registry.stop()
    finally:
        await asyncio.gather(*(process.end(signal.SIGKILL) for process in Process.started))


async def update(registry: Registry, options: argparse.Namespace) -> int:
    agents = [Agent(number, registry.target) for number in range(1, AGENTS + 1)]
    processes = [await agent.start(OLD) for agent in agents]
    async with RegistryClient(registry.target, timeout=TIMEOUT_SECONDS) as client:
        async with observing(client) as observer:
            await asyncio.sleep(1)
            await roll(agents, processes, registry, options)
            await asyncio.sleep(options.afterwards)  # longer than a lease: what is registered now is kept alive
            found = await client.find_services(group="fleet")
        if {(each.name, each.version) for each in found} != {(agent.name, NEW) for agent in agents}:
            observer.wrong.append(f"wrong fleet: {[(each.name, each.version) for each in found]}")
        await asyncio.gather(*(process.end() for process in processes))
        if left := await client.find_services(group="fleet"):
            observer.wrong.append(f"not unregistered: {[each.name for each in left]}")
    calls = ", ".join(f"{count} by {version}" for version, count in sorted(observer.calls.items()))
    print(f"calls: {calls}; changes of records: {observer.records}")
    print("\n".join(observer.wrong) or "no failed call, no wrong record")
    return 1 if observer.wrong else 0


@asynccontextmanager
async def observing(client: RegistryClient) -> AsyncIterator[Observer]:
    """Call and watch the fleet during the block."""
    observer = Observer(client)
    watching = asyncio.create_task(observer.watch())
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(observer.call())
            try:
                yield observer
            finally:
                observer.leaving = True
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", default=REGISTRY, help="command of the registry (default: %(default)s)")
    parser.add_argument("--upgraded-registry", default=REGISTRY, help="command after its restart")
    parser.add_argument("--restart", type=int, default=2, help="index of the agent during whose overlap it restarts")
    parser.add_argument("--kill", type=int, default=3, help="index of the agent whose old process is killed")
    parser.add_argument("--afterwards", type=float, default=6.0, help="seconds to observe after the last step")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parse_options())))
