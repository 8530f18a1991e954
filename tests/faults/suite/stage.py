"""The environment of a run: a Redis deployment and two registry processes."""

import asyncio
import shutil
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from redis.asyncio import Redis

from ossa.registry.v1.service_pb2 import Service
from registry_server.store.keys import Keys
from tests.faults.suite.history import FinalState, States
from tests.faults.suite.proxy import Proxy
from tests.support.deployments import Cluster, Watched, client_of, cluster, role_of, watched
from tests.support.redis_process import RedisProcess, find_redis_server, free_port
from tests.support.server import ServerProcess

Deployment = Literal["alone", "sentinel", "cluster"]

PROCESSES = 2
RECOVERY_TIMEOUT_SECONDS = 60.0
"""Time limit for recovery, in seconds."""
_CLUSTER_PREFIX = "{ossa}:services"
# SIGXFSZ is ignored, so that write() fails at the file size limit, as it does on a full disk.
_REDIS = """#!/bin/sh
trap '' XFSZ
{preload}
exec '{binary}' "$@"
"""
COMPILER = shutil.which("cc")
"""C compiler that builds the clock library; ``None`` if there is none."""


class Stage:
    """The environment of one run.

    Attributes:
        servers: All Redis servers; the first one is the initial primary.
        sentinel: The Sentinel deployment, if Redis runs under Sentinel.
        processes: The registry processes.
        links: Proxies between each process and Redis, if requested.
        fronts: Proxies between clients and each process, if requested.
    """

    def __init__(self, deployment: Deployment, directory: Path) -> None:
        self.deployment, self.directory = deployment, directory
        self.servers: list[RedisProcess] = []
        self.sentinel: Watched | None = None
        self.cluster: Cluster | None = None
        self.processes: list[ServerProcess] = []
        self.links: list[Proxy] = []
        self.fronts: list[Proxy] = []
        self.ports = [free_port() for _ in range(PROCESSES)]
        self.keys = Keys.under(_CLUSTER_PREFIX if deployment == "cluster" else "ossa:services")

    def address(self, process: int) -> str:
        """Return the address of a process for clients."""
        port = self.fronts[process].port if self.fronts else self.ports[process]
        return f"127.0.0.1:{port}"

    async def primary(self) -> RedisProcess:
        """Return the current primary; wait until there is one."""
        if self.sentinel is not None:
            return await self.sentinel.primary()
        async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
            while True:
                for server in (self.servers[0], self.servers[-1]):
                    if await role_of(server) == "master":
                        return server
                await asyncio.sleep(0.05)

    async def run_redis_command(self, *command: str | int) -> Any:
        """Run a command on the primary, as an operator would."""
        async with client_of(await self.primary()) as client:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def state_of_redis(self) -> FinalState:
        """Return the state stored in Redis."""
        server = await self.primary()
        async with Redis(port=server.port) as client:
            records: Any = await client.hgetall(self.keys.records)
            epoch: Any = await client.get(self.keys.epoch)
            revision: Any = await client.get(self.keys.revision)
        states: States = {}
        for wire in records.values():
            service = Service.FromString(wire)
            states[service.name] = (service.version, service.revision)
        return FinalState("Redis", (epoch or b"").decode(), int(revision or 0), states)

    def set_clock(self, offset: int) -> None:
        """Set the offset of the clock of Redis in seconds. Requires ``clock=True`` in ``staged``."""
        with (self.directory / "offset").open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", offset))


@asynccontextmanager
async def staged(
    deployment: Deployment,
    directory: Path,
    *,
    flags: Sequence[str] = (),
    module: Sequence[str] = ("registry_server",),
    linked: bool = False,
    fronted: bool = False,
    clock: bool = False,
) -> AsyncIterator[Stage]:
    """Start Redis and the registry on free ports, and stop them at the end of the block.

    Args:
        deployment: Deployment of Redis.
        directory: Existing directory for data and logs.
        flags: Additional flags of the registry.
        module: Module to run instead of the registry, and its first arguments.
        linked: Add proxies between registry and Redis; only for a standalone Redis.
        fronted: Add proxies between clients and registry.
        clock: Make the clock of a standalone Redis adjustable by ``set_clock``.
    """
    stage = Stage(deployment, directory)
    async with AsyncExitStack() as stack:
        urls = [await _redis(stage, stack, clock=clock)] * PROCESSES
        if linked:
            stage.links = [await stack.enter_async_context(Proxy(stage.servers[0].port)) for _ in range(PROCESSES)]
            urls = [f"redis://127.0.0.1:{link.port}" for link in stage.links]
        stage.processes = [
            ServerProcess(
                f"--redis.url={url}",
                f"--redis.key-prefix={_CLUSTER_PREFIX if deployment == 'cluster' else 'ossa:services'}",
                f"--grpc.address=127.0.0.1:{port}",
                "--shutdown.grace-seconds=1",
                "--log.audit=off",
                "--log.requests=off",
                *flags,
                module=module,
            )
            for url, port in zip(urls, stage.ports, strict=True)
        ]
        async with asyncio.TaskGroup() as group:
            for process in stage.processes:
                stack.push_async_callback(process.stop)
                group.create_task(process.start())
        if fronted:
            stage.fronts = [await stack.enter_async_context(Proxy(port)) for port in stage.ports]
        yield stage


async def _redis(stage: Stage, stack: AsyncExitStack, *, clock: bool) -> str:
    directory = stage.directory / "redis"
    match stage.deployment:
        case "sentinel":
            stage.sentinel = await stack.enter_async_context(watched(directory))
            stage.servers = stage.sentinel.servers
            return stage.sentinel.url
        case "cluster":
            stage.cluster = await stack.enter_async_context(cluster(directory, stage.keys.revision))
            stage.servers = stage.cluster.nodes
            return stage.cluster.url
        case "alone":
            script = stage.directory / "redis-server"
            preload = await _build_clock(stage.directory) if clock else ""
            script.write_text(_REDIS.format(binary=find_redis_server(), preload=preload))
            script.chmod(0o700)
            server = RedisProcess(directory, binary=script.absolute())
            stage.servers = [await stack.enter_async_context(server)]
            return server.url


async def _build_clock(directory: Path) -> str:
    """Build the clock library and return the shell command that activates it."""
    assert COMPILER is not None, "needs a C compiler"
    library, offset = (directory / "clock.so").absolute(), (directory / "offset").absolute()
    offset.write_bytes(bytes(8))
    source = Path(__file__).with_name("clock.c")
    compiler = await asyncio.create_subprocess_exec(COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source)
    assert await compiler.wait() == 0
    return f"export LD_PRELOAD='{library}' CLOCK_OFFSET='{offset}'"
