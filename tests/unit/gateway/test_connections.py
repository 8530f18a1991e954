"""Shares of connections and of the bytes that they hold."""

from structlog.testing import capture_logs

from registry_server.config import HttpSettings
from registry_server.gateway.connections import Connections, Place


class Connection:
    """A connection that is idle or not."""

    def __init__(self, *, idle: bool) -> None:
        self.idle = idle
        self.closed = False

    def force_close(self) -> None:
        """Close it."""
        self.closed, self.idle = True, False


def connections(size: int, max_bytes: int = 1_000) -> Connections:
    return Connections(HttpSettings(max_connections=size), max_bytes)


def fill(counted: Connections, address: str, number: int, *, idle: bool) -> list[tuple[Place, Connection]]:
    found = []
    for _ in range(number):
        place, connection = counted.accept(address), Connection(idle=idle)
        assert place is not None
        place.occupy(connection)
        found.append((place, connection))
    return found


def test_one_address_cannot_occupy_all_places() -> None:
    counted = connections(100)
    held = fill(counted, "192.0.2.1", 80, idle=False)
    assert counted.accept("192.0.2.1") is None
    fill(counted, "192.0.2.2", 20, idle=False)
    assert counted.accept("192.0.2.2") is None
    for place, connection in held:
        place.release(connection)
        place.release(connection)
    assert counted.places.held == 20
    fill(counted, "192.0.2.2", 10, idle=False)


def test_new_connection_replaces_the_oldest_idle_one_of_its_address() -> None:
    counted = connections(100)
    other = fill(counted, "192.0.2.2", 1, idle=True)
    busy = fill(counted, "192.0.2.1", 3, idle=False)
    idle = fill(counted, "192.0.2.1", 76, idle=True)
    assert counted.accept("192.0.2.1") is not None
    assert [connection.closed for _, connection in (*other, *busy, *idle[:2])] == [False] * 4 + [True, False]
    idle[0][0].release(idle[0][1])
    assert counted.places.held == 80


def test_held_bytes_have_the_same_shares_and_are_released() -> None:
    counted = connections(100, max_bytes=1_000)
    (first, _), (second, _) = fill(counted, "192.0.2.1", 2, idle=False)
    assert first.hold(800)
    assert not second.hold(1)
    assert first.hold(40)
    assert second.hold(700)
    first.release()
    assert counted.bytes.held == 700
    second.release()
    assert counted.bytes.held == 0


def test_closed_connections_are_logged_at_a_limited_rate() -> None:
    counted = connections(10)
    fill(counted, "192.0.2.1", 8, idle=False)
    with capture_logs() as logs:
        for _ in range(1_000):
            assert counted.accept("192.0.2.1") is None
    assert {(line["event"], line["limit"]) for line in logs} == {("HTTP connection closed", "http.max_connections")}
    assert len(logs) < 200
