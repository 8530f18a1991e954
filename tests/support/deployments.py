"""Highly available Redis deployments: a primary with replicas under Sentinel, and a cluster; real processes."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from registry_server.runtime.guarded_process import GuardedProcess
from tests.support.redis_process import PORTS, RedisProcess, find_redis_server, free_port, serving_pid

START_TIMEOUT_SECONDS = 60.0
STOP_GRACE_SECONDS = 5.0
SERVICE = "agents"
# Long enough that a busy machine is not considered down.
SENTINEL_DOWN_AFTER_MS, NODE_TIMEOUT_MS = 1500, 2500
# Start a full copy immediately instead of waiting for other replicas.
REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
SLOTS = 16384
UNREACHABLE = (RedisConnectionError, RedisTimeoutError, OSError)
CLUSTER_PORTS = PORTS[:2000]  # the cluster bus port is 10,000 higher and must stay below the ephemeral ports


class SentinelProcess:
    """A Sentinel process that exits with the test process."""

    def __init__(self, directory: Path, primary: RedisProcess, password: str, own_password: str) -> None:
        self._directory, self._primary = directory, primary
        self._password, self._own_password = password, own_password
        self._process: GuardedProcess | None = None
        self.port = 0

    async def start(self) -> None:
        """Start the process and wait until it responds."""
        self._directory.mkdir(parents=True, exist_ok=True)
        fixed = bool(self.port)
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            while not await self._try_port(self.port or free_port()):
                if fixed:
                    await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop the process. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            await process.stop(STOP_GRACE_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _try_port(self, port: int) -> bool:
        config = self._directory / "sentinel.conf"
        if not config.exists() or not self.port:  # Sentinel stores its state in this file
            lines = [
                f"port {port}",
                "bind 127.0.0.1",
                f"dir {self._directory.absolute()}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {self._primary.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {SENTINEL_DOWN_AFTER_MS}",
                f"sentinel failover-timeout {SERVICE} 6000",
                f"sentinel parallel-syncs {SERVICE} 2",
            ]
            if self._password:
                lines.append(f"sentinel auth-pass {SERVICE} {self._password}")
            if self._own_password:
                lines.append(f"requirepass {self._own_password}")
            config.write_text("\n".join(lines) + "\n")
        output = os.open(self._directory / "sentinel.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = await GuardedProcess.start(find_redis_server(), config, "--sentinel", output=output)
        finally:
            os.close(output)
        try:
            while process.returncode is None:
                if await serving_pid(port, self._own_password) == process.pid:
                    self._process, self.port = process, port
                    return True
                await asyncio.sleep(0.01)
        finally:
            if self._process is not process:
                await process.stop(STOP_GRACE_SECONDS)
        return False


class Watched(NamedTuple):
    """A primary and its replicas, under three Sentinels."""

    servers: list[RedisProcess]
    """The first one is the initial primary."""
    sentinels: list[SentinelProcess]
    password: str
    own_password: str

    @property
    def url(self) -> str:
        """Return the value of the setting ``redis.url``."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        user = f":{self.password}@" if self.password else ""
        options = f"?sentinel_password={self.own_password}" if self.own_password else ""
        return f"redis+sentinel://{user}{hosts}/{SERVICE}{options}"

    async def primary(self, other_than: RedisProcess | None = None) -> RedisProcess:
        """Return the primary once two Sentinels name it and it has that role; ignore ``other_than``."""
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            while True:
                ports = [port for sentinel in self.sentinels if (port := await self._primary_port(sentinel))]
                for server in self.servers:
                    if server is not other_than and ports.count(server.port) >= 2 and await role_of(server) == "master":
                        return server
                await asyncio.sleep(0.05)

    async def wait_until_settled(self) -> None:
        """Wait until every Sentinel has discovered the others and all replicas."""
        for sentinel in self.sentinels:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                while not await self._has_discovered_all(sentinel):
                    await asyncio.sleep(0.05)

    async def _has_discovered_all(self, sentinel: SentinelProcess) -> bool:
        async with self.client(sentinel) as client:
            state: Any = await client.sentinel_master(SERVICE, return_responses=True)
        replicas, others = len(self.servers) - 1, len(self.sentinels) - 1
        return bool(state["num-slaves"] == replicas and state["num-other-sentinels"] == others)

    async def _primary_port(self, sentinel: SentinelProcess) -> int | None:
        try:
            async with self.client(sentinel) as client:
                answer: Any = await client.execute_command(  # type: ignore[no-untyped-call]
                    "SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE
                )
        except UNREACHABLE:
            return None
        return int(answer[1])

    def client(self, sentinel: SentinelProcess) -> Redis:
        """Return a client of a Sentinel."""
        return Redis(port=sentinel.port, password=self.own_password or None, decode_responses=True)


