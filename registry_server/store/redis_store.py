"""``RedisStore``: the registry's data in Redis."""

from typing import Final

from redis.asyncio import Redis

from registry_server.errors import ConfigurationError, StoreFault
from registry_server.instrumentation.problems import Problems
from registry_server.instrumentation.tracing import Tracer
from registry_server.store.access import explain_faults, explain_format, find_faults, is_newer_format, starting_with
from registry_server.store.commands import Commands, Confirmation
from registry_server.store.connecting import Connections
from registry_server.store.counters import PoolStats, StoreCounters
from registry_server.store.failures import translate_errors
from registry_server.store.groups import CommitGroups
from registry_server.store.keys import DATA_FORMAT, Keys
from registry_server.store.limits import DEFAULT_LIMITS, StoreLimits
from registry_server.store.lua import Scripts
from registry_server.store.reader import StoreReader
from registry_server.store.refusals import Refusals
from registry_server.store.renewals import Renewals
from registry_server.store.repairs import Repairs
from registry_server.store.retention import EventRetention
from registry_server.store.tls import NO_TLS_FILES, RedisTls
from registry_server.store.vitals import Vitals
from registry_server.store.writer import StoreWriter

MIN_REDIS_VERSION: Final = (6, 2)  # the first with SET ... PXAT


