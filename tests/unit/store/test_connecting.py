import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from registry_server.config.addresses import HostPort
from registry_server.errors import ConfigurationError, StoreUnavailable
from registry_server.store import RedisStore
from registry_server.store.connecting import STALL_SECONDS, Connections
from registry_server.store.locating import ClusterSlot, Locator, Sentinels, _Answer
from tests.support.followers import QUICK
from tests.support.redis_process import RedisProcess

KEY = "{ossa}:registry:revision"


class RecordingConnections(Connections):
    """Records the addresses and options of clients for Sentinels and nodes."""

    def __init__(self, url: str) -> None:
        self.created: list[tuple[HostPort, dict[str, Any]]] = []
        super().__init__(url, timeout=1.0, key=KEY)
        if self.locator is not None:  # it would create the clients when it needs them
            for address in self.locator._initial:
                self.locator._client_at(address)

    def _client_at(self, address: HostPort, options: dict[str, Any]) -> Any:
        self.created.append((address, options))
        return super()._client_at(address, options)


def options_of(connections: Connections) -> dict[str, Any]:
    """Return the options of connections to Redis."""
    options: dict[str, Any] = connections.client().connection_pool.connection_kwargs
    return options


def test_sentinel_url_is_split_into_sentinel_and_redis_options() -> None:
    url = "redis+sentinel://me:p%40ss@a:1,[::1],c/main/3?sentinel_username=you&sentinel_password=%2F%26&protocol=2"
    connections = RecordingConnections(url)

    assert isinstance(connections.locator, Sentinels)
    assert [address for address, _ in connections.created] == [("a", 1), ("::1", 26379), ("c", 26379)]
    for _, options in connections.created:
        assert options == {"protocol": 2, "username": "you", "password": "/&"}
    options = options_of(connections)
    assert (options["username"], options["password"], options["db"], options["protocol"]) == ("me", "p@ss", 3, 2)
    assert not [name for name in options if name.startswith("sentinel")]


def test_redis_password_is_not_sent_to_sentinels() -> None:
    connections = RecordingConnections("redis+sentinel://:secret@a/main")

    assert [options for _, options in connections.created] == [{}]
    assert options_of(connections)["password"] == "secret"


def test_cluster_nodes_receive_the_same_credentials() -> None:
    connections = RecordingConnections("redis+cluster://me:secret@a,b:7001/0")

    assert isinstance(connections.locator, ClusterSlot)
    options = options_of(connections)
    assert (options["username"], options["password"], options["db"]) == ("me", "secret", 0)


@pytest.mark.parametrize("url", ["rediss://a", "rediss+sentinel://a/main", "rediss+cluster://a"])
def test_rediss_uses_tls_for_all_servers(url: str) -> None:
    connections = RecordingConnections(url + "?ssl_check_hostname=false")
    client = connections.client()

    assert issubclass(client.connection_pool.connection_class, SSLConnection)
    for _, options in connections.created:
        assert options["connection_class"] is SSLConnection
        assert options["ssl_check_hostname"] is False


@pytest.mark.parametrize(
    "url", ["redis://a", "rediss://a", "unix:///a", "redis+sentinel://a/main", "redis+cluster://a"]
)
def test_unknown_url_option_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^redis\.url: there is no option 'colour'$"):
        Connections(url + "?colour=red", timeout=1.0, key=KEY).client()


async def test_on_open_is_called_for_each_new_connection(redis: RedisProcess) -> None:
    opened: list[int] = []
    client = Connections(redis.url, timeout=5.0, key=KEY).client(on_open=lambda: opened.append(1))
    await client.ping()
    await client.ping()
    assert len(opened) == 1

    await client.connection_pool.disconnect()
    await client.ping()

    assert len(opened) == 2
    await client.aclose()


class Switchable(Locator):
    """Locates whichever server the test has made the primary."""

    checks_role = True

    def __init__(self, primary: HostPort) -> None:
        super().__init__([primary], lambda address: Redis(host=address.host, port=address.port), "no primary")
        self.primary = primary

    async def _query(self, _queried: HostPort, _client: Redis) -> _Answer:
        return _Answer(1, self.primary)


@pytest.mark.own_redis
async def test_server_replaced_while_it_was_paused_is_not_used(tmp_path: Path) -> None:
    async with RedisProcess(tmp_path / "old") as old, RedisProcess(tmp_path / "new") as new:
        connections = Connections("redis+sentinel://127.0.0.1/mymaster", timeout=5.0, key=KEY)
        connections.locator = locator = Switchable(HostPort("127.0.0.1", old.port))
        client = connections.client()
        old.pause()
        write = asyncio.ensure_future(client.set("key", "lost"))
        await asyncio.sleep(0.3)  # the handshake has begun
        locator.primary = HostPort("127.0.0.1", new.port)
        old.resume()
        with pytest.raises(RedisConnectionError, match="was replaced by another primary during the handshake"):
            await write
        await client.set("key", "kept")
        await client.aclose()
        await connections.close()
        async with Redis(port=old.port) as direct:
            assert await direct.get("key") is None
        async with Redis(port=new.port) as direct:
            assert await direct.get("key") == b"kept"


@pytest.mark.own_redis
async def test_stream_of_a_server_replaced_during_a_pause_is_left(tmp_path: Path) -> None:
    async with RedisProcess(tmp_path / "old") as old, RedisProcess(tmp_path / "new") as new:
        store = RedisStore("redis+sentinel://127.0.0.1/mymaster", timeout=5.0, limits=QUICK)
        store._connections.locator = locator = Switchable(HostPort("127.0.0.1", old.port))
        await store.open()
        waiting = asyncio.create_task(store.reader.wait_for_events(0))
        await asyncio.sleep(0)  # it has sent its command
        old.pause()
        await asyncio.sleep(QUICK.tail_block_seconds + 3 * STALL_SECONDS)
        locator.primary = HostPort("127.0.0.1", new.port)
        old.resume()
        with pytest.raises(StoreUnavailable, match="another primary was chosen"):
            await waiting
        await store.close()
