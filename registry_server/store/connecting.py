"""From the setting ``redis.url`` to clients: where they connect, as whom, and when they must not stay connected.

Behind ``redis+sentinel://`` and ``redis+cluster://`` is one server that takes the writes of this registry, another one
after each failover. So a client is a plain one, and only its connections know more: each finds out where that server is
before it connects (docs/adr/0020).
"""

import asyncio
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
from registry_server.store.locating import Locator, Sentinels, SlotOwner
from registry_server.store.tls import NO_TLS_FILES, RedisTls

_LOOK: Final = 1.0
"""Seconds between two questions whether the server that takes the writes is still the same."""
_SENTINEL_PORT, _NODE_PORT = 26379, 6379
_OF_SENTINEL = "sentinel_"

log = structlog.get_logger(__name__)


class Connections:
    """Makes the clients of one store, and sees to it that all are connected to the server that takes the writes."""

    def __init__(self, url: str, *, timeout: float, key: str, tls: RedisTls = NO_TLS_FILES) -> None:
        """Reads the URL; nothing is connected yet.

        Args:
            url: The setting ``redis.url``, but not ``embedded``.
            timeout: Seconds that one answer may take.
            key: Any of the keys: in a cluster all are where this one is.
            tls: Files for ``rediss``.

        Raises:
            ConfigurationError: The URL is none that can be connected to, or the files are no good.
        """
        parts = split_redis_url(url)
        scheme = parts.scheme if parts else ""
        secured: dict[str, Any] = {}  # what the URL says goes before it
        if scheme.startswith("rediss"):
            tls.check()
            secured = tls.options()
        self._timeout = timeout
        self._connections: WeakSet[AbstractConnection] = WeakSet()
        self._found: HostPort | None = None
        self.locator: Locator | None = None
        """Finds the server; ``None`` if the URL itself says which one it is."""
        try:
            if parts and scheme.endswith("+sentinel"):
                self._options = secured | _node_options(parts, {})
                as_sentinel = secured | _sentinel_options(parts)
                service = parts.path.split("/")[1]
                hosts = _hosts(parts, _SENTINEL_PORT)
                self.locator = Sentinels(hosts, service, lambda at: self._client_at(at, as_sentinel))
            elif parts and scheme.endswith("+cluster"):
                self._options = secured | _node_options(parts, {"db": 0})
                self.locator = SlotOwner(
                    _hosts(parts, _NODE_PORT), key, lambda at: self._client_at(at, dict(self._options))
                )
            else:
                self._options = secured | dict(parse_url(url))
        except ValueError as error:  # of parse_url; it does not repeat the URL
            raise ConfigurationError(f"redis.url: {error}") from None

    def client(self, *, patience: float = 0.0, on_open: Callable[[], None] | None = None) -> Redis:
        """Makes a client that is always connected to the server that takes the writes, or not at all.

        Args:
            patience: Seconds that an answer may take beyond the timeout.
            on_open: Called whenever a connection was made.
        """
        kind = self._options.get("connection_class", Connection)
        options = self._options | {
            "connection_class": _KINDS[kind],
            "owner": self,
            "on_open": on_open,
        }
        client = self._client(options, self._timeout + patience)
        try:
            client.connection_pool.make_connection()  # type: ignore[no-untyped-call] # which connects nowhere yet
        except TypeError as error:
            name = str(error).rstrip("'").rpartition("'")[2]  # "... got an unexpected keyword argument 'colour'"
            raise ConfigurationError(f"redis.url: there is no option {name!r}") from error
        return client

    async def watch(self) -> None:
        """Watches for ever whether the server that takes the writes is another one; cancel it to stop.

        Connections tell by themselves when their server is gone, and Sentinel closes those to a server that it demotes.
        It cannot while it does not reach that server, which then would go on taking writes that are lost.
        """
        while self.locator is not None:
            await asyncio.sleep(_LOOK)
            try:
                await self.locate(self.locator)
            except RedisError:
                continue  # that alone does no harm: who is connected stays so

    async def close(self) -> None:
        """Closes the connections to those who are asked; a client is closed by who has it."""
        if self.locator is not None:
            await self.locator.close()

    async def locate(self, locator: Locator) -> HostPort:
        """Finds the server; connections to any other one are not used again."""
        address = await locator.locate()
        if address != self._found:
            if self._found is not None:
                log.warning("another Redis takes the writes now", address=_text(address), before=_text(self._found))
            self._found = address
            for connection in self._connections:
                connection.mark_for_reconnect()  # type: ignore[no-untyped-call]
        return address

    def joined(self, connection: AbstractConnection, address: HostPort) -> bool:
        """Takes note of a connection that was made; tells whether it may be used."""
        self._connections.add(connection)
        return address == self._found

    def _client_at(self, address: HostPort, options: dict[str, Any]) -> Redis:
        return self._client(options | {"host": address.host, "port": address.port}, self._timeout)

    def _client(self, options: Mapping[str, Any], timeout: float) -> Redis:
        defaults: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # A repeated commit could meet its own first try; who may repeat is decided by the callers.
            "retry": Retry(NoBackoff(), 0),
            "client_name": "ossa-registry",
        }
        return Redis.from_pool(ConnectionPool(**{**defaults, **options}))