class RedisStore:
    """Connections to Redis, and the reader, the writer and the repairs that share them.

    Attributes:
        keys: Names of the keys.
        counters: Counters since the process started.
        reader: Reads positions, records and events.
        writer: Commits changes and keeps leases.
        repairs: Restores a store that lost data.
    """

    def __init__(
        self,
        url: str,
        *,
        key_prefix: str = "ossa:services",
        timeout: float = 2.0,
        events_max_length: int = 10_000,
        events_max_age: float = 0,
        sweep_interval: float = 1.0,
        tls: RedisTls = NO_TLS_FILES,
        tracer: Tracer | None = None,
        wait_replicas: int = 0,
        wait_timeout: float = 1.0,
        limits: StoreLimits = DEFAULT_LIMITS,
        problems: Problems | None = None,
        disk: str = "the disk of Redis",
    ) -> None:
        """Create the clients without connecting.

        Args:
            url: The setting ``redis.url``, except ``embedded``.
            key_prefix: See ``Keys.under``.
            timeout: Seconds to wait for an answer of Redis.
            events_max_length: Number of events that the stream keeps at least.
            events_max_age: Age in seconds up to which it keeps events beyond that number, within 64 MiB.
            sweep_interval: Seconds between two sweeps.
            tls: Files for ``rediss://``.
            tracer: Records spans of scripts that traced calls wait for.
            wait_replicas: Number of replicas that must acknowledge a change.
            wait_timeout: Seconds to wait for them; less than ``timeout``.
            limits: Batch sizes and waiting times.
            problems: Problems of the process, for the commands that Redis refuses, and for its memory and disk.
            disk: The disk that Redis writes to, for people.

        Raises:
            ConfigurationError: The URL or the TLS files are invalid.
        """
        self.keys = Keys.under(key_prefix)
        self._wait_replicas = wait_replicas
        self._connections = Connections(url, timeout=timeout, key=self.keys.revision, tls=tls)
        self._client = self._connections.client()
        self.retention = EventRetention(events_max_length, events_max_age)
        self.counters = StoreCounters()
        scripts = Scripts()
        problems = problems or Problems()
        refusals = Refusals(problems, scripts, self.keys)
        self._vitals = Vitals(self._client, self.counters, problems, disk)

        def pipeline(confirmation: Confirmation | None = None) -> tuple[Commands, CommitGroups]:
            commands = Commands(
                self._client,
                scripts,
                self.keys,
                self.counters,
                refusals,
                confirmation=confirmation,
                tracer=tracer,
                limits=limits,
            )
            return commands, CommitGroups(commands, self.keys.document_prefix, self.retention, limits=limits)

        commands, unconfirmed_commits = confirmed, commits = pipeline()
        if wait_replicas:
            # A separate pipeline, so that heartbeats and reads do not wait for replicas.
            confirmed, commits = pipeline(Confirmation(wait_replicas, round(wait_timeout * 1000)))
        self._commands = commands
        renewals = Renewals(commands, self.keys.document_prefix, limits)
        # Groups precede the pipelines that they send to, because ``close`` follows this order.
        groups: set[CommitGroups] = {commits, unconfirmed_commits}
        self._senders: list[CommitGroups | Renewals | Commands] = [renewals, *groups, *{commands, confirmed}]
        self.reader = StoreReader(commands, self._connections, self.keys, limits)
        self.writer = StoreWriter(
            commands,
            commits,
            unconfirmed_commits,
            renewals,
            self.keys,
            self.counters,
            retention=self.retention,
            sweep_interval=sweep_interval,
            wait_replicas=wait_replicas,
            limits=limits,
        )
        self.repairs = Repairs(commands, confirmed, self.keys, retention=self.retention, limits=limits)

    @property
    def waiting_commands(self) -> int:
        """Number of commands that wait for a round trip."""
        return sum(sender.waiting for sender in self._senders)

    def pool_stats(self) -> dict[str, PoolStats]:
        """Return the connections in use and idle, by pool: ``commands`` and ``follower``."""
        return {"commands": _pool_stats(self._client), "follower": _pool_stats(self.reader.stream_client)}

    async def sample_memory(self) -> None:
        """Read memory usage and persistence status of Redis into ``counters``, and report the problems they reveal."""
        await self._vitals.sample()

    def start_error(self, fault: StoreFault) -> ConfigurationError:
        """Return the error that ends a start because of a fault that an operator must correct."""
        return ConfigurationError(explain_faults([fault], self.keys))

    async def open(self) -> None:
        """Load the scripts, and verify that this Redis is supported and permits everything that the registry needs.

        Raises:
            ConfigurationError: Redis is too old, refuses a command, or holds other data under the registry's keys, or
                data of a newer version.
            StoreUnavailable: Redis does not answer.
        """
        with starting_with(self.keys):
            with translate_errors("INFO"):
                version = str((await self._client.info("server"))["redis_version"])
                supported = tuple(int(part) for part in version.split(".")[:2]) >= MIN_REDIS_VERSION
            if not supported:
                raise ConfigurationError(f"redis.url: Redis {version} is too old; 6.2 or newer is needed")
            if self._wait_replicas:
                with translate_errors("WAIT"):  # otherwise every write would be reported as not replicated
                    await self._client.wait(0, 1)
            await self._commands.load_scripts()
            keys = self.keys
            own = keys.members, keys.repair, keys.merged, keys.secret, keys.format
            more = *own, keys.document_prefix, keys.loads
            stored_format, failures = await self._commands.run_script("access", keys=more)
            if is_newer_format(stored_format):  # which may also have other types of keys
                raise ConfigurationError(explain_format(stored_format, keys))
            if faults := find_faults(failures):
                raise ConfigurationError(explain_faults(faults, keys))
            await self.reader.verify_connection()

    async def share_format(self) -> None:
        """Write the format of the data to a store that has none.

        Raises:
            ConfigurationError: The store holds data of a newer version now.
        """
        stored = await self.reader.share_value(self.keys.format, str(DATA_FORMAT).encode())
        if is_newer_format(stored):
            raise ConfigurationError(explain_format(stored, self.keys))

    async def reconnect(self) -> None:
        """Drop idle connections after an outage, so that no write has to discover that its connection is closed.

        Raises:
            StoreUnavailable: Redis does not answer yet.
        """
        for client in (self._client, self.reader.stream_client):
            await client.connection_pool.disconnect(inuse_connections=False)
        # Scripts are loaded when one is missing: reads must not depend on the permission to load them.
        await self.reader.verify_connection()

    async def watch_primary(self) -> None:
        """Reconnect whenever another Redis becomes the primary, until cancelled."""
        await self._connections.watch_primary()

    async def close(self) -> None:
        """Wait for commands in flight and close all connections."""
        for sender in self._senders:
            await sender.close()
        await self._client.aclose()
        await self.reader.close()
        await self._connections.close()


def _pool_stats(client: Redis) -> PoolStats:
    # redis-py reports these only through its own OpenTelemetry metrics.
    pool = client.connection_pool
    in_use, idle = pool._in_use_connections, pool._available_connections  # noqa: SLF001
    return PoolStats(len(in_use), len(idle), pool.max_connections)