@asynccontextmanager
async def watched(
    directory: Path, *args: str, replicas: int = 2, password: str = "", own_password: str = ""
) -> AsyncIterator[Watched]:
    """Run a primary with replicas and three Sentinels, fully discovered; ``args`` are passed to redis-server."""
    async with AsyncExitStack() as stack:

        async def server(name: str, *extra_args: str) -> RedisProcess:
            auth = ("--masterauth", password) if password else ()
            process = RedisProcess(directory / name, *REPLICATION, *auth, *args, *extra_args, password=password)
            return await stack.enter_async_context(process)

        servers = [await server("redis-0")]
        following = ("--replicaof", "127.0.0.1", str(servers[0].port))
        servers += [await server(f"redis-{i}", *following) for i in range(1, replicas + 1)]
        for replica in servers[1:]:
            await wait_until_linked(replica)
        sentinels = [
            await stack.enter_async_context(
                SentinelProcess(directory / f"sentinel-{i}", servers[0], password, own_password)
            )
            for i in range(3)
        ]
        deployment = Watched(servers, sentinels, password, own_password)
        await deployment.wait_until_settled()
        yield deployment


class Cluster(NamedTuple):
    """Three primaries that share the slots, and a replica of the primary that owns the registry's slot."""

    nodes: list[RedisProcess]
    """The first node initially owns the slot; the last one is its replica."""
    slot: int

    @property
    def url(self) -> str:
        """Return the value of ``redis.url``, without the owner of the slot, which the registry must discover."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[1:3])


@asynccontextmanager
async def cluster(directory: Path, key: str, *args: str) -> AsyncIterator[Cluster]:
    """Run a cluster whose first node owns the slot of a key."""
    slot = key_slot(key.encode())
    async with AsyncExitStack() as stack:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS), *REPLICATION, *args)
        nodes = [
            await stack.enter_async_context(RedisProcess(directory / f"node-{i}", *options, ports=CLUSTER_PORTS))
            for i in range(4)
        ]
        third = SLOTS // 3
        for i, node in enumerate(nodes):
            async with client_of(node) as client:
                await client.cluster("SET-CONFIG-EPOCH", i + 1)
                if i < 3:
                    # Slots are assigned from the slot of the key upwards, modulo SLOTS.
                    last = third if i < 2 else SLOTS - 2 * third
                    await client.cluster("ADDSLOTS", *((slot + i * third + n) % SLOTS for n in range(last)))
                if i:
                    await client.cluster("MEET", "127.0.0.1", nodes[0].port)
        for node in nodes:
            await wait_until_agreed(node)
        async with client_of(nodes[0]) as client:
            owner = await client.cluster("MYID")
        async with client_of(nodes[3]) as client:
            await client.cluster("REPLICATE", owner)
        await wait_until_linked(nodes[3])
        for node in nodes:  # the others vote for the replica only after they have discovered it
            await wait_until_agreed(node, replicas=1)
        yield Cluster(nodes, slot)


async def wait_until_agreed(node: RedisProcess, replicas: int = 0) -> None:
    """Wait until a node has discovered the whole cluster."""
    async with asyncio.timeout(START_TIMEOUT_SECONDS), client_of(node) as client:
        while True:
            info: Any = await client.cluster("INFO")
            known: Any = await client.cluster("NODES")
            following = [other for other in known.values() if "slave" in other["flags"]]
            if info["cluster_state"] == "ok" and len(known) == 4 and len(following) >= replicas:
                return
            await asyncio.sleep(0.05)


async def wait_until_linked(replica: RedisProcess) -> None:
    """Wait until a replica is connected to its primary."""
    async with asyncio.timeout(START_TIMEOUT_SECONDS), client_of(replica) as client:
        while (await client.info("replication")).get("master_link_status") != "up":
            await asyncio.sleep(0.02)


@asynccontextmanager
async def cut_off(primary: RedisProcess, replicas: Sequence[RedisProcess]) -> AsyncIterator[None]:
    """Interrupt replication within the block. The primary must not require a password."""
    for replica in replicas:
        async with client_of(replica) as client:
            await client.config_set("masterauth", "wrong")  # prevents reconnection
    async with client_of(primary) as client:
        await client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for replica in replicas:
            async with client_of(replica) as client:
                await client.config_set("masterauth", "")


async def role_of(server: RedisProcess) -> str | None:
    """Return ``master`` or ``slave``, or ``None`` if the server is unreachable."""
    try:
        async with client_of(server) as client:
            role: Any = await client.role()
    except UNREACHABLE:
        return None
    return str(role[0])


def client_of(server: RedisProcess) -> Redis:
    """Return a client of a Redis server."""
    return Redis(
        port=server.port, password=server.password or None, decode_responses=True, socket_timeout=START_TIMEOUT_SECONDS
    )