class _Owned(AbstractConnection):
    """A connection that finds out where to connect to, and tells when it did.

    Mixed into each kind of connection that redis-py has.
    """

    host: str
    port: int

    def __init__(self, *, owner: Connections, on_open: Callable[[], None] | None, **options: Any) -> None:
        self._owner = owner
        self._on_open = on_open
        super().__init__(**options)

    def pack_command(self, *args: Any) -> list[bytes]:
        """Encodes a command by hiredis, which takes 3 µs for a commit's 28 arguments where redis-py takes 21."""
        name, *rest = args
        parts = name.split() if isinstance(name, str) else [name]  # such as "CLIENT SETNAME"
        return [hiredis.pack_command((*parts, *rest))]

    async def connect(self) -> None:
        """Connects, unless it is connected and may stay so."""
        if self.is_connected and self.should_reconnect():  # type: ignore[no-untyped-call]
            await self.disconnect()
        if self.is_connected:
            return
        locator = self._owner.locator
        if locator is None:
            await super().connect()  # type: ignore[no-untyped-call]
        else:
            address = await self._owner.locate(locator)
            self.host, self.port = address
            await super().connect()  # type: ignore[no-untyped-call]
            if locator.checks_role:
                await self._check_role()
            # One that was paused may greet us only when it wakes up, long after it was replaced.
            if not self._owner.joined(self, address):
                await self.disconnect(nowait=True)
                raise RedisConnectionError(f"{_text(address)} was replaced meanwhile")
        if self._on_open is not None:
            self._on_open()

    async def _check_role(self) -> None:
        try:
            await self.send_command("ROLE", check_health=False)
            role = (await self.read_response())[0]
        except BaseException:
            await self.disconnect(nowait=True)  # else the pool would take it for one that may be used
            raise
        if role not in (b"master", "master"):
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"{self.host}:{self.port} does not say yet that it is the primary")


class _Tcp(_Owned, Connection):
    pass


class _Tls(_Owned, SSLConnection):
    pass


class _Unix(_Owned, UnixDomainSocketConnection):
    pass


_KINDS: Final[Mapping[type[AbstractConnection], type[_Owned]]] = {
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
    """What connections to Redis itself get, as redis-py reads it from the URL of one server."""
    scheme = parts.scheme.partition("+")[0]
    database = "/".join(["", *parts.path.split("/")[2:]])
    options = dict(parse_url(f"{scheme}://{parts.userinfo}host{database}{parts.query}"))
    del options["host"]
    return {name: value for name, value in options.items() if not name.startswith(_OF_SENTINEL)} | fixed


def _sentinel_options(parts: RedisParts) -> dict[str, Any]:
    """What connections to a Sentinel get: its own credentials, and how TLS and the protocol are for Redis."""
    options = _node_options(parts, {})
    for name in ("db", "username", "password"):
        options.pop(name, None)
    own = parse_url(f"redis://host{parts.query}")
    for name in ("username", "password"):
        if (value := own.get(_OF_SENTINEL + name)) is not None:
            options[name] = value
    return options
