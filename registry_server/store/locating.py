"""Location of the primary, by Sentinels or by the nodes of a cluster.

Any of them may be down, hang, or report the state before the last failover. Therefore all are queried concurrently. As
soon as a majority has answered, the answer with the highest configuration epoch is used: Sentinels and cluster nodes
increment that number at each failover. If only a minority answers, its newest answer is used unless it is older than
the previous one.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, NamedTuple

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from registry_server.config.addresses import HostPort
from registry_server.runtime.tasks import cancel

ClientFactory = Callable[[HostPort], Redis]


class _Answer(NamedTuple):
    """The primary as reported by one server."""

    epoch: int
    address: HostPort
    shard: tuple[HostPort, ...] = ()
    """All servers that hold the same keys."""


class Locator(ABC):
    """Locates the server that accepts the writes, by querying the servers in the URL and those that they report."""

    checks_role: ClassVar[bool]
    """Whether a new connection must verify that its server is a primary."""

    def __init__(self, initial: Sequence[HostPort], client_at: ClientFactory, failure: str) -> None:
        """Start without connections.

        Args:
            initial: The servers in the URL.
            client_at: Creates a client of one server.
            failure: Text of the error if no server returns a usable answer.
        """
        self._initial = tuple(initial)
        self._client_at = client_at
        self._failure = failure
        self._epoch = 0
        self._shard: tuple[HostPort, ...] = ()
        self._clients: dict[HostPort, Redis] = {}

    async def locate_primary(self) -> HostPort:
        """Return the primary's address.

        Raises:
            redis.exceptions.AuthenticationError: All servers refuse our credentials.
            redis.exceptions.ConnectionError: None of the servers returned a usable answer.
        """
        servers = dict.fromkeys((*self._initial, *self._shard))
        for address in servers:
            if address not in self._clients:
                self._clients[address] = self._client_at(address)
        queries = [self._query(address, self._clients[address]) for address in servers]
        answer = await _newest_answer(queries, self._epoch, self._failure)
        self._epoch, self._shard = answer.epoch, answer.shard
        # Removed before any is closed: new connections search for the primary concurrently.
        removed = [self._clients.pop(address) for address in self._clients.keys() - {*self._initial, *self._shard}]
        for client in removed:
            await client.aclose()
        return answer.address

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()

    @abstractmethod
    async def _query(self, queried: HostPort, client: Redis) -> _Answer:
        """Return the answer of one server."""


class Sentinels(Locator):
    """Queries Sentinels for the primary that they monitor under a name."""

    checks_role = True  # the server at the address may have been demoted, or not been promoted yet

    def __init__(self, sentinels: Sequence[HostPort], service: str, client_at: ClientFactory) -> None:
        super().__init__(sentinels, client_at, f"no Sentinel returned the primary of {service!r}")
        self._service = service

    async def _query(self, _: HostPort, client: Redis) -> _Answer:
        state: Any = await client.sentinel_master(self._service, return_responses=True)
        # During a failover, this command returns the new primary seconds before the state above does. It comes second,
        # because an older epoch with a newer address does no harm.
        found: Any = await client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._service)  # type: ignore[no-untyped-call]
        if not found:
            raise RedisConnectionError(f"Sentinel does not monitor {self._service!r}")
        host, port = found
        return _Answer(int(state["config-epoch"]), HostPort(_text(host), int(port)))


class ClusterSlot(Locator):
    """Queries cluster nodes for the owner of a key's slot: the nodes in the URL, and those that hold the slot."""

    checks_role = False  # a node that does not own the slot answers every command with MOVED

    def __init__(self, initial_nodes: Sequence[HostPort], key: str, client_at: ClientFactory) -> None:
        self._slot = key_slot(key.encode())
        super().__init__(initial_nodes, client_at, f"no cluster node returned the owner of slot {self._slot}")

    async def _query(self, queried: HostPort, client: Redis) -> _Answer:
        nodes: dict[str, Any] = await client.cluster("NODES")
        for owner, node in nodes.items():
            if any(int(first) <= self._slot <= int(last) for first, last in _slot_ranges(node)):
                replicas = (_address(name, other, queried) for name, other in nodes.items() if _replicates(other, node))
                address = _address(owner, node, queried)
                return _Answer(int(node["epoch"]), address, (address, *replicas))
        raise RedisConnectionError(f"no node owns slot {self._slot}")


def _slot_ranges(node: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each[0], each[-1]) for each in node["slots"]]  # a range of one slot has one element


def _replicates(node: dict[str, Any], owner: dict[str, Any]) -> bool:
    return bool(node["master_id"] == owner["node_id"] and "noaddr" not in node["flags"])


def _address(name: str, node: dict[str, Any], queried: HostPort) -> HostPort:
    host, _, port = name.rpartition(":")
    # A node that no other node has contacted does not know its own address.
    return HostPort(node["hostname"] or host or queried.host, int(port))


async def _newest_answer(queries: Sequence[Coroutine[Any, Any, _Answer]], known_epoch: int, failure: str) -> _Answer:
    """Run all queries concurrently; return the newest answer of a majority, or of all that answer.

    Args:
        queries: The queries; each may fail or hang.
        known_epoch: Epoch of the previous answer. A majority's older answer is used anyway: epochs can be reset.
        failure: Text of the error if there is no answer.
    """
    tasks = [asyncio.create_task(_answer_or_error(query)) for query in queries]
    answers: list[_Answer] = []
    refusals: set[str] = set()
    refused = 0
    try:
        for task in asyncio.as_completed(tasks):
            answer = await task
            if isinstance(answer, _Answer):
                answers.append(answer)
            else:
                is_refusal = isinstance(answer, AuthenticationError)
                refused += is_refusal
                refusals.add(
                    "our credentials are refused" if is_refusal else str(answer)
                )  # redis-py's advises programmers
            if len(answers) > len(tasks) // 2:
                return max(answers, key=lambda answer: answer.epoch)
    finally:
        await cancel(tasks)  # those that hang
    newest = max(answers, key=lambda answer: answer.epoch, default=None)
    if newest is not None and newest.epoch >= known_epoch:
        return newest
    if newest is not None:
        refusals.add("the servers that answered are behind")
    kind = AuthenticationError if refused == len(tasks) else RedisConnectionError
    raise kind(f"{failure}: {'; '.join(sorted(refusals))}")


async def _answer_or_error(query: Coroutine[Any, Any, _Answer]) -> _Answer | Exception:
    try:
        return await query
    # LookupError, ValueError: the server at the address is neither a Sentinel nor a cluster node.
    except (RedisError, OSError, LookupError, ValueError) as error:
        return error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
