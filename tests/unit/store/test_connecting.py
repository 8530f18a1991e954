from typing import Any

import pytest
from redis.asyncio import SSLConnection

from registry_server.config.addresses import HostPort
from registry_server.errors import ConfigurationError
from registry_server.store.connecting import Connections
from registry_server.store.locating import ClusterSlot, Sentinels
from tests.support.redis_process import RedisProcess

KEY = "{ossa}:registry:revision"


class Asked(Connections):
    """Keeps what it is asked to make clients of."""

    def __init__(self, url: str) -> None:
        self.asked: list[tuple[HostPort, dict[str, Any]]] = []
        super().__init__(url, timeout=1.0, key=KEY)

    def _client_at(self, address: HostPort, options: dict[str, Any]) -> Any:
        self.asked.append((address, options))
        return super()._client_at(address, options)


def options_of(connections: Connections) -> dict[str, Any]:
    """What connections to Redis itself are made with."""
    options: dict[str, Any] = connections.client().connection_pool.connection_kwargs
    return options


def test_the_parts_of_a_sentinel_url_go_where_they_belong() -> None:
    url = "redis+sentinel://me:p%40ss@a:1,[::1],c/main/3?sentinel_username=you&sentinel_password=%2F%26&protocol=2"
    connections = Asked(url)

    assert isinstance(connections.locator, Sentinels)
    assert [address for address, _ in connections.asked] == [("a", 1), ("::1", 26379), ("c", 26379)]
    for _, options in connections.asked:
        assert options == {"protocol": 2, "username": "you", "password": "/&"}
    options = options_of(connections)
    assert (options["username"], options["password"], options["db"], options["protocol"]) == ("me", "p@ss", 3, 2)
    assert not [name for name in options if name.startswith("sentinel")]


def test_sentinels_are_never_told_the_password_of_redis() -> None:
    connections = Asked("redis+sentinel://:secret@a/main")

    assert [options for _, options in connections.asked] == [{}]
    assert options_of(connections)["password"] == "secret"


def test_nodes_of_a_cluster_all_get_the_same_credentials() -> None:
    connections = Asked("redis+cluster://me:secret@a,b:7001/0")

    assert isinstance(connections.locator, ClusterSlot)
    options = options_of(connections)
    assert (options["username"], options["password"], options["db"]) == ("me", "secret", 0)


@pytest.mark.parametrize("url", ["rediss://a", "rediss+sentinel://a/main", "rediss+cluster://a"])
def test_two_s_mean_tls_to_all_of_them(url: str) -> None:
    connections = Asked(url + "?ssl_check_hostname=false")
    client = connections.client()

    assert issubclass(client.connection_pool.connection_class, SSLConnection)
    for _, options in connections.asked:
        assert options["connection_class"] is SSLConnection
        assert options["ssl_check_hostname"] is False


@pytest.mark.parametrize(
    "url", ["redis://a", "rediss://a", "unix:///a", "redis+sentinel://a/main", "redis+cluster://a"]
)
def test_an_option_that_is_not_known_is_refused_before_anything_is_connected(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^redis\.url: there is no option 'colour'$"):
        Connections(url + "?colour=red", timeout=1.0, key=KEY).client()


async def test_who_has_a_connection_is_told_each_time_that_it_is_made(redis: RedisProcess) -> None:
    opened: list[int] = []
    client = Connections(redis.url, timeout=5.0, key=KEY).client(on_open=lambda: opened.append(1))
    await client.ping()
    await client.ping()
    assert len(opened) == 1

    await client.connection_pool.disconnect()
    await client.ping()

    assert len(opened) == 2
    await client.aclose()
