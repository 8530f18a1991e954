"""``Connections``: Redis clients that always connect to the primary.

A ``redis+sentinel://`` or ``redis+cluster://`` URL refers to the server that currently accepts the registry's writes; a
failover replaces it. The clients are ordinary redis-py clients; only their connections locate that server before they
connect (docs/adr/0020).
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakSet

import hiredis
import structlog
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from registry_server.config.addresses import HostPort, RedisParts, split_host_port, split_redis_url
from registry_server.errors import ConfigurationError
from registry_server.store.locating import ClusterSlot, Locator, Sentinels
from registry_server.store.tls import NO_TLS_FILES, RedisTls

_PRIMARY_CHECK_SECONDS: Final = 1.0
STALL_SECONDS: Final = 0.1
"""Delay of an answer from which its server may have been paused, and replaced, in the meantime."""
_SENTINEL_PORT, _NODE_PORT = 26379, 6379
_SENTINEL_OPTION_PREFIX = "sentinel_"

log = structlog.get_logger(__name__)


class Connections:
    """Creates the clients of one store and keeps all of them connected to the primary."""

    def __init__(self, url: str, *, timeout: float, key: str, tls: RedisTls = NO_TLS_FILES) -> None:
        """Parse the URL without connecting.

        Args:
            url: The setting ``redis.url``, except ``embedded``.
            timeout: Seconds to wait for an answer.
            key: Any of the registry's keys: in a cluster, all of them are in its slot.
            tls: Files for ``rediss``.

        Raises:
            ConfigurationError: The URL or the TLS files are invalid.
        """
        parts = split_redis_url(url)
        scheme = parts.scheme if parts else ""
        tls_options: dict[str, Any] = {}  # options in the URL override them
        if scheme.startswith("rediss"):
            tls.validate()
            tls_options = tls.options()
        self._timeout = timeout
        self._connections: WeakSet[AbstractConnection] = WeakSet()
        self._primary: HostPort | None = None
        self.replacements = 0
        """How often another server has become the primary."""
        self.locator: Locator | None = None
        """Locates the primary; ``None`` if the URL contains its address."""
        try:
            if parts and scheme.endswith("+sentinel"):
                self._options = tls_options | _node_options(parts, {})
                sentinel_options = tls_options | _sentinel_options(parts)
                service = parts.path.split("/")[1]
                hosts = _hosts(parts, _SENTINEL_PORT)
                self.locator = Sentinels(hosts, service, lambda address: self._client_at(address, sentinel_options))
            elif parts and scheme.endswith("+cluster"):
                self._options = tls_options | _node_options(parts, {"db": 0})
                self.locator = ClusterSlot(
                    _hosts(parts, _NODE_PORT), key, lambda address: self._client_at(address, dict(self._options))
                )
            else:
                self._options = tls_options | dict(parse_url(url))
        except ValueError as error:  # from parse_url, whose message does not contain the URL
            raise ConfigurationError(f"redis.url: {error}") from None

    def client(self, *, extra_timeout: float = 0.0, on_open: Callable[[], None] | None = None) -> Redis:
        """Create a client that connects to the primary only.

        Args:
            extra_timeout: Seconds to wait for an answer in addition to the timeout, for blocking commands.
            on_open: Called after each new connection.
        """
        kind = self._options.get("connection_class", Connection)
        options = self._options | {
            "connection_class": _PRIMARY_CONNECTION_CLASSES[kind],
            "owner": self,
            "on_open": on_open,
        }
        client = self._client(options, self._timeout + extra_timeout)
        try:
            client.connection_pool.make_connection()  # type: ignore[no-untyped-call] # does not connect yet
        except TypeError as error:
            name = str(error).rstrip("'").rpartition("'")[2]  # "... got an unexpected keyword argument 'colour'"
            raise ConfigurationError(f"redis.url: there is no option {name!r}") from error
        return client

    async def watch_primary(self) -> None:
        """Locate the primary once a second, until cancelled.

        A connection fails by itself when its server dies, and Sentinel closes connections to a server that it demotes.
        If Sentinel cannot reach the old primary, however, that server would continue to accept writes that are lost.
        """
        while self.locator is not None:
            await asyncio.sleep(_PRIMARY_CHECK_SECONDS)
            try:
                await self.locate_primary(self.locator)
            except RedisError:
                continue  # existing connections are unaffected

    async def close(self) -> None:
        """Close the connections to Sentinels or cluster nodes; clients are closed by their users."""
        if self.locator is not None:
            await self.locator.close()

    async def locate_primary(self, locator: Locator) -> HostPort:
        """Return the address of the primary; connections to any other server are not used again."""
        address = await locator.locate_primary()
        if address != self._primary:
            if self._primary is not None:
                log.warning("redis primary changed", address=_text(address), previous=_text(self._primary))
                self.replacements += 1
            self._primary = address
            for connection in self._connections:
                connection.mark_for_reconnect()  # type: ignore[no-untyped-call]
        return address

    async def check_primary(self) -> None:
        """Locate the primary after an answer that was long delayed, and so perhaps from a server that was replaced."""
        if self.locator is not None:
            await self.locate_primary(self.locator)

    def register_connection(self, connection: AbstractConnection, address: HostPort) -> bool:
        """Register a new connection and return whether its server is still the primary."""
        self._connections.add(connection)
        return address == self._primary

    def _client_at(self, address: HostPort, options: dict[str, Any]) -> Redis:
        return self._client(options | {"host": address.host, "port": address.port}, self._timeout)

    def _client(self, options: Mapping[str, Any], timeout: float) -> Redis:
        defaults: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # A repeated commit could conflict with its own first attempt, so callers decide about repetition.
            "retry": Retry(NoBackoff(), 0),
            "client_name": "ossa-registry",
        }
        return Redis.from_pool(ConnectionPool(**{**defaults, **options}))


class _PrimaryConnection(AbstractConnection):
    """A connection that locates the primary before it connects, and reports when it has connected.

    A mixin for each kind of connection in redis-py.
    """

    host: str
    port: int

    def __init__(self, *, owner: Connections, on_open: Callable[[], None] | None, **options: Any) -> None:
        self._owner = owner
        self._on_open = on_open
        super().__init__(**options)

    def pack_command(self, *args: Any) -> list[bytes]:
        """Encode a command with hiredis: 3 µs for the 28 arguments of a commit, where redis-py needs 21 µs."""
        name, *rest = args
        parts = name.split() if isinstance(name, str) else [name]  # such as "CLIENT SETNAME"
        return [hiredis.pack_command((*parts, *rest))]

    async def connect(self) -> None:
        """Connect to the primary, unless a connection to it exists."""
        if self.is_connected and self.should_reconnect():  # type: ignore[no-untyped-call]
            await self.disconnect()
        if self.is_connected:
            return
        locator = self._owner.locator
        if locator is None:
            await super().connect()  # type: ignore[no-untyped-call]
        else:
            address = await self._owner.locate_primary(locator)
            self.host, self.port = address
            started = time.monotonic()
            await super().connect()  # type: ignore[no-untyped-call]
            if locator.checks_role:
                await self._check_role()
            # A paused server completes the handshake when it resumes: it may have been replaced, and not know it yet.
            if time.monotonic() - started > STALL_SECONDS:
                await self._locate_again(locator)
            if not self._owner.register_connection(self, address):
                await self.disconnect(nowait=True)
                raise RedisConnectionError(f"{_text(address)} was replaced by another primary during the handshake")
        if self._on_open is not None:
            self._on_open()

    async def _locate_again(self, locator: Locator) -> None:
        try:
            await self._owner.locate_primary(locator)
        except BaseException:
            await self.disconnect(nowait=True)  # otherwise the pool would consider it usable
            raise

    async def _check_role(self) -> None:
        try:
            await self.send_command("ROLE", check_health=False)
            role = (await self.read_response())[0]
        except BaseException:
            await self.disconnect(nowait=True)  # as above
            raise
        if role not in (b"master", "master"):
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"{self.host}:{self.port} does not report the role of a primary yet")


class _Tcp(_PrimaryConnection, Connection):
    pass


class _Tls(_PrimaryConnection, SSLConnection):
    pass


class _Unix(_PrimaryConnection, UnixDomainSocketConnection):
    pass


_PRIMARY_CONNECTION_CLASSES: Final[Mapping[type[AbstractConnection], type[_PrimaryConnection]]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


def _text(address: HostPort) -> str:
    return f"{address.host}:{address.port}"


def _hosts(parts: RedisParts, default_port: int) -> list[HostPort]:
    found = [split_host_port(host, default_port=default_port) for host in parts.hosts.split(",")]
    return [address for address in found if address is not None]


def _node_options(parts: RedisParts, fixed: dict[str, Any]) -> dict[str, Any]:
    """Return the options of connections to Redis, as redis-py reads them from the URL of one server."""
    scheme = parts.scheme.partition("+")[0]
    database = "/".join(["", *parts.path.split("/")[2:]])
    options = dict(parse_url(f"{scheme}://{parts.userinfo}host{database}{parts.query}"))
    del options["host"]
    return {name: value for name, value in options.items() if not name.startswith(_SENTINEL_OPTION_PREFIX)} | fixed


def _sentinel_options(parts: RedisParts) -> dict[str, Any]:
    """Return the options of connections to a Sentinel: separate credentials, TLS and protocol as for Redis."""
    options = _node_options(parts, {})
    for name in ("db", "username", "password"):
        options.pop(name, None)
    own = parse_url(f"redis://host{parts.query}")
    for name in ("username", "password"):
        if (value := own.get(_SENTINEL_OPTION_PREFIX + name)) is not None:
            options[name] = value
    return options
